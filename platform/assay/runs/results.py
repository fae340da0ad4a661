"""What a run left to read: predictions, result, comparison, metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from assay.config import fingerprint
from assay.errors import RunError
from assay.files import RESTORE, read_json, read_parquet, reading, write_json, write_parquet
from assay.metrics.alarm import Alarm
from assay.metrics.comparison import Comparison
from assay.metrics.decide import Decision
from assay.metrics.estimate import Estimate
from assay.metrics.figure import Figure
from assay.metrics.measures import Measure
from assay.metrics.summary import Summary
from assay.runs.record import Scoring, as_record, record_of, schema_of, write_record
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
    mark: str = ""
    """Of its run.json; an older Assay did not note it."""
    rule: str
    """What val was drawn by."""
    oracle: bool
    """Whether val is of the test domain, so that the numbers are upper bounds."""
    transductive: bool = False
    """Whether training saw images of the test domain, without their labels and not those that are scored."""
    seed: int
    classes: list[str] = field(default_factory=list)
    """Empty where rows bear scores and no classes."""
    decision: Decision | None = None
    """What val was fitted to; None without classes."""
    thresholds: list[int] | None = None
    """Of masks, one per class."""
    alarms: list[Alarm] = field(default_factory=list)
    """Of the frames of a print, fitted on val."""
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
    def marks(self) -> dict[str, str]:
        """Say by words in capitals, that stand wherever its numbers do, what was known of the test domain."""
        marks = {}
        if self.oracle:
            marks["ORACLE"] = "val is of the test domain, an upper bound"
        if self.transductive:
            marks["TRANSDUCTIVE"] = (
                "other images of the test domain were seen in training, without labels"
            )
        return marks

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


_TRUE_MASKS = ("mask_content.truth", "mask_content.label")
"""Columns of a split that hold what masks are scored by, the first of which counts."""


def mark_of(folder: Path) -> str:
    """Return the mark of the run that a folder's run.json is of; "" where there is none.

    Raises:
        RunError: run.json is damaged.
    """
    return record_of(folder).mark


def refuse_other(folder: Path, name: str, mark: str) -> None:
    """Refuse a file of a run's folder that is of another run.

    Args:
        folder: the run's.
        name: of the file in it.
        mark: that it bears; "": an older Assay gave it none.

    Raises:
        RunError: run.json bears another.
    """
    own = mark_of(folder) if mark else ""
    if own and mark != own:
        raise RunError(
            f"{folder / name} is of another run than run.json beside it; {RESTORE}, so that both are of one run."
        )


def read_predictions(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a run's predictions table: id, split and group, and those of the columns that it has (None: all).

    Raises:
        RunError: the run has none yet, or it is damaged or another run's.
    """
    path = folder / "predictions.parquet"
    if not path.exists():
        raise RunError(f"{folder} has no predictions yet; run it to the end first.")
    return _of_this_run(folder, path.name, read_parquet(path, ("id", "split", "group"), columns))


def read_split(folder: Path, needed: Sequence[str] = ("id", "group", "split")) -> pa.Table:
    """Read the manifest of a run with the sets that were drawn, of which some columns are needed.

    Raises:
        RunError: it is missing or damaged, or another run's.
    """
    name = "split.parquet"
    return _of_this_run(folder, name, read_parquet(folder / name, needed))


def read_contents(folder: Path, by_masks: bool) -> dict[str, str]:
    """Read what each row's files hold, by its id: of the image, and where rows are scored by masks of the true one.

    Raises:
        RunError: the split is missing or damaged, or another run's.
    """
    split = read_split(folder, ("id", "content"))
    masks = [name for name in _TRUE_MASKS if by_masks and name in split.column_names]
    columns = [split[name].to_pylist() for name in ("content", *masks[:1])]
    contents = map(" ".join, zip(*columns, strict=True))
    return dict(zip(split["id"].to_pylist(), contents, strict=True))


