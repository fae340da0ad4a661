"""From settings to a judged run: the images once for all runs, then each run in its directory.

A run may end early and go on later: `complete` brings it to where it is judged on val ("val", a
trial of a search), on test too ("test", a trial of a grid of folds), or shipped ("bundle").
"""

import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from assay.bundle.bundle import Bundle
from assay.config import to_dict
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.images.white import choose as choose_white
from assay.data.manifest import Manifest
from assay.data.masks import account
from assay.data.near.copies import Leak, NearDuplicate, NearPair, leaks, near_duplicates
from assay.data.split import Split, draw_split
from assay.errors import AssayError, RunError
from assay.experiment.copies import copies_among
from assay.experiment.export import ship
from assay.experiment.fill import UnreadableImage, fill
from assay.experiment.identity import code_of, content, recipe, stamp
from assay.experiment.judge import judge
from assay.experiment.resources import Resources, make_room_for_data, pick_device
from assay.experiment.workers import train
from assay.files import write_whole
from assay.report import samples
from assay.runs.folder import Run
from assay.runs.record import Launch, Quarantined, Stage
from assay.runs.remote import address_of, pull, push
from assay.runs.results import (
    Result,
    read_predictions,
    read_result,
    read_split,
    write_config,
    write_split,
)
from assay.runs.watch import watch
from assay.storage import join
from assay.train.checkpoint import Keep
from assay.train.loop import TrainState
from assay.train.source import TaskSource, load_task
from assay.train.task_config import TaskConfig
from assay.train.worker import Job

Heartbeat = Callable[[TrainState], None]


@dataclass(frozen=True)
class StoredImages:
    """What all runs on the same images share."""

    source: TaskSource
    manifest: Manifest
    """Without what could not be read."""
    pixels: Pixels
    pairs: list[NearPair]
    """Images that are copies of one another."""
    quarantined: list[UnreadableImage]
    storage: Path


def read_data(
    source: TaskSource, manifest: Manifest, config: TaskConfig, resources: Resources, storage: Path
) -> StoredImages:
    """Decode what the store lacks, and leave out what cannot be read; what else is needed is fetched first."""
    load_task(source).fetch(config)
    store = _store_of(resources, storage)
    if resources.workers:
        make_room_for_data(resources)
    bad = fill(manifest, store, config.data.on_error, parallel=resources.workers > 0)
    readable = _without(manifest, bad)
    pixels = Pixels(store, readable.column("content"), readable.masks)
    survey = pixels.survey()
    white, news = choose_white(survey.ranges, config.data.white)
    if news:
        print(news, file=sys.stderr)
    pixels = replace(pixels, white=white, _open=OrderedDict())
    looks = config.split.near_duplicates != "off"
    pairs = copies_among(pixels, survey.signatures, storage) if looks else []
    return StoredImages(source, readable, pixels, pairs, bad, storage)


def _store_of(resources: Resources, storage: Path) -> Store:
    address, remote = resources.store or str(storage / "store"), address_of(storage)
    if not resources.store and remote and os.environ.get("RAY_ADDRESS"):
        address = join(remote, "store")  # whose nodes share no disk
    return Store(address if "://" in address else str(Path(address).absolute()), resources.cache)


@dataclass(frozen=True)
class RunPlan:
    """What a run starts from."""

    name: str
    config: TaskConfig
    data: StoredImages
    split: Split
    near: list[NearDuplicate]
    """Of train, in the sets as they are published, or else as they are drawn."""
    leaks: dict[str, Leak] | None
    """The same, counted by set; None where they are not looked for."""


def prepare(data: StoredImages, config: TaskConfig, name: str) -> RunPlan:
    """Draw a run's split and look for near-duplicates across it, and across the published one."""
    manifest, contents = data.manifest, data.manifest.column("content")
    split = draw_split(manifest, config.split, data.pairs)
    if config.split.near_duplicates == "off":
        return RunPlan(name, config, data, split, [], None)
    labels, published = manifest.column("label"), manifest.declared_sets
    # what training sees without labels is seen all the same
    sets = ["train" if name == "unlabelled" else name for name in split.sets]
    near = near_duplicates(data.pairs, contents, sets)
    drawn = leaks(near, sets, labels)
    split.report.update({f"near_duplicates_{name}": leak.near for name, leak in drawn.items()})
    if any(name and name.startswith("test") for name in published):
        sets = [before or now for before, now in zip(published, sets, strict=True)]
        near = near_duplicates(data.pairs, contents, sets)
    return RunPlan(name, config, data, split, near, leaks(near, sets, labels))


def is_whole(run: Run) -> bool:
    """Whether a run is finished and shipped, and its bundle still there."""
    is_shipped = run.state == "finished" and run.record.stage == "bundle"
    return is_shipped and (run.folder / "bundle" / "bundle.json").is_file()


def complete(
    prepared: RunPlan,
    run: Run,
    resources: Resources,
    stage: Stage = "bundle",
    heartbeat: Heartbeat | None = None,
    callbacks: Sequence[Any] = (),
    tried: int | None = None,
    sweep: str = "",
    trials: int = 1,
) -> None:
    """Train and judge one run, and ship it, as far as `stage`; its state says how far it came.

    Args:
        prepared: what it starts from.
        run: its directory, leased.
        resources: its workers.
        stage: where to stop.
        heartbeat: called after each look at val, in the place of a bar on the terminal.
        callbacks: of Ray Train, where there are several workers.
        tried: configurations among which val chose this one.
        sweep: name of the sweep it is a trial of.
        trials: of that at once.
    """
    data, config = prepared.data, prepared.config
    pull(run.folder)
    is_judged = run.state == "finished" and run.record.stage != "val"
    if is_judged:
        _refuse_lost(run, stage)
    _refuse_other_split(prepared, run)
    judged = () if stage == "val" else tuple(prepared.split.tests)
    job = _begin(prepared, run, resources, judged, sweep)
    began, spent = time.monotonic(), run.record.seconds or 0.0
    label = f"{data.source.name} {run.folder.name[-12:]}"
    with _early_end_noted(run):
        with watch(run.folder, label) if heartbeat is None else nullcontext():
            if not is_judged:
                train(job, resources, heartbeat, callbacks, trials)
        if is_judged:
            result = read_result(run.folder)
        else:
            task = load_task(data.source)
            result = judge(run.folder, task, config, data.storage, tried)
        if stage == "bundle":
            ship(job, result, data.storage)
            _illustrate(prepared, run, result)
    run.note(state="finished", reason="", stage=stage, seconds=spent + time.monotonic() - began)


