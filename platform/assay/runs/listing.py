"""Run directories as they are found: finished, unfinished, damaged or of another version.

Reads run.json, result.json and predictions.parquet (see `run` and `judge`) and writes nothing.
Runs are ranked only among those whose rows of every set, and whose rule, are the same.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from assay.errors import RunError
from assay.files import read_json, reading, write_rows
from assay.metrics.estimate import Estimate
from assay.metrics.summary import Summary
from assay.runs import record, results
from assay.runs.lease import LEASE, WRITER, is_held
from assay.runs.names import is_copy, is_run_name
from assay.runs.record import RunRecord, schema_of
from assay.runs.results import Result

_NEEDED = {"rule", "oracle", "seed", "sets", "scorings", "tried"}


_JUDGED = ("truth", "logits", "probs", "score", "weight")
"""What runs are compared by, besides id, split and group."""


_ROW = ("split", "id", "group", "truth", "content")
"""What tells a row from another one."""


@dataclass(frozen=True)
class RunSummary:
    """What a run's directory says of itself."""

    folder: Path
    state: str
    """As in run.json; interrupted: running, but no process holds it; damaged: cannot be read."""
    reason: str = ""
    """Why there is no result, in words for the user; empty if there is one."""
    record: RunRecord = field(default_factory=RunRecord)
    """Contents of run.json."""
    result: Result | None = None
    """Contents of result.json; None where it is absent, damaged, or not of this schema."""
    is_stale: bool = False
    """Whether judging again would give a result."""

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.record.task

    @property
    def sets(self) -> Mapping[str, Summary]:
        """What was judged, by set."""
        return self.result.sets if self.result else {}

    @property
    def rule(self) -> str:
        """What val was drawn by, "" where that is unknown; what was known of the test domain stands out."""
        if self.result is None:
            return ""
        return " ".join(self.result.marks) or self.result.rule

    @property
    def why(self) -> str:
        """Why it cannot be used, in words."""
        return self.reason.rstrip(".") or f"it is {self.state}"

    @property
    def began(self) -> str:
        """Local time of the last launch, ISO to the minute."""
        launches = self.record.launches
        return when(launches[-1].time) if launches else ""

    def score(self, name: str) -> Estimate | None:
        """Return the main score of a set, None where the set was not judged."""
        summary = self.sets.get(name)
        return summary.main[1] if summary else None

    def predictions(self, columns: Sequence[str] = _JUDGED) -> pa.Table:
        """Read id, split, group, those of the columns that predictions.parquet has, and where it is known the `content` judged.

        Raises:
            RunError: it is missing or damaged.
        """
        table = results.read_predictions(self.folder, columns)
        if not (self.folder / "split.parquet").exists():
            return table
        contents = results.read_contents(self.folder, by_masks="score" in table.column_names)
        shown = [contents.get(name) for name in table["id"].to_pylist()]
        return table.append_column("content", pa.array(shown, pa.string()))

    @cached_property
    def rows(self) -> dict[str, str]:
        """A digest of each set's ids, groups, truths, files and classes; equal for equal rows in any order.

        Raises:
            RunError: the predictions are missing or damaged.
        """
        table = self.predictions(("truth", "score"))
        table = table.select([name for name in _ROW if name in table.column_names])
        classes = (table.schema.metadata or {}).get(b"classes", b"")
        digests: dict[str, Any] = {}
        with reading(self.folder / "predictions.parquet"):
            ordered = table.sort_by([("split", "ascending"), ("id", "ascending")])
            for row in zip(*(column.to_pylist() for column in ordered.columns), strict=True):
                digests.setdefault(row[0], hashlib.sha256(classes)).update(f"{row}\n".encode())
        return {name: digest.hexdigest() for name, digest in digests.items()}

    @property
    def tests(self) -> dict[str, str]:
        """`rows` of the test sets."""
        return {name: digest for name, digest in self.rows.items() if name.startswith("test")}


def read(folder: Path) -> RunSummary:
    """Read one run; what is wrong with it is its `reason`, never an exception."""
    path = folder / "run.json"
    try:
        values = read_json(path)
        if schema_of(values) > record.SCHEMA:
            task = RunRecord(task=str(values.get("task", "")))
            reason = "It was written by a newer Assay; update Assay."
            return RunSummary(folder, str(values.get("state", "new")), reason, task)
        run = record.read_record(folder)
    except RunError as error:
        return RunSummary(folder, "damaged", str(error))
    is_held_by_any = any(is_held(folder / name) for name in (LEASE, WRITER))
    is_dead = run.state == "running" and not is_held_by_any
    summary = RunSummary(folder, "interrupted" if is_dead else run.state, run.reason, run)
    return _with_result(summary) if run.state == "finished" else summary


