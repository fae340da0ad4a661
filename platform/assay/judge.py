"""Judging: the numbers of a run, all computed from its predictions table and nothing else."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import assay
from assay import evaluate
from assay.errors import RunError
from assay.evaluate import Estimate
from assay.loop import write_json
from assay.task import Task, TaskConfig

RULE = "training-domain validation"


def judge(folder: Path, task: type[Task], config: TaskConfig, storage: Path) -> dict[str, Any]:
    """Score every predicted set of a run and record it in result.json.

    The temperature is fitted on val alone. Each scoring of test is recorded with its time; more
    than one for a run says so.
    """
    predictions = read_predictions(folder)
    path = folder / "result.json"
    scorings = json.loads(path.read_text())["scorings"] if path.exists() else []
    extra = task.judge(config, predictions, storage)
    sets = {}
    for name in predictions["split"].unique().to_pylist():
        own = {key: _plain(value) for key, value in extra.get(name, {}).items()}
        sets[name] = evaluate.summarise(predictions, name).to_dict() | own
    val = rows_of(predictions, "val")
    logits = np.array(val["logits"].to_pylist(), dtype=np.float64)
    result = {
        "rule": RULE,
        "seed": config.train.seed,
        "temperature": evaluate.fit_temperature(logits, val["truth"].to_numpy()),
        "sets": sets,
        "scorings": [*scorings, {"time": time.time(), "assay": assay.__version__}],
    }
    write_json(path, result)
    return result


def read_predictions(folder: Path) -> pa.Table:
    """A run's predictions table.

    Raises:
        RunError: the run has none yet.
    """
    path = folder / "predictions.parquet"
    if not path.exists():
        raise RunError(f"{folder} has no predictions yet; run it to the end first.")
    return pq.read_table(path)


def rows_of(predictions: pa.Table, name: str) -> pa.Table:
    """The rows of one set."""
    return predictions.filter(pc.equal(predictions["split"], name))


def _plain(estimate: Estimate) -> dict[str, float | int]:
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "num": estimate.num,
        "num_groups": estimate.num_groups,
    }


def show(folders: Mapping[str, Path]) -> None:
    """Print the numbers of a run, its baselines, and the differences between them."""
    results = {
        name: json.loads((folder / "result.json").read_text()) for name, folder in folders.items()
    }
    method = next(iter(folders))
    tests = [name for name in results[method]["sets"] if name.startswith("test")]
    print(f"\nAccuracy with 95 % intervals over groups; {RULE}; seed {results[method]['seed']}")
    for test in tests:
        sets = {name: result["sets"][test] for name, result in results.items()}
        first = sets[method]["accuracy"]
        print(f"\n{test}: {first['num']} images of {first['num_groups']} groups")
        for name, numbers in sets.items():
            print(f"  {name:12s} per image {_bracket(numbers['accuracy'])}", end="")
            for key, label in (("group_accuracy", "group, mean logit"), ("vote_accuracy", "vote")):
                print(f"   {label} {_bracket(numbers[key])}" if numbers[key] else "", end="")
            print()
            for key in sorted(numbers.keys() - _standard()):
                print(f"  {'':12s} {key.replace('_', ' ')} {_bracket(numbers[key])}")
        for name in list(folders)[1:]:
            a, b = (rows_of(read_predictions(folders[n]), test) for n in (method, name))
            gain = evaluate.difference(a, b)
            verdict = "" if gain.low > 0 or gain.high < 0 else "   (not significantly different)"
            print(
                f"  {method} - {name}: {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]{verdict}"
            )
    print()
    for name, folder in folders.items():
        print(f"{name}: {folder}")


def _standard() -> set[str]:
    return set(evaluate.Summary.__dataclass_fields__)


def _bracket(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
