"""Frames of prints in order of time: how early an answer is right, and what an alarm over frames is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pyarrow as pa

from assay.metrics.alarm import Alarm, AlarmConfig, AlarmKind, first_above, log_odds
from assay.metrics.estimate import Estimate, interval
from assay.metrics.figure import Figure, Series
from assay.metrics.measures import Measure
from assay.metrics.predictions import logits_of
from assay.shapes import Float, Float64, Int, Shaped

SECONDS = "seconds"
"""Column of seconds since the first frame of a row's print."""

NUM_BINS = 10

MEASURES: Mapping[str, Measure] = {
    f"{kind}_{key}": Measure(f"{label} {words}", meaning)
    for kind, label in (("cusum", "CUSUM"), ("average", "Average"))
    for key, words, meaning in (
        ("detected", "detected", "faulty prints with an alarm, its threshold fitted on val"),
        ("delay_s", "delay", "seconds from the fault to the alarm, to the end where none came"),
        ("false_per_hour", "false alarms", "alarms in an hour of prints without that fault"),
    )
}


@dataclass(frozen=True)
class Print:
    """The frames of one print, in order of time."""

    name: str
    seconds: Float64[np.ndarray, " frames"]
    """Since the first of them."""
    logits: Float[np.ndarray, "frames classes"]
    truth: Int[np.ndarray, " frames"]

    def faulty(self, positive: int) -> np.ndarray:
        """Mark the frames whose truth is the fault."""
        return self.truth == positive

    def odds(self, positive: int) -> Float64[np.ndarray, " frames"]:
        """Return the logit of the fault, log p / (1 - p), at each frame."""
        return log_odds(self.logits, positive)


def prints_of(rows: pa.Table) -> list[Print]:
    """Sort the rows of one set to their prints."""
    seconds = rows[SECONDS].to_numpy().astype(np.float64)
    group, logits, truth = np.array(rows["group"].to_pylist()), logits_of(rows), rows["truth"]
    classes = truth.to_numpy()
    prints = []
    for name in np.unique(group):
        members = np.flatnonzero(group == name)
        members = members[np.argsort(seconds[members], kind="stable")]
        since = seconds[members] - seconds[members[0]]
        prints.append(Print(str(name), since, logits[members], classes[members]))
    return prints


def early_figure(prints_by_set: Mapping[str, Sequence[Print]]) -> Figure | None:
    """Draw accuracy over the seconds since the start of a print, of single frames and of the mean of all until then."""
    series = {}
    for name, prints in prints_by_set.items():
        seconds, group, single, until = _hits(prints)
        edges = np.linspace(0, seconds.max(), NUM_BINS + 1)
        bins = np.digitize(seconds, edges[1:-1], right=True)
        if seconds.max() == 0:
            continue
        for kind, hits in (("a frame", single), ("mean until then", until)):
            places = np.unique(bins)
            estimates = [interval(hits[bins == b], group[bins == b]) for b in places]
            x = [float(seconds[bins == b].mean()) for b in places]
            series[f"{name}, {kind}"] = Series.from_estimates(x, estimates)
    if not series:
        return None
    nums = ", ".join(f"{len(prints)} prints of {name}" for name, prints in prints_by_set.items())
    return Figure(
        title="Accuracy since the start of a print",
        kind="line",
        series=series,
        x="seconds since its first frame",
        y="accuracy",
        y_range=[0.0, 1.0],
        caption=f"n: {nums}. Bands: 95 % intervals over prints; those that have ended are no longer in it.",
    )


