"""Folds: even choices, equal updates, and numbers that planted rows must give."""

from collections import Counter
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.folds import choices
from assay.generalization import Rows, by_size, by_value, differences, standings


@given(st.integers(2, 9), st.data())
def test_choices_are_distinct_and_hold_out_all_values_evenly(num: int, data: st.DataObject) -> None:
    values = [f"v{i}" for i in range(num)]
    size = data.draw(st.integers(1, num - 1))
    wanted = data.draw(st.integers(1, comb(num, size)))
    found = choices(values, size, wanted, seed=data.draw(st.integers(0, 5)))
    assert len(set(found)) == len(found) == wanted
    assert all(len(set(trained)) == size for trained in found)
    held = Counter(v for trained in found for v in set(values) - set(trained))
    assert sum(held.values()) == wanted * (num - size)
    if wanted * (num - size) <= num:  # one round: nothing twice
        assert max(held.values()) == 1


def test_no_number_wanted_means_all_there_are() -> None:
    assert choices("abc", 2, 0, 0) == [("a", "b"), ("a", "c"), ("b", "c")]


def planted(right: dict[tuple[str, str], float], seeds: int = 2) -> Rows:
    """20 rows in 10 groups of each value, the first of them answered rightly."""
    lines = [
        (setting, 2, f"fold {seed}", value, i % 2, f"{value} {i}", f"{value} {i // 2}", float(i < 20 * share))
        for (setting, value), share in right.items() for seed in range(seeds) for i in range(20)
    ]  # fmt: skip
    names = ("setting", "size", "fold", "value", "truth", "row", "group", "score")
    columns = {n: np.array(c) for n, c in zip(names, zip(*lines, strict=True), strict=True)}
    return Rows("accuracy", ["a", "b"], **columns, weight=np.ones(len(lines)))


VALUES = [f"v{i}" for i in range(6)]


def test_the_worst_value_ranks_and_not_the_mean() -> None:
    steady = {("steady", v): 0.7 for v in VALUES}
    uneven = {("uneven", v): 0.1 if v == "v3" else 1.0 for v in VALUES}
    found = standings(planted(uneven | steady))
    assert [one.setting for one in found] == ["steady", "uneven"]
    assert (found[1].worst, found[1].lowest.value) == ("v3", pytest.approx(0.1))
    assert found[1].mean.value == pytest.approx((0.1 + 5) / 6)
    assert found[1].mean.num_groups == 6
    assert found[1].lowest.num_groups == 10


def test_differences_are_paired_over_values_and_corrected_together() -> None:
    better = {("a", v): 0.9 for v in VALUES}
    better |= {("b", v): 0.5 + 0.05 * (-1) ** i for i, v in enumerate(VALUES)}
    same = {("c", v): 0.5 for v in VALUES}
    found = {(d.first, d.second): d for d in differences(planted(better | same))}
    assert found["a", "b"].estimate.value == pytest.approx(0.4)
    assert found["a", "b"].verdict == "a is better"
    assert found["a", "b"].estimate.num_groups == len(VALUES)
    assert found["b", "c"].p_holm == 1.0
    assert all(d.p_holm >= d.p for d in found.values())


def test_repeating_all_folds_makes_no_interval_narrower() -> None:
    right = {("a", v): 0.5 + 0.08 * i for i, v in enumerate(VALUES)}
    few, many = (by_size(planted(right, seeds))["a"][2] for seeds in (1, 4))
    assert (few.low, few.high) == pytest.approx((many.low, many.high), abs=1e-6)
    few, many = (by_value(planted(right, seeds))["a"]["v0"] for seeds in (1, 4))
    assert (few.low, few.high) == pytest.approx((many.low, many.high), abs=1e-6)
