"""From a judged run to its bundle: graphs, their int8 forms judged on the same rows, and the card."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from assay.bundle.bundle import KINDS, Bundle
from assay.bundle.card import Card, Int8
from assay.bundle.seal import seal, update
from assay.data.hashes import read_as_hashed
from assay.data.images.entry import hash_of
from assay.data.objects import restore
from assay.errors import ManifestError
from assay.experiment.identity import stamp
from assay.experiment.judge import measure, scoring_of
from assay.metrics.compare import compare
from assay.metrics.drift import IMAGES, describe
from assay.metrics.predictions import logits_of, rows_of, sets_of
from assay.runs.folder import Run
from assay.runs.results import Result, add_scoring, mark_of, read_predictions, write_result
from assay.train.best import load_best
from assay.train.predict import Predictor
from assay.train.task import Task
from assay.train.worker import Job, predictions_table


def ship(job: Job, result: Result, storage: Path) -> None:
    """Export a judged run's best weights into its bundle.

    Raises:
        BundleError: the graphs do not repeat what training computed.
    """
    task_class, config = job.load()
    task = task_class(config, job.dataset)
    load_best(task, job.folder)
    task.adopt(read_predictions(job.folder))
    folder = job.folder / "bundle"
    folder.mkdir(exist_ok=True)
    rows = {name: job.split.rows(name) for name in ("train", "val")}
    pipeline = task.eval().export(folder, rows)
    if "refused" in pipeline:
        Run(job.folder).warn(f"No int8 graph ships: {pipeline['refused']}")
    card = Card(
        task=job.source.name,
        run=job.folder.name,
        mark=mark_of(job.folder),
        classes=task.classes,
        pipeline=pipeline,
        page=config.data.page,
        white=job.pixels.white,
        decision=result.decision,
        thresholds=result.thresholds,
        alarms=result.alarms,
        metrics=result.sets,
        int8=_judge_int8(job, task, storage, result),
        data=job.manifest.fingerprint,
        code=stamp(),
    )
    golden = _golden(job, int(rows["val"][0]))
    with torch.no_grad():
        expected = task.golden(int(rows["val"][0]))
    if result.decision and KINDS[pipeline["kind"]].decides:
        # the same image: the first of val
        first = rows_of(read_predictions(job.folder), "val").slice(0, 1)
        probs = result.decision.probs(logits_of(first))[0].tolist()
        expected = dict(zip(task.classes, probs, strict=True))
    bundle = seal(folder, card, golden, expected)
    embeddings = {name: _embeddings(bundle, job, rows[name]) for name in rows}
    if embeddings["train"] and embeddings["val"]:
        train, val = np.stack(embeddings["train"]), np.stack(embeddings["val"])
        update(folder, embedding=describe(train, val))


def _golden(job: Job, row: int) -> Path:
    """Return the file of an image, which must still be what was trained on.

    Raises:
        ManifestError: it has changed; the run goes on once it is restored.
    """
    path, content = (job.manifest.column(name)[row] for name in ("image", "content"))
    try:
        read_as_hashed(restore(Path(path)), hash_of(content))
    except ManifestError as error:
        raise ManifestError(
            f"The bundle holds an image that is no longer what was trained on ({str(error).partition(';')[0]}); restore it and give the same command again, which goes on from the weights that are there."
        ) from None
    return Path(path)


def _embeddings(bundle: Bundle, job: Job, rows: np.ndarray) -> list[np.ndarray]:
    """Embed some rows, evenly chosen; none where the graphs give no embedding."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).astype(int)]
    answers = (bundle.predict_each([job.pixels[row]])[0] for row in chosen.tolist())
    return [answer.embedding for answer in answers if answer.embedding is not None]


def _judge_int8(job: Job, task: Task, storage: Path, result: Result) -> Int8 | None:
    """Judge the int8 graph on the rows that the run was judged on, which is a scoring, and compare the two."""
    variant = task.int8(job.folder / "bundle")
    if variant is None:
        return None
    judged = read_predictions(job.folder)
    tables = []
    for name in judged["split"].unique().to_pylist():
        predictor = Predictor(variant, job.stream(), job.split.rows(name), once=True)
        tables.append(predictions_table(job.manifest, task.classes, name, predictor.predict()))
    table = task.score(task.config, pa.concat_tables(tables), judged)
    tests = [name for name in sets_of(table) if name.startswith("test")]
    if tests:
        scoring = scoring_of(task.config, result.tried, graph="int8")
        write_result(job.folder, replace(result, scorings=add_scoring(job.folder, scoring)))
    sets, _ = measure(table, type(task), task.config, storage, None)
    comparisons = compare({"int8": table, "fp32": judged}) if tests else []
    return Int8(metrics=sets, comparisons=comparisons)