@contextmanager
def _early_end_noted(run: Run) -> Iterator[None]:
    """Note in a run's record that it was stopped, or why it failed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ray Tune ends a trial by the latter
        run.note(state="stopped")
        raise
    except AssayError as error:
        with suppress(OSError):  # of a full disk the error itself is what counts
            run.note(state="failed", reason=str(error))
        raise


def _begin(
    prepared: RunPlan, run: Run, resources: Resources, judged: tuple[str, ...], sweep: str
) -> Job:
    """Write down what is about to run, and return it as a job for the workers."""
    data, device = prepared.data, pick_device(resources)
    launch = Launch(
        time=time.time(),
        workers=resources.workers,
        strategy=resources.strategy,
        device=device,
        sweep=sweep,
        stamp=stamp(),
    )
    run.note(
        state="running",
        task=data.source.name,
        name=prepared.name,
        launches=(*run.record.launches, launch),
        split=prepared.split.report,
        leaks=prepared.leaks,
        quarantined=tuple(Quarantined(row=q.row, reason=q.reason) for q in data.quarantined),
        white=data.pixels.white.value if data.pixels.white else None,
        masks=account.of_table(data.manifest.table) or None,
        data=data.manifest.fingerprint,
        recipe=recipe(data.source, prepared.config, data.manifest),
        content=content(prepared.config, data.manifest),
        code=code_of(data.source),
    )
    _write_inputs(prepared, run.folder)
    push(run.folder)
    return Job(
        data.source,
        to_dict(prepared.config),
        prepared.split.regroup(data.manifest),
        prepared.split,
        data.pixels,
        run.folder.absolute(),
        device,
        resources.strategy,
        resources.track,
        judged,
        resources.checkpoint_steps,
        accumulate=resources.accumulate,
        keep=Keep(resources.keep_last, resources.keep_every),
        recompute=resources.recompute,
        compile=resources.compile,
    )


def _write_inputs(prepared: RunPlan, folder: Path) -> None:
    """Write the settings, the task and the split into the run's directory."""
    data = prepared.data
    write_config(folder, to_dict(prepared.config))
    write_whole(folder / "task.py", data.source.code)
    copies = {each.row for each in prepared.near}
    has_copy = pa.array([row in copies for row in range(len(data.manifest))])
    table = prepared.split.table(data.manifest).append_column("near_copy", has_copy)
    write_split(folder, table)


def _refuse_lost(run: Run, stage: Stage) -> None:
    """Refuse to go on with a judged run of which somebody deleted what its bundle is made from."""
    needed = ("best/weights.safetensors", "predictions.parquet", "result.json")
    lost = [name for name in needed if not (run.folder / name).is_file()]
    if lost and stage == "bundle":
        raise RunError(
            f"{run.folder} is finished, but has no bundle, and none can be made without {lost[0]}, which is gone too; restore it, or train again with --again."
        )


def _refuse_other_split(prepared: RunPlan, run: Run) -> None:
    """Refuse a launch that finds other sets than the one before: it would test on what was trained on."""
    is_begun = (run.folder / "split.parquet").exists() and (run.folder / "checkpoints").exists()
    if not is_begun:
        return
    before = read_split(run.folder).select(["id", "split"]).to_pylist()
    now = prepared.split.table(prepared.data.manifest).select(["id", "split"]).to_pylist()
    if before != now:
        changed = len(
            {(r["id"], r["split"]) for r in before} ^ {(r["id"], r["split"]) for r in now}
        )
        raise RunError(
            f"{run.folder.name} was begun on another split ({changed} entries differ, since other images can be read now); "
            "restore the images, or train again with --again."
        )


def _illustrate(prepared: RunPlan, run: Run, result: Result) -> None:
    """Keep what the report shows of the images, while their pixels are at hand."""
    data = prepared.data
    task, bundle = load_task(data.source), Bundle(run.folder / "bundle", verify=False)
    images = data.manifest.column("image")

    def picture(row: int) -> Any:
        def answer() -> Any:
            return bundle.predict(Path(images[row]))

        return task.draw(prepared.config, data.pixels, row, answer)

    samples.collect(
        run.folder,
        read_predictions(run.folder),
        prepared.split.regroup(data.manifest),
        data.pixels,
        result.decision,
        prepared.near,
        picture,
    )


def _without(manifest: Manifest, bad: Sequence[UnreadableImage]) -> Manifest:
    if not bad:
        return manifest
    rows = {q.row for q in bad}
    print(
        f"{len(rows)} of {len(manifest)} images are quarantined, first: {bad[0].reason}",
        file=sys.stderr,
    )
    readable = manifest.take([i for i in range(len(manifest)) if i not in rows])
    lost = set(manifest.classes) - set(readable.classes)
    if lost:
        raise RunError(
            f"No readable image is left of the class {min(lost)!r}; mend its files or leave the class out."
        )
    return readable
