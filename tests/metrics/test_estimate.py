"""Intervals against scipy, closed forms, and simulated truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.errors import PredictionsError
from assay.metrics.estimate import (
    Estimate,
    bracket,
    interval,
    interval_by,
    interval_of,
    p_value,
    signed,
)

NUM_SIMULATIONS = 400  # a standard error of 0.011 on a coverage of 0.95


def drawn_shares(
    rng: np.random.Generator, share: float, num_groups: int, alike: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw hits in groups of 1 to 5, which are `alike` (intra-group correlation) within a group."""
    group = np.repeat(np.arange(num_groups), rng.integers(1, 6, num_groups))
    if alike == 0:
        chance = np.full(num_groups, share)
    elif alike == 1:
        chance = (rng.random(num_groups) < share).astype(float)
    else:
        size = (1 - alike) / alike
        chance = rng.beta(share * size, (1 - share) * size, num_groups)
    return (rng.random(len(group)) < chance[group]).astype(float), group


def coverage(share: float, num_groups: int, alike: float) -> float:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(NUM_SIMULATIONS):
        values, group = drawn_shares(rng, share, num_groups, alike)
        estimate = interval(values, group)
        covered += estimate.low <= share <= estimate.high
    return covered / NUM_SIMULATIONS


@pytest.mark.parametrize(
    ("share", "num_groups", "alike"), [(0.5, 20, 1.0), (0.9, 20, 0.3), (0.7, 60, 0.3)]
)
def test_95_of_100_intervals_hold_the_truth(
    share: float, num_groups: int, alike: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.metrics.estimate._NUM_RESAMPLES", 200)
    assert 0.92 <= coverage(share, num_groups, alike) <= 0.985


def test_an_interval_that_ignores_groups_is_too_narrow() -> None:
    """The planted error: images of one part counted as independent."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        hits = np.repeat((rng.random(40) < 0.7).astype(float), 6)
        estimate = interval(hits, np.arange(240))
        covered += estimate.low <= 0.7 <= estimate.high
    assert covered / 200 < 0.75


def test_single_samples_get_wilsons_interval_with_students_t() -> None:
    hits = np.array([1.0] * 30 + [0.0] * 10)
    estimate = interval(hits, np.arange(40))
    expected = stats.binomtest(30, 40).proportion_ci(0.95, method="wilson")
    # 39 groups are free: a little wider than with the normal quantile, never narrower
    assert estimate.low == pytest.approx(expected.low, abs=0.012)
    assert estimate.high == pytest.approx(expected.high, abs=0.012)
    assert estimate.high - estimate.low > expected.high - expected.low


def test_spread_is_that_of_scipys_bootstrap_over_groups() -> None:
    rng = np.random.default_rng(1)
    values, group = drawn_shares(rng, 0.6, 150, 0.3)
    sums, sizes = np.bincount(group, weights=values), np.bincount(group)
    scipys = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    estimate = interval(values, group)
    assert estimate.low == pytest.approx(scipys.low, abs=0.008)
    assert estimate.high == pytest.approx(scipys.high, abs=0.008)


def test_many_groups_meet_the_bootstrap_where_the_jackknife_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, group = drawn_shares(np.random.default_rng(2), 0.8, 1500, 0.3)
    bootstrapped = interval(values, group)
    monkeypatch.setattr("assay.metrics.estimate._MOST_BOOTSTRAPPED", 10)
    jackknifed = interval(values, group)
    width = bootstrapped.high - bootstrapped.low
    assert jackknifed.low == pytest.approx(bootstrapped.low, abs=0.06 * width)
    assert jackknifed.high == pytest.approx(bootstrapped.high, abs=0.06 * width)


def test_no_spread_is_wilson_over_groups() -> None:
    estimate = interval(np.ones(60), np.repeat(np.arange(20), 3))
    quantile = stats.t.ppf(0.975, 19)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(20 / (20 + quantile**2))


def test_one_group_says_nothing() -> None:
    estimate = interval(np.array([1.0, 0.0]), np.zeros(2, dtype=int), lowest=-1.0)
    assert (estimate.value, estimate.low, estimate.high, estimate.num_groups) == (0.5, -1.0, 1.0, 1)
    assert p_value(np.array([1.0, 1.0]), np.zeros(2, dtype=int)) == 1.0


def test_a_ratio_of_sums_is_weighted_and_differs_from_the_mean_of_ratios() -> None:
    union = np.array([10.0, 30.0, 0.0, 60.0])
    estimate = interval(np.array([0.5, 1.0, 0.0, 0.25]), np.arange(4), weights=union)
    assert estimate.value == pytest.approx((5 + 30 + 15) / 100)


def test_a_statistic_of_counts_by_hand() -> None:
    parts = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    estimate = interval_of(parts, np.arange(3), lambda s: 2 * s[:, 0] / (s[:, 0] + s[:, 1]))
    assert estimate.value == pytest.approx(4 / 5)


def test_by_draws_agrees_with_by_sums() -> None:
    values, group = drawn_shares(np.random.default_rng(4), 0.6, 80, 0.3)
    sums, sizes = np.bincount(group, weights=values), np.bincount(group)
    expected = interval(values, group)
    estimate = interval_by(lambda w: float(w @ sums / (w @ sizes)), len(values), 80)
    assert estimate.value == pytest.approx(expected.value)
    assert estimate.high - estimate.low == pytest.approx(expected.high - expected.low, rel=0.15)


@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=60),
    num_groups=st.integers(2, 9),
)
def test_p_is_below_a_twentieth_exactly_when_zero_is_left_out(
    values: list[float], num_groups: int
) -> None:
    group = np.arange(len(values)) % num_groups
    estimate = interval(np.array(values), group, lowest=-1.0)
    p = p_value(np.array(values), group)
    assert 0 < p <= 1
    assert estimate.low <= estimate.value <= estimate.high
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (not estimate.low <= 0 <= estimate.high)


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    order=st.randoms(use_true_random=False),
)
def test_order_of_rows_and_names_of_groups_do_not_matter(
    values: list[float], order: object
) -> None:
    numbers, group = np.array(values), np.arange(len(values)) // 3
    estimate = interval(numbers, group)
    rows = list(range(len(values)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    shuffled = interval(numbers[rows], np.array([f"x{97 - g}" for g in group])[rows])
    assert shuffled.low == pytest.approx(estimate.low, abs=1e-9)
    assert shuffled.high == pytest.approx(estimate.high, abs=1e-9)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize(
    ("values", "weights"),
    [([math.nan, 1.0], [1.0, 1.0]), ([0.5, 0.5], [0.0, 0.0]), ([3.0, 0.0], [1.0, 0.0])],
)
def test_what_is_no_number_in_range_is_refused(values: list[float], weights: list[float]) -> None:
    with pytest.raises(PredictionsError, match="A statistic of 2 rows is"):
        interval(np.array(values), np.arange(2), weights=np.array(weights))


def test_an_estimate_reads_as_a_sentence() -> None:
    estimate = Estimate(value=0.9123, low=0.8731, high=0.9444, num=120, num_groups=60)
    assert str(estimate) == "0.912 [0.873, 0.944] (n=120 in 60 groups)"
    assert bracket(estimate) == "0.912 [0.873, 0.944]"
    difference = Estimate(value=0.0314, low=-0.012, high=0.0741, num=120, num_groups=60)
    assert signed(difference) == "+0.031 [-0.012, +0.074]"
