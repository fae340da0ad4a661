"""What a run left to read: predictions, result, comparison, metrics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assay.errors import RunError
from assay.files import read_json, write_json, write_parquet
from assay.metrics.comparison import Comparison
from assay.metrics.decide import Decision
from assay.metrics.estimate import Estimate
from assay.metrics.figure import Figure
from assay.metrics.measures import Measure
from assay.metrics.summary import Summary
from assay.runs.record import RunRecord, Scoring, as_record, read_record, schema_of, write_record
from assay.typed import to_json

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Scorings:
    """What every later judging keeps; run.json has the scorings too, so that no one file resets them."""

    scorings: tuple[Scoring, ...] = ()
    """The oldest first."""
    tried: int = 1
    """Configurations among which val chose this one."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Contents of result.json."""

    schema: int = SCHEMA
    rule: str
    """What val was drawn by."""
    oracle: bool
    """Whether val is of the test domain, so that the numbers are upper bounds."""
    seed: int
    classes: list[str] = field(default_factory=list)
    """Empty where rows bear scores and no classes."""
    decision: Decision | None = None
    """What val was fitted to; None without classes."""
    thresholds: list[int] | None = None
    """Of masks, one per class."""
    sets: Mapping[str, Summary]
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """How the measures of the sets are shown; an older Assay did not say."""
    figures: list[Figure] = field(default_factory=list)
    """The task's own."""
    tried: int
    """Configurations among which val chose this one."""
    scorings: tuple[Scoring, ...]
    """Looks at the test sets, the oldest first."""

    @property
    def num_int8(self) -> int:
        """How many of the looks at the test sets were by the int8 graph."""
        return sum(scoring.graph == "int8" for scoring in self.scorings)

    @property
    def num_scored(self) -> int:
        """How many were by the run's own weights."""
        return len(self.scorings) - self.num_int8

    @property
    def tests(self) -> list[str]:
        """Names of the test sets."""
        return [name for name in self.sets if name.startswith("test")]

    def measure(self, key: str) -> Measure:
        """Say how a measure is shown."""
        return self.measures.get(key) or Measure.named(key)


@dataclass(frozen=True, kw_only=True)
class ComparedSet:
    """The numbers of one set of a run that was compared."""

    metrics: Mapping[str, Estimate | None]


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run that was compared."""

    folder: str
    """Its name."""
    seed: int
    sets: Mapping[str, ComparedSet]


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Contents of comparison.json: a run against each of its baselines."""

    method: str
    """Name of the run in question."""
    comparisons: list[Comparison]
    runs: Mapping[str, ComparedRun]
    """By name, the run in question among them."""


def read_predictions(folder: Path) -> pa.Table:
    """Read a run's predictions table.

    Raises:
        RunError: the run has none yet.
    """
    path = folder / "predictions.parquet"
    if not path.exists():
        raise RunError(f"{folder} has no predictions yet; run it to the end first.")
    return pq.read_table(path)


def write_predictions(folder: Path, predictions: pa.Table) -> None:
    """Put a predictions table in the place of a run's own, whole or not at all."""
    write_parquet(folder / "predictions.parquet", predictions)


def read_result(folder: Path) -> Result:
    """Read a run's result.json.

    Raises:
        RunError: it is missing, damaged, or of an older Assay.
    """
    values = _result_values(folder)
    if schema_of(values) < SCHEMA:
        raise RunError(
            f"{folder.name} was judged by an older Assay; judge it again by assay judge {folder}."
        )
    return as_record(Result, values, folder / "result.json")


def read_scorings(folder: Path) -> Scorings:
    """Read what earlier judgings left, of whatever schema; nothing where there was none.

    Raises:
        RunError: result.json or run.json is damaged.
    """
    path = folder / "result.json"
    earlier = as_record(Scorings, _result_values(folder), path) if path.exists() else Scorings()
    noted = read_record(folder).scorings if (folder / "run.json").exists() else ()
    merged = {(scoring.time, scoring.graph): scoring for scoring in (*noted, *earlier.scorings)}
    scorings = tuple(merged[key] for key in sorted(merged))
    tried = earlier.tried if path.exists() else max((s.tried for s in scorings), default=1)
    return Scorings(scorings=scorings, tried=tried)


def add_scoring(folder: Path, scoring: Scoring) -> tuple[Scoring, ...]:
    """Note a look at the test sets in run.json, before its numbers are seen; returns all of them."""
    scorings = (*read_scorings(folder).scorings, scoring)
    record = read_record(folder) if (folder / "run.json").exists() else RunRecord()
    write_record(folder, replace(record, scorings=scorings))
    return scorings


def _result_values(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "result.json")
    except RunError:
        raise RunError(
            f"{folder}/result.json is damaged, and with it the record of test scorings; restore it, or train again with --again."
        ) from None


def write_result(folder: Path, result: Result) -> None:
    """Write a run's result.json."""
    write_json(folder / "result.json", to_json(result))


def read_comparisons(folder: Path) -> Comparisons | None:
    """Read a run's comparison.json; None where it was compared with no other.

    Raises:
        RunError: it is damaged.
    """
    path = folder / "comparison.json"
    return as_record(Comparisons, read_json(path), path) if path.exists() else None


NAMED = ("kind", "step", "epoch", "time", "val_s")
"""Fields of a val line that are no measure."""


Line = Mapping[str, Any]


def read_metrics(path: Path) -> dict[str, list[Line]]:
    """Read the lines of metrics.jsonl by kind, in order; a resumed run's repeated lines count once."""
    lines: dict[tuple[str, int], Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        line = json.loads(text)
        lines[line["kind"], line["step"]] = line
    kinds: dict[str, list[Line]] = {"step": [], "val": [], "epoch": []}
    for (kind, _), line in sorted(lines.items()):
        kinds.setdefault(kind, []).append(line)
    return kinds
