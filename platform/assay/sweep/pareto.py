"""What a better score costs: settings that no other beats in both error and cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from assay.metrics.comparison import Comparison
from assay.metrics.figure import Figure, Series

COSTS = {
    "num_params": "parameters",
    "num_trainable": "trained parameters",
    "macs": "MACs of an image",
    "trainable_macs": "trained MACs of an image",
    "train_s": "training (s)",
    "latency_ms": "latency (ms)",
    "latency_int8_ms": "latency, int8 (ms)",
}
"""Costs of a run's record (`measured`), as they are shown."""


NUM_NAMED = 5
"""Members of a front that a chart tells apart by their own markers."""


@dataclass(frozen=True, kw_only=True)
class Front:
    """The settings that no other is better than, in error on a test set and in a cost."""

    set: str
    cost: str
    """A key of COSTS."""
    points: dict[str, tuple[float, float]]
    """Cost and error of each setting that both are known of."""
    members: list[str]
    """The cheapest first."""
    cheaper: dict[str, str]
    """Of a member, the cheapest setting below its cost that its error was not told apart from."""


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell which points are on the front: no other is as low in both numbers and lower in one."""
    lowest, members = math.inf, set()
    for cost, tied in groupby(sorted(points), key=lambda point: point[0]):
        error = next(tied)[1]
        if error < lowest:
            lowest = error
            members.add((cost, error))
    return [tuple(point) in members for point in points]


def front_of(
    test: str, cost: str, points: Mapping[str, tuple[float, float]], pairs: Sequence[Comparison]
) -> Front:
    """Find the front, and which of its members a cheaper setting may well be as good as.

    Args:
        test: The test set.
        cost: A key of COSTS.
        points: Cost and error of each setting.
        pairs: The settings compared on the test set.
    """
    alike = {frozenset((pair.first_name, pair.name)) for pair in pairs if not pair.side}
    by_cost = sorted(points, key=points.__getitem__)
    on_front = dict(zip(points, pareto(list(points.values())), strict=True))
    members = [name for name in by_cost if on_front[name]]
    cheaper = {}
    for member in members:
        for name in by_cost:
            if points[name][0] < points[member][0] and {member, name} in alike:
                cheaper[member] = name
                break
    return Front(set=test, cost=cost, points=dict(points), members=members, cheaper=cheaper)


def chart(front: Front) -> Figure:
    """Draw error over cost; members of the front bear their names, others are one series."""
    named = front.members if len(front.members) <= NUM_NAMED else []
    series = {name: _points(front, [name]) for name in named}
    if not named:
        series["on the front"] = _points(front, front.members)
    others = [name for name in front.points if name not in front.members]
    if others:
        series["others"] = _points(front, others)
    costs = [cost for cost, _ in front.points.values()]
    return Figure(
        title=f"Error against {COSTS[front.cost]}",
        kind="points",
        series=series,
        x=COSTS[front.cost],
        y="error",
        x_log=min(costs) > 0,
    )


def _points(front: Front, names: Sequence[str]) -> Series:
    points = [front.points[name] for name in names]
    return Series(x=[cost for cost, _ in points], y=[error for _, error in points])
