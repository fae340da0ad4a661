"""A trial: one run of a sweep, and what its directory says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.charts import NAMED, read_metrics
from assay.run import Run
from assay.task import TaskConfig


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
        reason=str(record.get("reason", "")) if failed else "",
        score=curve[-1][1] if curve and not failed else None,
        nll=min(nlls) if nlls and not failed else None,
        curve=curve,
        seconds=float(record.get("seconds", 0.0)),
        measured=record.get("measured", {}),
    )
