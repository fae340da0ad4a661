"""Parallel coordinates: a line per trial through its settings and its score, as inline SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from assay.space import Choice, Space
from assay.sweep.figures import Ended

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _SIDE = 1100, 250, 40, 24, 70


@dataclass(frozen=True)
class Axis:
    """One setting, or the score."""

    name: str
    low: str
    high: str
    place: Callable[[Any], float]
    """From a value to 0..1."""


def axes_of(space: Space, trials: Ended) -> list[Axis]:
    """An axis for each setting that varies and that a trial had, and one for val."""
    found = []
    had = {name for t, _ in trials for name in t.params}
    for name, dimension in space.items():
        if name not in had:
            continue
        if isinstance(dimension, Choice):
            values = list(dimension.values)
            if len(values) > 1:
                found.append(
                    Axis(name, str(values[0]), str(values[-1]), lambda v, of=values: of.index(v) / (len(of) - 1))  # type: ignore[misc]
                )  # fmt: skip
            continue
        found.append(_range(name, dimension.low, dimension.high, dimension.log))
    scores = [o.score for _, o in trials if o.score is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    return [*found, _range("val", low, high if high > low else low + 1e-9, False)]


def _range(name: str, low: float, high: float, log: bool) -> Axis:
    scale: Callable[[float], float] = math.log if log else float
    span = scale(high) - scale(low)
    return Axis(
        name + (" (log)" if log else ""), f"{low:.3g}", f"{high:.3g}",
        lambda value: (scale(value) - scale(low)) / span,
    )  # fmt: skip


def draw(axes: Sequence[Axis], trials: Ended) -> str:
    """The best quarter stands out; a setting that a trial did not have breaks its line."""
    pitch = (_WIDTH - 2 * _SIDE) / max(len(axes) - 1, 1)
    scored = sorted((o.score for _, o in trials if o.score is not None), reverse=True)
    bar = scored[max(0, math.ceil(len(scored) / 4) - 1)] if scored else 0.0
    parts = []
    for kind in ("other", "best"):
        for t, o in trials:
            if o.score is None or (o.score >= bar) != (kind == "best"):
                continue
            values = {name: t.params.get(name.removesuffix(" (log)")) for name in _names(axes)}
            values["val"] = o.score
            label = f"trial {t.number}: val {o.score:.3f}, {o.state}"
            parts.append(_line(axes, values, pitch, kind, label))
    parts += [_axis(axis, _SIDE + pitch * i) for i, axis in enumerate(axes)]
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    about = "Parallel coordinates of the trials"
    return f'<svg class="plot coordinates" {size} role="img" aria-label="{about}">{"".join(parts)}</svg>'


def _names(axes: Sequence[Axis]) -> list[str]:
    return [axis.name for axis in axes]


def _line(axes: Sequence[Axis], values: dict[str, Any], pitch: float, kind: str, label: str) -> str:
    path, pen = [], "M"
    for i, axis in enumerate(axes):
        value = values.get(axis.name)
        if value is None:
            pen = "M"
            continue
        share = min(max(axis.place(value), 0.0), 1.0)
        y = _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)
        alone = "h0" if pen == "M" else ""  # with round ends a dot, where no neighbour continues it
        path.append(f"{pen}{_SIDE + pitch * i:.1f} {y:.1f}{alone}")
        pen = "L"
    return f'<path class="{kind}" d="{"".join(path)}"><title>{escape(label)}</title></path>'


def _axis(axis: Axis, x: float) -> str:
    middle = f'x="{x:.1f}" text-anchor="middle"'
    return (
        f'<path class="axis" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        f'<text class="row" {middle} y="14">{escape(axis.name)}</text>'
        f'<text class="tick" {middle} y="{_TOP - 8}">{escape(axis.high)}</text>'
        f'<text class="tick" {middle} y="{_HEIGHT - 8}">{escape(axis.low)}</text>'
    )
