"""Parallel coordinates: a line per trial through its settings and its score, as inline SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from assay.report.axis import Number
from assay.report.svg import at, draw_path, label, wrap
from assay.space import Choice, Dimension, Space
from assay.sweep.figures import EndedTrials

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _SIDE = 1100, 250, 40, 24, 70


@dataclass(frozen=True)
class Axis:
    """One setting, or the score."""

    setting: str
    name: str
    low: str
    high: str
    share: Callable[[Any], float]
    """From a value to 0..1."""


def axes_of(space: Space, trials: EndedTrials) -> list[Axis]:
    """Make an axis for each setting that varies and that a trial had, and one for val."""
    settings = {name for trial, _ in trials for name in trial.params}
    axes = [
        _axis(name, dimension)
        for name, dimension in space.items()
        if name in settings and not (isinstance(dimension, Choice) and len(dimension.values) < 2)
    ]
    scores = [outcome.score for _, outcome in trials if outcome.score is not None] or [0.0, 1.0]
    low, high = min(scores), max(scores)
    return [*axes, _range("val", low, high if high > low else low + 1e-9)]


def _axis(name: str, dimension: Dimension) -> Axis:
    if not isinstance(dimension, Choice):
        return _range(name, dimension.low, dimension.high, dimension.log)
    values = list(dimension.values)
    low, high = str(values[0]), str(values[-1])
    return Axis(name, name, low, high, lambda value: values.index(value) / (len(values) - 1))


def _range(name: str, low: Number, high: Number, log: bool = False) -> Axis:
    scale: Callable[[float], float] = math.log if log else float
    start, span = scale(low), scale(high) - scale(low)
    title = f"{name} (log)" if log else name
    return Axis(
        name, title, f"{low:.3g}", f"{high:.3g}", lambda value: (scale(value) - start) / span
    )


def render_parallel(axes: Sequence[Axis], trials: EndedTrials) -> str:
    """Draw all trials; the best quarter stands out.

    A setting that a trial did not have breaks its line.
    """
    pitch = (_WIDTH - 2 * _SIDE) / max(len(axes) - 1, 1)
    xs = [_SIDE + pitch * i for i in range(len(axes))]
    scores = sorted((o.score for _, o in trials if o.score is not None), reverse=True)
    bar = scores[max(0, math.ceil(len(scores) / 4) - 1)] if scores else 0.0
    lines: dict[str, list[str]] = {"other": [], "best": []}
    for trial, outcome in trials:
        if outcome.score is None:
            continue
        kind = "best" if outcome.score >= bar else "other"
        path = _path(axes, xs, trial.params | {"val": outcome.score})
        about = f"trial {trial.number}: val {outcome.score:.3f}, {outcome.state}"
        lines[kind].append(draw_path(kind, path, about))
    parts = [*lines["other"], *lines["best"]]
    for axis, x in zip(axes, xs, strict=True):
        parts.append(f'<path class="axis" d="M{at(x, _TOP)}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(label(x, 14, axis.name, "middle", "row"))
        parts.append(label(x, _TOP - 8, axis.high, "middle"))
        parts.append(label(x, _HEIGHT - 8, axis.low, "middle"))
    about = "Parallel coordinates of the trials"
    return wrap("plot coordinates", _WIDTH, _HEIGHT, about, parts)


def _path(axes: Sequence[Axis], xs: Sequence[float], values: dict[str, Any]) -> str:
    path, pen = "", "M"
    for axis, x in zip(axes, xs, strict=True):
        if values.get(axis.setting) is None:
            pen = "M"
            continue
        share = min(max(axis.share(values[axis.setting]), 0.0), 1.0)
        y = _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)
        dot = "h0" if pen == "M" else ""  # seen where no neighbour continues it: ends are round
        path += f"{pen}{at(x, y)}{dot}"
        pen = "L"
    return path
