"""Judging: the numbers of a run, all computed from its predictions table and nothing else.

What is fitted (temperature, threshold, conformal sets) is fitted on val. Each scoring of the test
sets is recorded in run.json and in result.json, with its time, rule and code; one that is not the
first says so.
"""

import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

import assay
from assay.bundle import seal
from assay.bundle.card import read_card
from assay.config import fingerprint, to_dict
from assay.data.split_config import RULES
from assay.errors import PredictionsError
from assay.files import write_json
from assay.metrics import evaluate
from assay.metrics.checks import check, refuse_other_truths, refuse_strangers
from assay.metrics.compare import compare
from assay.metrics.decide import Decision, measure_decision
from assay.metrics.estimate import interval
from assay.metrics.measures import STANDARD, Measure
from assay.metrics.predictions import (
    class_names,
    is_classification,
    logits_of,
    rows_of,
    scores_of,
    sets_of,
)
from assay.metrics.summary import Summary
from assay.runs.folder import Run
from assay.runs.record import Scoring
from assay.runs.results import (
    ComparedRun,
    ComparedSet,
    Comparisons,
    Result,
    add_scoring,
    read_predictions,
    read_result,
    read_scorings,
    read_split,
    refuse_other,
    write_predictions,
    write_result,
)
from assay.train.task import Task, TaskMetrics
from assay.train.task_config import TaskConfig
from assay.typed import to_json


def judge(
    folder: Path, task: type[Task], config: TaskConfig, storage: Path, tried: int | None = None
) -> Result:
    """Score every predicted set of a run; writes result.json and returns what it holds.

    Args:
        folder: the run's directory.
        task: its task, whose own metrics and figures are added.
        config: its settings; `config.decide` says how answers are made.
        storage: the folder of the runs.
        tried: configurations among which val chose this one (a sweep's trials); None: as many as
            when it was judged before, or 1.

    Raises:
        RunError: the run has no predictions yet, or a file of its folder is another run's.
        PredictionsError: the table cannot be judged, or its rows are not those of the split.
    """
    predictions, earlier = read_predictions(folder), read_scorings(folder)
    has_bundle = (folder / "bundle" / "bundle.json").exists()
    if has_bundle:
        # one that cannot be brought up to date, or is another run's, is refused before test is scored
        refuse_other(folder, "bundle", read_card(folder / "bundle").mark)
    tried = tried or earlier.tried
    predictions = _score(folder, task, config, predictions)
    decision = _decide(predictions, config)
    sets, findings = measure(predictions, task, config, storage, decision)
    sets = {name: _tell_copies_apart(folder, predictions, name, sets[name]) for name in sets}
    scorings = earlier.scorings
    if any(name.startswith("test") for name in sets):  # a trial is judged on val alone
        scorings = add_scoring(folder, scoring_of(config, tried))
    result = Result(
        rule=RULES[config.split.rule],
        oracle=config.split.rule == "oracle",
        transductive=config.split.unlabelled == "train",
        seed=config.train.seed,
        classes=class_names(predictions) if decision else [],
        decision=decision,
        thresholds=thresholds_of(predictions),
        alarms=list(findings.alarms),
        sets=sets,
        measures=_measures(sets, findings),
        figures=list(findings.figures),
        tried=tried,
        scorings=scorings,
    )
    write_result(folder, result)
    for text in findings.warnings:
        print(f"Warning: {text}", file=sys.stderr)
        Run(folder).warn(text)
    if has_bundle:
        answering = {"thresholds": result.thresholds, "alarms": result.alarms}
        seal.update(folder / "bundle", decision=decision, **answering, metrics=sets)
    return result


def _score(folder: Path, task: type[Task], config: TaskConfig, predictions: pa.Table) -> pa.Table:
    """Have the task score a table of the split's rows, and keep the scores beside them."""
    split = read_split(folder, ("id", "group", "split", "content"))
    refuse_strangers(predictions, split)
    scored = task.score(config, predictions)
    if scored is not predictions:
        write_predictions(folder, scored)  # what compares runs reads the scores there
    check(scored)
    refuse_other_truths(scored, split)
    return scored


def _measures(sets: Mapping[str, Summary], findings: TaskMetrics) -> dict[str, Measure]:
    """Describe each measure that some set has, in the order of the first that has it."""
    described = {**STANDARD, **findings.measures}
    keys = dict.fromkeys(key for summary in sets.values() for key in summary.metrics)
    return {key: described.get(key) or Measure.named(key) for key in keys}


