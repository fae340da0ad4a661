"""Run directories as they are found: finished, unfinished, damaged or of another version.

Reads run.json, result.json and predictions.parquet (see `run` and `judge`) and writes nothing.
Runs are ranked only among those whose rows of every set, and whose rule, are the same.
"""

import csv
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assay.errors import RunError
from assay.files import open_to_write, read_json
from assay.metrics.estimate import Estimate
from assay.runs.folder import is_held

SCHEMA = 1


_NEEDED = {"rule", "oracle", "seed", "sets", "scorings", "tried"}


_JUDGED = ("id", "split", "group", "truth", "logits", "probs", "score", "weight")


@dataclass(frozen=True)
class RunSummary:
    """What a run's directory says of itself."""

    folder: Path
    state: str
    """As in run.json; interrupted: running, but no process holds it; damaged: cannot be read."""
    reason: str = ""
    """Why there is no result, in words for the user; empty if there is one."""
    record: dict[str, Any] = field(default_factory=dict)
    """Contents of run.json."""
    result: dict[str, Any] = field(default_factory=dict)
    """Contents of result.json; empty where it is absent, damaged, or not of this schema."""
    is_stale: bool = False
    """Whether judging again would give a result."""

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.record.get("task", ""))

    @property
    def rule(self) -> str:
        """What val was drawn by; an oracle stands out."""
        return "ORACLE" if self.result["oracle"] else str(self.result["rule"])

    @property
    def why(self) -> str:
        """Why it cannot be used, in words."""
        return self.reason.rstrip(".") or f"it is {self.state}"

    @property
    def began(self) -> str:
        """Local time of the last launch, ISO to the minute."""
        launches = self.record.get("launches") or [{}]
        return when(launches[-1].get("time"))

    def score(self, name: str) -> Estimate | None:
        """The main score of a set, None where the set was not judged."""
        judged = self.result.get("sets", {}).get(name)
        return Estimate(**next(iter(judged["metrics"].values()))) if judged else None

    def predictions(self, columns: Sequence[str] = _JUDGED) -> pa.Table:
        """Those of the columns that predictions.parquet has.

        Raises:
            RunError: it is missing or damaged.
        """
        path = self.folder / "predictions.parquet"
        try:
            file = pq.ParquetFile(path)  # pq.read_table takes a second to import what it needs
            return file.read([name for name in columns if name in file.schema_arrow.names])
        except (OSError, pa.ArrowException):
            raise RunError(
                f"{path} is missing or damaged; restore it, or train the run again."
            ) from None

    @cached_property
    def rows(self) -> dict[str, str]:
        """A digest of each set's ids, groups, truths and classes; equal for equal rows in any order.

        Raises:
            RunError: the predictions are missing or damaged.
        """
        table = self.predictions(("split", "id", "group", "truth"))
        classes = (table.schema.metadata or {}).get(b"classes", b"")
        digests: dict[str, Any] = {}
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
    try:
        record = read_json(folder / "run.json")
    except RunError as error:
        return RunSummary(folder, "damaged", str(error))
    state = str(record.get("state", "new"))
    if state == "running" and not is_held(folder / "lease.json"):
        state = "interrupted"
    run = RunSummary(folder, state, str(record.get("reason", "")), record)
    if record.get("schema", 0) > SCHEMA:
        return replace(run, reason="It was written by a newer Assay; update Assay.")
    return _with_result(run) if state == "finished" else run


def _with_result(run: RunSummary) -> RunSummary:
    again = f"judge it again: assay judge {run.folder}."
    path = run.folder / "result.json"
    if not path.exists():
        return replace(run, reason=f"It has no result; {again}", is_stale=True)
    try:
        result, rows = read_json(path), run.rows
    except RunError as error:
        return replace(run, reason=str(error))
    schema = result.get("schema", 0)
    if schema > SCHEMA:
        return replace(run, reason="It was judged by a newer Assay; update Assay.")
    if schema < SCHEMA or not result.keys() >= _NEEDED:
        return replace(run, reason=f"It was judged by an older Assay; {again}", is_stale=True)
    if result["sets"].keys() != rows.keys():
        reason = f"Its result and its predictions are of different sets; {again}"
        return replace(run, reason=reason, is_stale=True)
    return replace(run, result=result)


def read_all(storage: Path) -> list[RunSummary]:
    """Read every run below a folder, in the order of their names.

    Raises:
        RunError: it is no folder.
    """
    if not storage.is_dir():
        raise RunError(f"{storage} is no folder; name the folder of the runs by --storage.")
    return [read(path.parent) for path in sorted(storage.glob("*/run.json"))]


def find(name: str, storage: Path) -> RunSummary:
    """Find a run by its folder, its name below `storage`, or a part of it that no other run has.

    Raises:
        RunError: there is none, or several.
    """
    for folder in (Path(name), storage / name):
        if (folder / "run.json").is_file():
            return read(folder)
    found = [path.parent for path in storage.glob("*/run.json") if name in path.parent.name]
    if len(found) == 1:
        return read(found[0])
    if found:
        names = ", ".join(sorted(folder.name for folder in found))
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
    """Write a line per run, with each set's score, its interval, and numbers of rows and groups.

    Raises:
        RunError: the file cannot be written.
    """
    parts = [part.name for part in fields(Estimate)]
    sets = sorted({name for run in runs for name in run.result.get("sets", {})})
    rows = []
    for run in runs:
        row: dict[str, Any] = {
            "run": run.folder.name,
            "task": run.task,
            "state": run.state,
            "reason": run.reason,
        }
        row |= {key: run.result.get(key, "") for key in ("rule", "oracle", "seed", "tried")}
        row |= {"scorings": len(run.result.get("scorings", [])), "began": run.began, "seconds": run.record.get("seconds", "")}  # fmt: skip
        for name in sets:
            score = run.score(name)
            row |= {f"{name} {part}": getattr(score, part, "") for part in parts}
        rows.append(row)
    with open_to_write(path) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def bracket(score: Estimate | None) -> str:
    """A score with its interval; empty for None."""
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if score else ""


def when(seconds: float | None) -> str:
    """Local time, ISO to the minute; empty for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