def _hits(prints: Sequence[Print]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return seconds and print of each frame, and whether it, and the mean logits until it, are right."""
    single, until = [], []
    for each in prints:
        mean = np.cumsum(each.logits.astype(np.float64), axis=0)
        single.append(each.logits.argmax(1) == each.truth)
        until.append(mean.argmax(1) == each.truth)
    seconds = np.concatenate([each.seconds for each in prints])
    group = np.repeat(np.arange(len(prints)), [len(each.seconds) for each in prints])
    return seconds, group, np.concatenate(single).astype(float), np.concatenate(until).astype(float)


def frame_seconds(prints: Sequence[Print]) -> float:
    """Return the median time from a frame to the next; 0 where no print has two."""
    gaps = np.concatenate([np.diff(each.seconds) for each in prints]) if prints else np.zeros(0)
    return float(np.median(gaps)) if len(gaps) else 0.0


def fit_alarms(config: AlarmConfig, positive: int, val: Sequence[Print]) -> list[Alarm]:
    """Fit both kinds of alarm on the sound prints of val; none where it has none, or none of two frames.

    Args:
        config: the alarm; of its kind both are fitted.
        positive: class of the fault.
        val: prints in order of time.
    """
    sound = [each.odds(positive) for each in val if not each.faulty(positive).any()]
    frame_s = frame_seconds(val)
    if not sound or not frame_s:
        return []
    return [Alarm.fit(replace(config, kind=kind), sound, frame_s) for kind in get_args(AlarmKind)]


def judge_alarms(
    alarms: Sequence[Alarm], positive: int, prints_by_set: Mapping[str, Sequence[Print]]
) -> dict[str, dict[str, Estimate]]:
    """Judge alarms that were fitted on val on every set; estimates by set and name, over prints.

    Args:
        alarms: of both kinds, or none.
        positive: class of the fault.
        prints_by_set: prints in order of time, val among the sets.
    """
    frame_s = frame_seconds(prints_by_set.get("val", ()))
    metrics: dict[str, dict[str, Estimate]] = {name: {} for name in prints_by_set}
    for alarm in alarms:
        for name, prints in prints_by_set.items():
            estimates = _judge(alarm, prints, positive, frame_s)
            metrics[name] |= {f"{alarm.kind}_{key}": value for key, value in estimates.items()}
    return metrics


def doubt_alarms(
    alarms: Sequence[Alarm], prints_by_set: Mapping[str, Sequence[Print]]
) -> list[str]:
    """Say why no alarm is judged, or why one never rings."""
    if not alarms:
        return [
            "No alarm is judged or shipped, as val has no print that is sound throughout and has two frames, which thresholds are fitted on; give val such prints."
        ]
    longest = max(len(each.seconds) for prints in prints_by_set.values() for each in prints)
    return [
        f"--alarm.window is {alarm.window}, and no print has more than {longest} frames, so that the moving average never rings; lower it."
        for alarm in alarms
        if alarm.kind == "average" and alarm.window > longest
    ]


def _judge(
    alarm: Alarm, prints: Sequence[Print], positive: int, frame_s: float
) -> dict[str, Estimate]:
    """Estimate how many faults are detected and how late, and how often a sound print alarms."""
    detected, delays, alarms, hours = [], [], [], []
    for each in prints:
        first = first_above(alarm.path(each.odds(positive)), alarm.threshold)
        faulty, num = each.faulty(positive), len(each.seconds)
        watched = num if first is None else first + 1
        if not faulty.any():
            alarms.append(float(first is not None))
            hours.append(watched * frame_s / 3600)
        else:
            onset = int(faulty.argmax())
            is_in_time = first is not None and first >= onset
            detected.append(float(is_in_time))
            delays.append((watched - 1 - onset if is_in_time else num - onset) * frame_s)
    estimates = {}
    if detected:
        estimates["detected"] = _over_prints(detected)
        estimates["delay_s"] = _over_prints(delays, highest=max(*delays, frame_s))
    if alarms:
        rates = np.array(alarms) / hours
        estimates["false_per_hour"] = _over_prints(rates, hours, highest=3600 / frame_s)
    return estimates


def _over_prints(
    values: Shaped[np.ndarray, " prints"] | Sequence[float],
    weights: Sequence[float] | None = None,
    highest: float = 1.0,
) -> Estimate:
    array = np.asarray(values, dtype=np.float64)
    mass = None if weights is None else np.asarray(weights)
    return interval(array, np.arange(len(array)), weights=mass, highest=highest)
