"""Run directories as they are found: finished, unfinished, damaged or of another version.

Reads run.json, result.json and predictions.parquet (see `run` and `judge`) and writes nothing.
Runs are ranked only among those whose rows of every set, and whose rule, are the same.
"""

import csv
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from assay.compare import SIGNIFICANT, compare
from assay.errors import RunError
from assay.estimate import Estimate

SCHEMA = 1
_RENEWED_WITHIN_S = 180  # a lease that is older has no living owner, see `run`
_NEEDED = {"rule", "oracle", "seed", "sets", "scorings", "tried"}
_JUDGED = ("id", "split", "group", "truth", "logits", "probs", "score", "weight")


@dataclass(frozen=True)
class Listed:
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


def read(folder: Path) -> Listed:
    """Read one run; what is wrong with it is its `reason`, never an exception."""
    try:
        record = read_json(folder / "run.json")
    except RunError as error:
        return Listed(folder, "damaged", str(error))
    state = str(record.get("state", "new"))
    if state == "running" and not _is_held(folder / "lease.json"):
        state = "interrupted"
    run = Listed(folder, state, str(record.get("reason", "")), record)
    if record.get("schema", 0) > SCHEMA:
        return replace(run, reason="It was written by a newer Assay; update Assay.")
    return _with_result(run) if state == "finished" else run


def _with_result(run: Listed) -> Listed:
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


def read_all(storage: Path) -> list[Listed]:
    """Read every run below a folder, in the order of their names.

    Raises:
        RunError: it is no folder.
    """
    if not storage.is_dir():
        raise RunError(f"{storage} is no folder; name the folder of the runs by --storage.")
    return [read(path.parent) for path in sorted(storage.glob("*/run.json"))]


def find(name: str, storage: Path) -> Listed:
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


def judged(name: str, storage: Path) -> Listed:
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


def print_ranked(runs: Sequence[Listed], by: str) -> None:
    """Print the runs, the best on the set `by` first; then those that have no result, and why.

    Only runs of one task and rule, with the same rows in every set, share a table.
    """
    tables: dict[Any, list[Listed]] = {}
    for run in runs:
        if run.score(by):
            tables.setdefault((run.task, run.rule, *sorted(run.rows.items())), []).append(run)
    for own in tables.values():
        _print_table(sorted(own, key=lambda run: (-_value(run, by), run.folder.name)), by)
        if own[0].tests:
            _print_tries([run for run in runs if run.result and run.tests == own[0].tests])
    if tables:
        print(
            "Scores with 95 % intervals over groups. ~ does not differ significantly from the first"
        )
        print(f"(paired on {by}, corrected by Holm). Runs of different tables cannot be ranked.")
    unranked = [run for run in runs if not run.score(by)]
    if unranked:
        print("\nNot ranked:" if tables else "Not ranked:")
    for run in unranked:
        print(f"  {run.folder.name}  {run.state}  {run.began}".rstrip())
        reason = f"It has no set {by}." if run.result else run.reason
        print(f"    {reason}\n" if reason else "", end="")


def _print_table(ranked: Sequence[Listed], by: str) -> None:
    first = ranked[0]
    sets = first.result["sets"]
    tests = [name for name in sets if name.startswith("test")]
    sizes = [f"{name} {own['num']} in {own['num_groups']}" for name, own in sets.items()]
    print(f"{first.task}, {first.rule}, ranked by {next(iter(sets[by]['metrics']))} on {by}")
    print(f"rows in groups: {', '.join(sizes)}")
    equal = _inseparable(ranked, by)
    rows = []
    for place, run in enumerate(ranked, 1):
        val = run.score("val")
        rows.append({
            "": f"{place}{'~' if run.folder in equal else ''}",
            "run": run.folder.name.removeprefix(f"{run.task}-"), "seed": str(run.result["seed"]),
            "val": f"{val.value:.3f}" if val else "", **{name: bracket(run.score(name)) for name in tests},
            "began": run.began, "s": f"{run.record.get('seconds') or 0:.0f}",
        })  # fmt: skip
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        print("  ".join(f"{row[key]:{widths[key]}s}" for key in widths).rstrip())


def _print_tries(runs: Sequence[Listed]) -> None:
    """How often the same test rows were looked at: the more, the less the best of them means."""
    num = sum(len(run.result["scorings"]) for run in runs)
    tried = sum(run.result["tried"] for run in runs)
    print(
        f"test scorings of these rows: {num}, of {len(runs)} runs; configurations tried: {tried}\n"
    )


def _inseparable(ranked: Sequence[Listed], by: str) -> set[Path]:
    if len(ranked) < 2:
        return set()
    tables = {str(run.folder): run.predictions() for run in ranked}
    return {Path(c.name) for c in compare(tables, [by]) if c.p_holm >= SIGNIFICANT}


def _value(run: Listed, name: str) -> float:
    score = run.score(name)
    return score.value if score else -1.0


def write_csv(path: Path, runs: Sequence[Listed]) -> None:
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
    with opened(path) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def opened(path: Path) -> TextIO:
    """Open a file to write.

    Raises:
        RunError: it cannot be written.
    """
    try:
        return path.open("w", newline="")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); name another file.") from None


def bracket(score: Estimate | None) -> str:
    """A score with its interval; empty for None."""
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if score else ""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise RunError(f"{path} is missing or damaged; restore it, or train the run again.")
    return value


def when(seconds: float | None) -> str:
    """Local time, ISO to the minute; empty for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _is_held(lease: Path) -> bool:
    return lease.exists() and time.time() - lease.stat().st_mtime < _RENEWED_WITHIN_S
