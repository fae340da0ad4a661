"""Folds: even choices, equal updates, and numbers that planted rows must give."""

from collections import Counter
from math import comb

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.manifest import Manifest
from assay.errors import ConfigError
from assay.sweep.folds import choices, plan
from assay.sweep.generalization import Rows, by_size, by_value, differences, standings
from assay.train.task_config import TaskConfig


@given(st.integers(2, 9), st.data())
def test_choices_are_distinct_and_hold_out_all_values_evenly(num: int, data: st.DataObject) -> None:
    values = [f"v{i}" for i in range(num)]
    size = data.draw(st.integers(1, num - 1))
    wanted = data.draw(st.integers(1, comb(num, size)))
    seeds = data.draw(st.integers(1, 4))
    drawn = choices(values, size, wanted, seeds)
    assert len(drawn) == seeds
    counts: Counter[str] = Counter()
    for sets in drawn:
        assert len(set(sets)) == len(sets) == wanted
        for trained in sets:
            assert len(set(trained)) == size
            counts.update(set(values) - set(trained))
    assert counts.total() == seeds * wanted * (num - size)
    if wanted == 1:  # a choice a seed: none in the way of another, and as even as can be
        assert max(counts.values()) - min(counts[value] for value in values) <= 1


def test_the_default_sweep_tests_every_design_at_every_size() -> None:
    designs = [f"d{i}" for i in range(9)]
    for size in (1, 3, 6):
        sets = [trained for seed in choices(designs, size, 2, 2) for trained in seed]
        assert set.union(*(set(designs) - set(trained) for trained in sets)) == set(designs)


def test_more_seeds_leave_the_draws_of_the_first_as_they_were() -> None:
    assert choices("abcdefg", 3, 2, 5)[:2] == choices("abcdefg", 3, 2, 2)


def test_no_number_wanted_means_all_there_are() -> None:
    assert choices("abc", 2, 0, 2) == [[("a", "b"), ("a", "c"), ("b", "c")]] * 2


def test_one_value_makes_no_folds() -> None:
    columns = {"id": ["a", "b"], "domain.printer": ["p1", "p1"]}
    with pytest.raises(ConfigError, match=r"one value of 'printer' \(p1\).*another --fold-column"):
        plan({"erm": [TaskConfig()]}, Manifest(pa.table(columns)), "printer", [0], 0, 1)


def planted(right: dict[tuple[str, str], float], seeds: int = 2) -> Rows:
    """20 rows in 10 groups of each value, the first of them answered rightly."""
    lines = []
    for number, ((setting, value), share) in enumerate(right.items()):
        for seed in range(seeds):
            trial = (number * seeds + seed, setting, 2, f"fold {seed}", value)
            for i in range(20):
                names = (f"{value} {i}", f"{value} {i // 2}")
                lines.append((*trial, i % 2, *names, float(i < 20 * share)))
    names = ("trial", "setting", "size", "fold", "value", "truth", "row", "group", "score")
    columns = {n: np.array(c) for n, c in zip(names, zip(*lines, strict=True), strict=True)}
    return Rows("accuracy", ["a", "b"], **columns, weight=np.ones(len(lines)))


VALUES = [f"v{i}" for i in range(6)]


def test_val_ranks_and_never_the_test_values() -> None:
    steady = {("steady", v): 0.7 for v in VALUES}
    uneven = {("uneven", v): 0.1 if v == "v3" else 1.0 for v in VALUES}
    rows = planted(steady | uneven)
    first, second = standings(rows, {"steady": 0.9, "uneven": 0.95})
    assert (first.setting, second.setting) == (
        "uneven",
        "steady",
    )  # though steady is better on test
    assert [r.setting for r in standings(rows, {"uneven": None})] == ["steady", "uneven"]
    first, second = standings(rows, {"steady": 0.9, "uneven": 0.8})
    assert (first.setting, second.setting, second.val) == ("steady", "uneven", 0.8)
    assert (second.worst, second.lowest.value) == ("v3", pytest.approx(0.1))
    assert second.mean.value == pytest.approx((0.1 + 5) / 6)
    assert second.mean.num_groups == 6
    assert second.lowest.num_groups == 10


def test_differences_are_paired_over_values_and_corrected_together() -> None:
    better = {("a", v): 0.9 for v in VALUES}
    better |= {("b", v): 0.5 + 0.05 * (-1) ** i for i, v in enumerate(VALUES)}
    same = {("c", v): 0.5 for v in VALUES}
    pairs = {(d.first, d.second): d for d in differences(planted(better | same))}
    assert pairs["a", "b"].estimate.value == pytest.approx(0.4)
    assert pairs["a", "b"].verdict == "a is better"
    assert pairs["a", "b"].estimate.num_groups == len(VALUES)
    assert pairs["b", "c"].p_holm == 1.0
    assert all(d.p_holm >= d.p for d in pairs.values())


def test_repeating_all_folds_makes_no_interval_narrower() -> None:
    right = {("a", v): 0.5 + 0.08 * i for i, v in enumerate(VALUES)}
    few, many = (by_size(planted(right, seeds))["a"][2] for seeds in (1, 4))
    assert (few.low, few.high) == pytest.approx((many.low, many.high), abs=1e-6)
    few, many = (by_value(planted(right, seeds))["a"]["v0"] for seeds in (1, 4))
    assert (few.low, few.high) == pytest.approx((many.low, many.high), abs=1e-6)
