"""A trial: one run of a sweep, and what its directory says of it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from assay.errors import RunError
from assay.files import write_parquet, write_rows
from assay.runs.folder import Run
from assay.runs.metrics import NAMED, Line, read_metrics
from assay.runs.record import RunRecord
from assay.train.task_config import TaskConfig


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
    """What it costs; latency_ms where it was asked for."""

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return self.curve[-1][0] if self.curve else 0

    def value(self, objective: str) -> float | None:
        """Return the value of an objective; None unless the trial has finished or was stopped."""
        if self.state not in ("finished", "stopped"):
            return None
        values = {"score": self.score, "nll": self.nll} | dict(self.measured)
        return values.get(objective)


def read_outcome(folder: Path) -> Outcome:
    """Read what became of the trial in a run's directory; one that cannot be read has failed."""
    try:
        return _read(Run(folder).record, read_metrics(folder / "metrics.jsonl")["val"])
    except RunError as error:
        return Outcome("failed", str(error))


def _read(record: RunRecord, looks: Sequence[Line]) -> Outcome:
    curve: list[tuple[int, float]] = []
    nlls = []
    for line in looks:
        score = next((value for name, value in line.items() if name not in NAMED), None)
        if score is not None:
            best = max(score, curve[-1][1]) if curve else score
            curve.append((line["epoch"] + 1, best))
        if line.get("nll") is not None:
            nlls.append(line["nll"])
    failed = record.state == "failed"
    return Outcome(
        state=record.state,
        reason=record.reason if failed else "",
        score=curve[-1][1] if curve and not failed else None,
        nll=min(nlls) if nlls and not failed else None,
        curve=curve,
        seconds=record.seconds or 0.0,
        measured=record.measured or {},
    )


def print_outcome(number: int, num: int, name: str, outcome: Outcome) -> None:
    """Say on the terminal which of how many trials has ended, and how."""
    score = "" if outcome.score is None else f", val {outcome.score:.3f}"
    reason = f" ({outcome.reason})" if outcome.reason else ""
    end = f"{outcome.state}{reason}{score}, {outcome.epochs} epochs"
    print(f"{number} of {num}: {name}: {end}", file=sys.stderr)


def refuse_all_failed(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Refuse a sweep of which there is nothing to tell.

    Args:
        outcomes: of all its trials, none of which has finished.
        folder: the sweep's.

    Raises:
        RunError: always; says what the first trial says.
    """
    reasons = [outcome.reason or f"it is {outcome.state}" for outcome in outcomes]
    raise RunError(
        f"None of {len(outcomes)} trainings came to its end ({reasons[0].rstrip('.')}); mend that, or see the reason of each in {folder / 'trials.csv'}."
    )


def describe_values(values: Mapping[str, Any]) -> str:
    """Write settings as people read them: "lr 0.01, k 4"."""
    texts = []
    for name, value in values.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        texts.append(f"{name.split('.')[-1]} {text}")
    return ", ".join(texts)


def write_trials(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write trials.csv and trials.parquet, a row per trial."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_rows(folder / "trials.csv", names, rows)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    write_parquet(folder / "trials.parquet", table)
