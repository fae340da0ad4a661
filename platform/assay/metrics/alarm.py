"""An alarm over the frames of one print: when do its logits say that something has gone wrong?

- cusum: S <- max(0, S + x - reference), alarm where S exceeds the threshold (Page 1954, "Continuous
  inspection schemes")
- average: mean of the last `window` logits, alarm where it exceeds the threshold; nothing before the
  window is full

x is the logit of the fault: log p / (1 - p). A print's alarm stays on, so it has one at most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from assay.config import Settings
from assay.errors import ConfigError
from assay.shapes import Float, Float64

AlarmKind = Literal["cusum", "average"]


@dataclass(frozen=True, kw_only=True)
class AlarmConfig(Settings, section="alarm"):
    """How frames make an alarm."""

    kind: AlarmKind = "cusum"
    """Cumulative sum above a reference, or plain moving average."""
    reference: Annotated[float, Interval(ge=-1000, le=1000)] = 0.0
    """What is taken off each logit before it is summed (cusum)."""
    window: Annotated[int, Interval(ge=1, le=10_000)] = 20
    """Frames that are averaged (average)."""
    false_per_hour: Annotated[float, Interval(ge=0, le=10_000)] = 0.1
    """False alarms allowed in an hour of sound printing."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        return {"window" if self.kind == "cusum" else "reference": f"alarm.kind is {self.kind}"}


@dataclass(frozen=True)
class AlarmState:
    """What is known of one print between two frames."""

    num: int = 0
    """Frames so far."""
    value: float = 0.0
    """What was compared with the threshold at the last of them; -inf before a window is full."""
    recent: tuple[float, ...] = ()
    """The last logits, at most a window of them (average)."""
    first: int | None = None
    """Frame, from 0, at which the alarm rang first; it rings from then on."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One kind of alarm with its threshold: what whole prints are judged by, and frames that are sent one by one."""

    kind: AlarmKind
    reference: float
    """What is taken off each logit before it is summed (cusum)."""
    window: int
    """Frames that are averaged (average)."""
    threshold: float
    """What rings is above it."""

    @classmethod
    def fit(
        cls, config: AlarmConfig, prints: Sequence[Float[np.ndarray, "_"]], frame_s: float
    ) -> "Alarm":
        """Take the lowest threshold by which sound prints of val keep the budget of false alarms.

        A higher threshold gives no more alarms and no fewer hours, so the budget is kept from one value on.

        Args:
            config: the alarm and its budget.
            prints: logits of the frames of each sound print, in order of time.
            frame_s: seconds from a frame to the next.

        Raises:
            ConfigError: there is no frame.
        """
        silent = cls(
            kind=config.kind,
            reference=config.reference,
            window=config.window,
            threshold=math.inf,
        )
        paths = [silent.path(logits) for logits in prints if len(logits)]
        if not paths:
            raise ConfigError(
                "The alarm's threshold is fitted on sound prints, and val has no frame of one; give val such prints."
            )
        records = [np.maximum.accumulate(values) for values in paths]
        candidates = np.unique(np.concatenate([np.zeros(1), *records]))
        candidates = candidates[np.isfinite(candidates)]
        low, high = 0, len(candidates) - 1  # at the highest there is no alarm
        while low < high:
            middle = (low + high) // 2
            rate = false_alarms_per_hour(paths, float(candidates[middle]), frame_s)
            low, high = (low, middle) if rate <= config.false_per_hour else (middle + 1, high)
        return replace(silent, threshold=float(candidates[low]))

    def advance(self, state: AlarmState, logit: float) -> AlarmState:
        """Return the state after one more frame.

        Raises:
            ConfigError: the logit is not a number.
        """
        if math.isnan(logit):
            raise ConfigError(
                "The logit of a frame is not a number; leave out frames without an answer."
            )
        recent: tuple[float, ...] = ()
        if self.kind == "cusum":
            value = max(0.0, state.value + logit - self.reference)
        else:
            recent = (*state.recent, logit)[-self.window :]
            is_full = len(recent) == self.window
            value = math.fsum(recent) / self.window if is_full else -math.inf
        rings = state.first is None and value > self.threshold
        return AlarmState(state.num + 1, value, recent, state.num if rings else state.first)

    def path(self, logits: Float[np.ndarray, " frames"]) -> Float64[np.ndarray, " frames"]:
        """Return what is compared with the threshold at each frame of a print."""
        states = accumulate(logits.tolist(), self.advance, initial=AlarmState())
        return np.array([state.value for state in states][1:])


def log_odds(
    logits: Float[np.ndarray, "frames classes"], positive: int
) -> Float64[np.ndarray, " frames"]:
    """Return the logit of one class against all others, log p / (1 - p)."""
    others = np.delete(logits.astype(np.float64), positive, axis=1)
    odds: np.ndarray = logits[:, positive] - np.logaddexp.reduce(others, axis=1)
    return odds


def first_above(values: Float[np.ndarray, " frames"], threshold: float) -> int | None:
    """Return the first frame above the threshold; None: there is none."""
    above = np.flatnonzero(values > threshold)
    return int(above[0]) if len(above) else None


def false_alarms_per_hour(
    paths: Sequence[Float[np.ndarray, "_"]], threshold: float, frame_s: float
) -> float:
    """Return alarms in sound prints by the hours watched: of each print until its alarm, or its end.

    Its inverse estimates the mean time to a false alarm, prints that ended without one being censored.
    """
    firsts = [first_above(values, threshold) for values in paths]
    frames = sum(
        len(values) if first is None else first + 1
        for values, first in zip(paths, firsts, strict=True)
    )
    return sum(first is not None for first in firsts) / (frames * frame_s / 3600)
