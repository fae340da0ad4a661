"""A trial: one run of a sweep, and what its directory says of it."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assay.runs.folder import Run
from assay.runs.results import NAMED, read_metrics
from assay.train.task import TaskConfig


@dataclass(frozen=True)
class Trial:
    """What is to run, and where."""

    name: str
    """As people read it."""
    values: Mapping[str, Any]
    """What distinguishes it from the sweep's other trials."""
    config: TaskConfig
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a trial; all of it is read from its run's directory."""

    state: str
    """As in run.json."""
    reason: str = ""
    """Why it failed."""
    score: float | None = None
    """The best main score of val; never that of a failed trial."""
    nll: float | None = None
    """The least nll of val."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Epochs done and the best score until then."""
    seconds: float = 0.0
    measured: Mapping[str, float] = field(default_factory=dict)
    """What else was asked for: latency_ms, num_params."""

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return self.curve[-1][0] if self.curve else 0

    def value(self, objective: str) -> float | None:
        """The value of an objective by its name; None unless the trial has finished or was stopped."""
        if self.state not in ("finished", "stopped"):
            return None
        found = {"score": self.score, "nll": self.nll} | dict(self.measured)
        return found.get(objective)


def outcome(folder: Path) -> Outcome:
    """Read a trial's outcome."""
    run = Run(folder)
    record = run.record
    curve: list[tuple[int, float]] = []
    nlls = []
    for line in read_metrics(folder / "metrics.jsonl")["val"]:
        score = next((v for k, v in line.items() if k not in NAMED), None)
        if score is not None:
            best = max(score, curve[-1][1]) if curve else score
            curve.append((line["epoch"] + 1, best))
        if line.get("nll") is not None:
            nlls.append(line["nll"])
    failed = run.state == "failed"
    return Outcome(
        state=run.state,
        reason=record.reason if failed else "",
        score=curve[-1][1] if curve and not failed else None,
        nll=min(nlls) if nlls and not failed else None,
        curve=curve,
        seconds=record.seconds or 0.0,
        measured=record.measured or {},
    )


def describe_outcome(found: Outcome) -> str:
    """An outcome in a few words."""
    score = "" if found.score is None else f", val {found.score:.3f}"
    reason = f" ({found.reason})" if found.reason else ""
    return f"{found.state}{reason}{score}, {found.epochs} epochs"


def write_trials(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write trials.csv and trials.parquet, a line per trial."""
    names = list(dict.fromkeys(key for line in lines for key in line))
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)
    table = pa.table({name: [line.get(name) for line in lines] for name in names})
    pq.write_table(table, folder / "trials.parquet")