def _of_this_run(folder: Path, name: str, table: pa.Table) -> pa.Table:
    refuse_other(folder, name, (table.schema.metadata or {}).get(b"mark", b"").decode("latin-1"))
    return table


def _marked(folder: Path, table: pa.Table) -> pa.Table:
    metadata = table.schema.metadata or {}
    return table.replace_schema_metadata({**metadata, b"mark": mark_of(folder).encode()})


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's config.json, of which no task lacks the settings of data, split and training.

    Raises:
        RunError: it is missing or damaged, or another run's.
    """
    path = folder / "config.json"
    config = read_json(path)
    missing = [
        name for name in ("data", "split", "train") if not isinstance(config.get(name), dict)
    ]
    if missing:
        raise RunError(f"{path} has no settings of {missing[0]!r}; {RESTORE}.")
    noted = record_of(folder).settings
    if noted and noted != _digest_settings(config):
        raise RunError(f"{path} has other settings than the run was trained by; {RESTORE}.")
    return config


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a run's config.json, and note in run.json what it holds."""
    write_json(folder / "config.json", config)
    write_record(folder, replace(record_of(folder), settings=_digest_settings(config)))


def _digest_settings(config: Mapping[str, Any]) -> str:
    """Digest settings but for how the run is judged, and where its images lie."""
    data = {name: value for name, value in config["data"].items() if name != "root"}
    rest = {name: value for name, value in config.items() if name != "decide"}
    return fingerprint(rest | {"data": data})


def write_predictions(folder: Path, predictions: pa.Table) -> None:
    """Put a predictions table in the place of a run's own, whole or not at all."""
    write_parquet(folder / "predictions.parquet", _marked(folder, predictions))


def write_split(folder: Path, split: pa.Table) -> None:
    """Write the manifest of a run with the sets that were drawn."""
    write_parquet(folder / "split.parquet", _marked(folder, split))


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
    return as_result(values, folder / "result.json")


def as_result(values: Any, path: Path) -> Result:
    """Turn what a result.json holds into a result, whose every set has a score.

    Raises:
        RunError: a field is missing or of another type, a set has no score, or it is another run's; names the file.
    """
    result = as_record(Result, values, path)
    refuse_other(path.parent, path.name, result.mark)
    with reading(path, remedy="judge the run again"):
        _ = [summary.main for summary in result.sets.values()]
        if not result.sets:
            raise ValueError("it has no set")
    return result


def read_scorings(folder: Path) -> Scorings:
    """Read what earlier judgings left, of whatever schema; nothing where there was none.

    Raises:
        RunError: result.json or run.json is damaged.
    """
    path = folder / "result.json"
    earlier = as_record(Scorings, _result_values(folder), path) if path.exists() else Scorings()
    noted = record_of(folder).scorings
    # of two lists that grow at their ends the longer has the order, which clocks that differ or are set do not tell
    longer, shorter = sorted((noted, earlier.scorings), key=len, reverse=True)
    scorings = tuple({(each.time, each.graph): each for each in (*longer, *shorter)}.values())
    tried = earlier.tried if path.exists() else max((s.tried for s in scorings), default=1)
    return Scorings(scorings=scorings, tried=tried)


def add_scoring(folder: Path, scoring: Scoring) -> tuple[Scoring, ...]:
    """Note a look at the test sets in run.json, before its numbers are seen; returns all of them."""
    scorings = (*read_scorings(folder).scorings, scoring)
    write_record(folder, replace(record_of(folder), scorings=scorings))
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
    write_json(folder / "result.json", to_json(replace(result, mark=mark_of(folder))))


def read_comparisons(folder: Path) -> Comparisons | None:
    """Read a run's comparison.json; None where it was compared with no other.

    Raises:
        RunError: it is damaged.
    """
    path = folder / "comparison.json"
    return as_record(Comparisons, read_json(path), path) if path.exists() else None
