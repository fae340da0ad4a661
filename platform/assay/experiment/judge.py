"""Judging: the numbers of a run, all computed from its predictions table and nothing else.

What is fitted (temperature, threshold, conformal sets) is fitted on val. Each scoring of the test
sets is recorded with its time, rule and code; one that is not the first says so.
"""

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import assay
from assay.bundle import seal
from assay.config import fingerprint, to_dict
from assay.data.split import RULES
from assay.files import write_json
from assay.metrics import evaluate
from assay.metrics.compare import compare
from assay.metrics.decide import Decision, measure_decision
from assay.metrics.predictions import class_names, is_classification, logits_of, refuse_strangers
from assay.runs.results import (
    SCHEMA,
    _read,
    read_predictions,
    read_result,
    rows_of,
    write_predictions,
)
from assay.train.task import Task, TaskConfig, TaskMetrics


def judge(
    folder: Path, task: type[Task], config: TaskConfig, storage: Path, tried: int | None = None
) -> dict[str, Any]:
    """Score every predicted set of a run; writes result.json and returns what it holds.

    Args:
        folder: the run's directory.
        task: its task, whose own metrics and figures are added.
        config: its settings; `config.decide` says how answers are made.
        storage: the folder of the runs.
        tried: configurations among which val chose this one (a sweep's trials); None: as many as
            when it was judged before, or 1.

    Raises:
        RunError: the run has no predictions yet.
        PredictionsError: the table cannot be judged, or its rows are not those of the split.
    """
    predictions, earlier = read_predictions(folder), _earlier(folder)
    tried = tried or earlier.get("tried", 1)
    refuse_strangers(predictions, pq.read_table(folder / "split.parquet"))
    predictions = task.score(config, predictions)
    if not is_classification(predictions):
        write_predictions(folder, predictions)  # what compares runs reads the scores there
    decision = _decide(predictions, config)
    sets, findings = measure(predictions, task, config, storage, decision)
    scorings = earlier["scorings"]
    if any(name.startswith("test") for name in sets):  # a trial is judged on val alone
        scorings = [*scorings, _scoring(config, tried)]
    result = {
        "schema": SCHEMA,
        "rule": RULES[config.split.rule],
        "oracle": config.split.rule == "oracle",
        "seed": config.train.seed,
        "classes": class_names(predictions) if decision else [],
        "decision": decision.to_dict() if decision else None,
        "thresholds": thresholds_of(predictions),
        "sets": sets,
        "figures": [figure.to_dict() for figure in findings.figures],
        "tried": tried,
        "scorings": scorings,
    }
    write_json(folder / "result.json", result)
    if (folder / "bundle" / "bundle.json").exists():
        answering = {key: result[key] for key in ("decision", "thresholds")}
        seal.update(folder / "bundle", **answering, metrics=sets)
    return result


def measure(
    predictions: pa.Table,
    task: type[Task],
    config: TaskConfig,
    storage: Path,
    decision: Decision | None,
) -> tuple[dict[str, Any], TaskMetrics]:
    """The numbers of every set of a table that can be judged, and what the task found besides."""
    findings = task.judge(config, predictions, storage)
    sets = {}
    for name in predictions["split"].unique().to_pylist():
        temperature = decision.temperature if decision else 1.0
        summary = evaluate.summarise(predictions, name, temperature).to_dict()
        own = dict(findings.metrics.get(name, {}))
        if decision:
            rows = rows_of(predictions, name)
            own |= measure_decision(
                decision, logits_of(rows), rows["truth"].to_numpy(), rows["group"].to_numpy()
            )
        summary["metrics"] |= {key: asdict(estimate) for key, estimate in own.items()}
        sets[name] = summary
    return sets, findings


def thresholds_of(predictions: pa.Table) -> list[int] | None:
    """The thresholds that a table of masks was scored at."""
    named = (predictions.schema.metadata or {}).get(b"thresholds")
    return None if named is None else list(json.loads(named))


def _decide(predictions: pa.Table, config: TaskConfig) -> Decision | None:
    """What val says of answers; None where rows bear scores and no classes."""
    if not is_classification(predictions):
        return None
    val = rows_of(predictions, "val")
    truth, group = val["truth"].to_numpy(), val["group"].to_numpy()
    return Decision.fit(logits_of(val), truth, group, class_names(predictions), config.decide)


def _scoring(config: TaskConfig, tried: int) -> dict[str, Any]:
    package = Path(assay.__file__).parent
    sources = {
        path.relative_to(package).as_posix(): path.read_text()
        for path in sorted(package.rglob("*.py"))
    }
    return {
        "time": time.time(), "rule": RULES[config.split.rule], "assay": assay.__version__, "code": fingerprint(sources),
        "host": platform.node(), "tried": tried, "decide": to_dict(config.decide),
    }  # fmt: skip


def _earlier(folder: Path) -> dict[str, Any]:
    """What an earlier judging left; its record of scorings is never shortened."""
    found = _read(folder) if (folder / "result.json").exists() else {}
    unknown = {key: "not recorded" for key in ("rule", "code", "host")} | {"tried": 1}
    # an older Assay recorded less
    return found | {"scorings": [unknown | scoring for scoring in found.get("scorings", [])]}


def is_decided(folder: Path, config: TaskConfig) -> bool:
    """Whether a run was last judged with these settings of `decide`."""
    scorings = _earlier(folder)["scorings"]
    return bool(scorings) and scorings[-1].get("decide") == to_dict(config.decide)


def write_comparison(folders: Mapping[str, Path]) -> None:
    """Write comparison.json into the first run: itself against each other on the same test rows."""
    results = {name: read_result(folder) for name, folder in folders.items()}
    tables = {name: read_predictions(folder) for name, folder in folders.items()}
    found = compare(tables) if len(tables) > 1 else []
    value = {
        "method": next(iter(folders)),
        "comparisons": [comparison.to_dict() for comparison in found],
        "runs": {
            name: {
                "folder": folders[name].name,
                "seed": result["seed"],
                "sets": {key: {"metrics": own["metrics"]} for key, own in result["sets"].items()},
            }
            for name, result in results.items()
        },
    }
    write_json(folders[next(iter(folders))] / "comparison.json", value)