def _with_result(run: RunSummary) -> RunSummary:
    again = f"judge it again: assay judge {run.folder}."
    path = run.folder / "result.json"
    if not path.exists():
        return replace(run, reason=f"It has no result; {again}", is_stale=True)
    try:
        values, rows = read_json(path), run.rows
        schema = schema_of(values)
        if schema > results.SCHEMA:
            return replace(run, reason="It was judged by a newer Assay; update Assay.")
        if schema < results.SCHEMA or not values.keys() >= _NEEDED:
            return replace(run, reason=f"It was judged by an older Assay; {again}", is_stale=True)
        result = results.as_result(values, path)
    except RunError as error:
        return replace(run, reason=str(error))
    if result.sets.keys() != rows.keys():
        reason = f"Its result and its predictions are of different sets; {again}"
        return replace(run, reason=reason, is_stale=True)
    return replace(run, result=result)


def read_all(storage: Path) -> list[RunSummary]:
    """Read every run below a folder, in the order of their names, without copies of a run's directory.

    Raises:
        RunError: it is no folder.
    """
    if not storage.is_dir():
        raise RunError(f"{storage} is no folder; name the folder of the runs by --storage.")
    runs = [read(folder) for folder in _folders(storage)]
    return without_copies([run for run in runs if not is_copy(run.folder.name, run.task)])


def without_copies(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Leave out folders that are named twice, and copies whatever their name, which have a run's launches at the same times."""
    first: dict[object, RunSummary] = {}
    for run in sorted(runs, key=lambda run: not is_run_name(run.folder.name, run.task)):
        times = tuple(launch.time for launch in run.record.launches)
        key = (run.record.mark, times) if run.record.mark and times else run.folder.resolve()
        first.setdefault(key, run)
    kept = {id(run) for run in first.values()}
    return [run for run in runs if id(run) in kept]


def _folders(storage: Path) -> list[Path]:
    """List folders with a record, each once: of a folder and links to it, the folder."""
    folders = [path.parent for path in storage.glob("*/run.json")]
    links_first = sorted(folders, key=Path.is_symlink, reverse=True)
    return sorted({folder.resolve(): folder for folder in links_first}.values())


def find(name: str, storage: Path) -> RunSummary:
    """Find a run by its folder, its name below `storage`, or a part of it that no other run has.

    Raises:
        RunError: there is none, or several.
    """
    for folder in (Path(name), storage / name):
        if (folder / "run.json").is_file():
            return read(folder)
    runs = [read(folder) for folder in _folders(storage) if name in folder.name]
    runs = [run for run in runs if not is_copy(run.folder.name, run.task)] or runs
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = ", ".join(run.folder.name for run in runs)
        raise RunError(f"{name!r} may be any of {names}; write more of the name.")
    raise RunError(
        f"There is no run {name!r}, neither as a folder nor below {storage}; assay runs lists them."
    )


def judged(name: str, storage: Path) -> RunSummary:
    """Find a run that has a result of this schema.

    Raises:
        RunError: there is none of that name, or it has no such result.
    """
    run = find(name, storage)
    if not run.result:
        raise RunError(
            f"{run.folder.name} cannot be compared ({run.why}); give runs that are finished and judged."
        )
    return run


def write_csv(path: Path, runs: Sequence[RunSummary]) -> None:
    """Write a line per run, with each set's score, its interval, and numbers of rows and groups."""
    sets = sorted({name for run in runs for name in run.sets})
    rows = [_csv_row(run, sets) for run in runs]
    write_rows(path, list(rows[0]), rows)


def _csv_row(run: RunSummary, sets: Sequence[str]) -> dict[str, Any]:
    """Lay out a run's line; what it lacks is empty."""
    row: dict[str, Any] = {
        "run": run.folder.name,
        "task": run.task,
        "state": run.state,
        "reason": run.reason,
    }
    for key in ("rule", "oracle", "transductive", "seed", "tried"):
        row[key] = getattr(run.result, key, "")
    row["scorings"] = len(run.result.scorings) if run.result else 0
    row |= {"began": run.began, "seconds": run.record.seconds}
    for name in sets:
        score = run.score(name)
        row |= {f"{name} {part.name}": getattr(score, part.name, "") for part in fields(Estimate)}
    return row


def when(seconds: float | None) -> str:
    """Tell a local time, ISO to the minute; empty for None, and for a number that is no time."""
    try:
        return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return ""
