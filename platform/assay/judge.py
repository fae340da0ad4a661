"""Judging: the numbers of a run, all computed from its predictions table and nothing else.

What is fitted (temperature, threshold, conformal sets) is fitted on val. Each scoring of the test
sets is recorded with its time, rule and code; one that is not the first says so.
"""

import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import assay
from assay import bundle, evaluate
from assay.compare import compare
from assay.config import fingerprint, to_dict
from assay.data.split import RULES
from assay.decide import Decision, worth
from assay.errors import RunError
from assay.loop import write_json
from assay.predictions import class_names, is_classification, logits_of, refuse_strangers
from assay.task import Findings, Task, TaskConfig

SCHEMA = 1


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
        bundle.update(folder / "bundle", **answering, metrics=sets)
    return result


def measure(
    predictions: pa.Table,
    task: type[Task],
    config: TaskConfig,
    storage: Path,
    decision: Decision | None,
) -> tuple[dict[str, Any], Findings]:
    """The numbers of every set of a table that can be judged, and what the task found besides."""
    findings = task.judge(config, predictions, storage)
    sets = {}
    for name in predictions["split"].unique().to_pylist():
        temperature = decision.temperature if decision else 1.0
        summary = evaluate.summarise(predictions, name, temperature).to_dict()
        own = dict(findings.metrics.get(name, {}))
        if decision:
            rows = rows_of(predictions, name)
            own |= worth(
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


def read_predictions(folder: Path) -> pa.Table:
    """A run's predictions table.

    Raises:
        RunError: the run has none yet.
    """
    path = folder / "predictions.parquet"
    if not path.exists():
        raise RunError(f"{folder} has no predictions yet; run it to the end first.")
    return pq.read_table(path)


def write_predictions(folder: Path, predictions: pa.Table) -> None:
    """Put a predictions table in the place of a run's own, whole or not at all."""
    hidden = folder / ".predictions.parquet"
    pq.write_table(predictions, hidden)
    hidden.rename(folder / "predictions.parquet")


def rows_of(predictions: pa.Table, name: str) -> pa.Table:
    """The rows of one set."""
    return predictions.filter(pc.equal(predictions["split"], name))


def set_beside(folders: Mapping[str, Path]) -> None:
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


def read_result(folder: Path) -> dict[str, Any]:
    """A run's result.json.

    Raises:
        RunError: it is missing, damaged, or of an older Assay.
    """
    result = _read(folder)
    if result.get("schema", 0) < SCHEMA:
        raise RunError(
            f"{folder.name} was judged by an older Assay; judge it again by assay judge {folder}."
        )
    return result


def _read(folder: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        raise RunError(
            f"{folder}/result.json is damaged, and with it the record of test scorings; restore it, or train again with --again."
        ) from None
    return result


def show(folders: Mapping[str, Path]) -> None:
    """Print the numbers of a run and its baselines, and the differences between them."""
    results = {name: read_result(folder) for name, folder in folders.items()}
    method, first = next(iter(results.items()))
    compared = json.loads((folders[method] / "comparison.json").read_text())["comparisons"]
    oracle = "  ORACLE: val is of the test domain, an upper bound" if first["oracle"] else ""
    print(
        f"\nShares with 95 % intervals over groups; {first['rule']}; seed {first['seed']}{oracle}"
    )
    for test in (name for name in first["sets"] if name.startswith("test")):
        own = first["sets"][test]
        print(f"\n{test}: {own['num']} images of {own['num_groups']} groups")
        for name, result in results.items():
            for key in _shown(result["sets"][test]["metrics"]):
                label = name if key == next(iter(own["metrics"])) else ""
                print(
                    f"  {label:12s} {key.replace('_', ' '):20s} {_bracket(result['sets'][test]['metrics'][key])}"
                )
        for c in (c for c in compared if c["set"] == test):
            d = c["difference"]
            print(
                f"  {method} - {c['name']}: {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}], "
                f"p = {c['p_holm']:.2g}: {c['verdict']}"
            )
    if len(first["scorings"]) > 1:
        print(
            f"\nThis is scoring {len(first['scorings'])} of the test sets of this run.",
            file=sys.stderr,
        )
    print()
    for name, folder in folders.items():
        print(f"{name}: {folder}")


def _shown(metrics: Mapping[str, Any]) -> list[str]:
    """What is printed: the main score, groups, and the task's own; the report has the rest."""
    standard = {"nll", "ece", "macro_f1", "calibrated_nll", "calibrated_ece", "vote_accuracy"}
    return [key for key, value in metrics.items() if value and key not in standard]


def _bracket(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