def measure(
    predictions: pa.Table,
    task: type[Task],
    config: TaskConfig,
    storage: Path,
    decision: Decision | None,
) -> tuple[dict[str, Summary], TaskMetrics]:
    """Measure every set of a table that can be judged, and what the task judges besides."""
    findings = task.judge(config, predictions, storage)
    sets = {}
    for name in predictions["split"].unique().to_pylist():
        temperature = decision.temperature if decision else 1.0
        summary = evaluate.summarise(predictions, name, temperature)
        metrics = {**summary.metrics, **findings.metrics.get(name, {})}
        if decision:
            rows = rows_of(predictions, name)
            truth, group = rows["truth"].to_numpy(), rows["group"].to_numpy()
            metrics |= measure_decision(decision, logits_of(rows), truth, group)
        sets[name] = replace(summary, metrics=metrics)
    return sets, findings


def _tell_copies_apart(folder: Path, predictions: pa.Table, name: str, summary: Summary) -> Summary:
    """Add the main score of a test set's rows with a near-copy in train, and of those without, if it has both."""
    split = read_split(folder)
    if not name.startswith("test") or "near_copy" not in split.column_names:
        return summary
    copies = set(split.filter(split["near_copy"])["id"].to_pylist())
    rows = rows_of(predictions, name)
    has_copy = np.array([row in copies for row in rows["id"].to_pylist()])
    _, scores, weights = scores_of(rows)
    groups, apart = rows["group"].to_numpy(), {}
    for key, part in (("on_copies", has_copy), ("on_others", ~has_copy)):
        if not weights[part].any():
            return summary
        apart[key] = interval(scores[part], groups[part], weights=weights[part])
    return replace(summary, metrics={**summary.metrics, **apart})


def thresholds_of(predictions: pa.Table) -> list[int] | None:
    """Return the thresholds that a table of masks was scored at."""
    note = (predictions.schema.metadata or {}).get(b"thresholds")
    return None if note is None else list(json.loads(note))


def _decide(predictions: pa.Table, config: TaskConfig) -> Decision | None:
    """Fit on val how answers are made; None where rows bear scores and no classes."""
    if not is_classification(predictions):
        return None
    val = rows_of(predictions, "val")
    if not val.num_rows:
        raise PredictionsError(
            "No row of val is predicted, by which answers are decided; predict it again."
        )
    truth, group = val["truth"].to_numpy(), val["group"].to_numpy()
    return Decision.fit(logits_of(val), truth, group, class_names(predictions), config.decide)


def scoring_of(config: TaskConfig, tried: int, graph: str = "") -> Scoring:
    """Describe a look at the test sets that is taken now."""
    package = Path(assay.__file__).parent
    sources = {
        path.relative_to(package).as_posix(): path.read_text()
        for path in sorted(package.rglob("*.py"))
    }
    return Scoring(
        time=time.time(),
        rule=RULES[config.split.rule],
        assay=assay.__version__,
        code=fingerprint(sources),
        host=platform.node(),
        tried=tried,
        decide=to_dict(config.decide),
        graph=graph,
    )


def is_decided(folder: Path, config: TaskConfig) -> bool:
    """Tell whether a run was last judged with these settings of `decide`."""
    scorings = read_scorings(folder).scorings if (folder / "result.json").exists() else ()
    return bool(scorings) and scorings[-1].decide == to_dict(config.decide)


def write_comparison(folders: Mapping[str, Path]) -> None:
    """Write comparison.json into the first run: itself against each other on the same test rows.

    One whose sets were drawn otherwise (as copies were kept apart, or not) stands beside it uncompared, and so do all
    where no image is in test.
    """
    method = next(iter(folders))
    tables = {name: read_predictions(folder) for name, folder in folders.items()}
    tests = _test_ids(tables[method])
    others = [name for name in tables if _test_ids(tables[name]) != tests]
    for name in others:
        del tables[name]
        print(
            f"{name} was judged on other test images than {method}, so that the two are not compared.",
            file=sys.stderr,
        )
    compared = Comparisons(
        method=method,
        comparisons=compare(tables) if len(tables) > 1 and tests else [],
        runs={name: _compared_run(folder) for name, folder in folders.items()},
    )
    write_json(folders[method] / "comparison.json", to_json(compared))


def _test_ids(table: pa.Table) -> dict[str, set[str]]:
    """Return the ids of each test set."""
    tests = [name for name in sets_of(table) if name.startswith("test")]
    return {name: set(rows_of(table, name)["id"].to_pylist()) for name in tests}


def _compared_run(folder: Path) -> ComparedRun:
    result = read_result(folder)
    sets = {name: ComparedSet(metrics=summary.metrics) for name, summary in result.sets.items()}
    return ComparedRun(folder=folder.name, seed=result.seed, sets=sets)
