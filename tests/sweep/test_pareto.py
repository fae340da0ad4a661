"""The front: brute force, closed cases, and whom a cheaper one may replace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.metrics.comparison import Comparison
from assay.metrics.estimate import Estimate
from assay.sweep.pareto import chart, front_of, pareto

NUMBER = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1e9))
POINTS = st.lists(st.tuples(NUMBER, NUMBER), max_size=30)


def is_better(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@given(POINTS)
def test_the_front_is_what_no_other_point_is_better_than(points: list[tuple[float, float]]) -> None:
    expected = [not any(is_better(other, point) for other in points) for point in points]
    assert pareto(points) == expected


@given(POINTS, st.randoms())
def test_order_and_repetition_change_no_point(points, random) -> None:
    once = dict(zip(points, pareto(points), strict=True))
    more = points * 2
    random.shuffle(more)
    assert dict(zip(more, pareto(more), strict=True)) == once


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1.0, 1.0)], [True]),
        ([(1.0, 1.0), (1.0, 1.0)], [True, True]),
        ([(1.0, 2.0), (2.0, 2.0)], [True, False]),
        ([(1.0, 2.0), (1.0, 1.0)], [False, True]),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], [True, True, True]),
        ([(3.0, 3.0), (2.0, 2.0), (1.0, 1.0)], [False, False, True]),
    ],
)
def test_closed_cases(points: list[tuple[float, float]], front: list[bool]) -> None:
    assert pareto(points) == front


def compared(first: str, second: str, p: float, value: float = 0.2, groups: int = 50) -> Comparison:
    def estimate(at: float) -> Estimate:
        return Estimate(value=at, low=at - 0.1, high=at + 0.1, num=groups, num_groups=groups)

    return Comparison(
        set="test",
        metric="accuracy",
        first_name=first,
        name=second,
        first=estimate(0.8),
        second=estimate(0.8 - value),
        difference=estimate(value),
        p=p,
        p_holm=p,
        mcnemar=None,
    )


POINTS_OF = {"large": (90.0, 0.1), "small": (1.0, 0.3), "middle": (9.0, 0.12), "poor": (5.0, 0.4)}
PAIRS = [
    compared("large", "small", 0.001),
    compared("large", "middle", 0.7, 0.02),
    compared("large", "poor", 0.001),
    compared("middle", "small", 0.001),
    compared("middle", "poor", 0.9),
    compared("small", "poor", 0.9),
]


def test_members_that_a_cheaper_one_may_be_as_good_as_are_named() -> None:
    front = front_of("test", "macs", POINTS_OF, PAIRS)
    assert front.members == ["small", "middle", "large"]
    # poor is cheaper than middle and not told apart from it, small is; nothing is below small
    assert front.cheaper == {"large": "middle", "middle": "poor"}


def test_too_few_groups_tell_nothing_apart() -> None:
    pairs = [compared("large", "small", 0.001, groups=3)]
    points = {name: POINTS_OF[name] for name in ("large", "small")}
    assert front_of("test", "macs", points, pairs).cheaper == {"large": "small"}


def test_the_chart_names_the_members_and_shows_all_points() -> None:
    figure = chart(front_of("test", "macs", POINTS_OF, PAIRS))
    assert list(figure.series) == ["small", "middle", "large", "others"]
    points = [(x, y) for s in figure.series.values() for x, y in zip(s.x, s.y, strict=True)]
    assert sorted(points) == sorted(POINTS_OF.values())
    assert figure.x_log
    free = chart(front_of("test", "num_trainable", {"a": (0.0, 0.5), "b": (3.0, 0.1)}, []))
    assert not free.x_log  # nothing is trained
