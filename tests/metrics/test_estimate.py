"""Intervals against scipy, closed forms, and simulated truth."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.errors import PredictionsError
from assay.metrics.estimate import (
    FEWEST,
    Estimate,
    bracket,
    difference,
    interval,
    interval_by,
    interval_of,
    signed,
)
from assay.metrics.jackknife import effective_number

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
    ("share", "num_groups", "alike"),
    [(0.5, 20, 1.0), (0.9, 20, 0.3), (0.7, 60, 0.3), (0.98, 12, 0.0)],
)
def test_95_of_100_intervals_hold_the_truth(share: float, num_groups: int, alike: float) -> None:
    assert 0.92 <= coverage(share, num_groups, alike) <= 0.995


def uneven(rng: np.random.Generator, num_groups: int) -> np.ndarray:
    """Draw the group of each row: lognormal sizes of 1 to 60."""
    sizes = np.exp(rng.normal(np.log(6), 1.2, num_groups)).round().clip(1, 60).astype(int)
    return np.repeat(np.arange(num_groups), sizes)


@pytest.mark.parametrize(("share", "alike"), [(0.9, 1.0), (0.98, 0.3)])
def test_groups_of_unequal_size_are_covered_too(share: float, alike: float) -> None:
    """A bootstrap's standard error with Student's t of 59 holds the truth in 84 of 100 here."""
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(NUM_SIMULATIONS):
        group = uneven(rng, 60)
        size = (1 - alike) / alike
        drawn = rng.beta(share * size, (1 - share) * size, 60) if size else rng.random(60) < share
        estimate = interval((rng.random(len(group)) < drawn[group]).astype(float), group)
        covered += estimate.low <= share <= estimate.high
    assert 0.92 <= covered / NUM_SIMULATIONS <= 0.995


def test_two_masks_that_are_alike_are_seldom_called_different() -> None:
    """The IoU is a ratio of sums; in a bootstrap one in ten was called different."""
    rng = np.random.default_rng(8)
    called = 0
    for _ in range(NUM_SIMULATIONS):
        group = uneven(rng, 20)
        ease, union = rng.normal(1, 0.6, 20), rng.lognormal(4, 1, (2, len(group)))
        quality = 1 / (1 + np.exp(-(ease + rng.normal(0, 0.4, (2, 20)))))[:, group]
        _, p = difference((quality[0], union[0]), (quality[1], union[1]), group)
        called += p < 0.05
    assert 0.02 <= called / NUM_SIMULATIONS <= 0.08


def test_where_two_of_14_blocks_hold_nearly_all_the_interval_is_wide_and_says_so() -> None:
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(100):
        union = np.r_[[2400.0] * 2, [100.0] * 12] * rng.uniform(0.8, 1.2, 14)
        estimate = interval(rng.beta(7, 3, 14), np.arange(14), weights=union)
        covered += estimate.low <= 0.7 <= estimate.high
        assert 2.5 < estimate.effective < FEWEST
    assert covered >= 95
    words = f"effective {estimate.effective:.1f}"
    assert f"14 groups, {words})" in str(estimate)
    assert f"too few or too unequal groups to compare ({words} of 14)" in estimate.undecided


def test_groups_just_too_unequal_do_not_read_as_enough() -> None:
    weights = np.array([1.0, 1.0, 1.0, 1.05])
    estimate = interval(np.array([0.2, 0.4, 0.6, 0.8]), np.arange(4), weights=weights)
    assert FEWEST - 0.01 < estimate.effective < FEWEST
    assert "(effective 3.9 of 4); not decided" in estimate.undecided
    assert "4 groups, effective 3.9)" in str(estimate)


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


def test_the_interval_of_one_row_a_group_by_hand() -> None:
    """Of single rows the jackknife is s / sqrt(n), so the interval is Wilson's by Student's t."""
    values = np.array([0.1, 0.4, 0.4, 0.7, 0.9, 0.2])
    estimate = interval(values, np.arange(6))
    mean, num = values.mean(), len(values)
    independent = mean * (1 - mean) / (values.var(ddof=1) / num)
    quantile = stats.t.ppf(0.975, num - 1)
    centre = (mean + quantile**2 / 2 / independent) / (1 + quantile**2 / independent)
    assert (estimate.low + estimate.high) / 2 == pytest.approx(centre)
    # Wilson's ends are where the score is the quantile
    for end in (estimate.low, estimate.high):
        score = abs(mean - end) / math.sqrt(end * (1 - end) / independent)
        assert score == pytest.approx(quantile)


def test_the_difference_of_two_means_is_the_paired_t_test() -> None:
    """Nearly: Wilson's form of a small difference in a range of 2 is Student's."""
    rng = np.random.default_rng(6)
    first = rng.uniform(0.4, 0.6, 30)
    second = first + rng.normal(0.01, 0.03, 30)
    estimate, p = difference((first, np.ones(30)), (second, np.ones(30)), np.arange(30))
    expected = stats.ttest_rel(first, second)
    assert p == pytest.approx(expected.pvalue, rel=0.02)
    low, high = expected.confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-3)


def test_methods_that_never_differed_differ_by_less_than_the_share_that_may_go_unseen() -> None:
    """40 groups of which none differs are seen once in 40 where 8.8 % of all do."""
    values = np.repeat([0.0, 1.0], 60)
    both = values, np.ones(120)
    estimate, p = difference(both, both, np.arange(120) % 40)
    assert (estimate.value, p) == (0.0, 1.0)
    assert (1 - estimate.high) ** 40 == pytest.approx(0.025)
    assert estimate.low == -estimate.high


def test_rows_alike_within_groups_widen_a_share_as_their_correlation_says() -> None:
    """All errors are in groups of two rows of all wrong: in large groups they would come so too."""
    group = np.repeat(np.arange(40), [2] * 20 + [20] * 20)
    values = np.ones(len(group))
    values[:6] = 0  # three whole groups
    estimate = interval(values, group)
    sizes = np.bincount(group)
    share, weights = values.mean(), sizes / sizes.sum()
    independent = 1 / (weights**2).sum()  # rows of a group say nothing more than one
    # all 40 groups tell how alike the rows of one are; the mean takes its part
    quantile = stats.t.ppf(0.975, 40 * (1 - 1 / independent))
    ratio = quantile**2 / independent
    half = math.sqrt(share * (1 - share) * ratio + ratio**2 / 4) / (1 + ratio)
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=1e-6)


def test_means_over_the_same_rows_are_free_as_one_is() -> None:
    """The average of two equal columns is either of them, and so is its interval; of rows apart each takes its own."""
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(12), rng.integers(2, 9, 12))
    hits, ones = (rng.random(group.size) < 0.7).astype(float), np.ones(group.size)

    def average(sums: np.ndarray) -> np.ndarray:
        return (sums[:, 0] / sums[:, 2] + sums[:, 1] / sums[:, 3]) / 2

    def of(mass: np.ndarray) -> Estimate:
        return interval_of(np.hstack([hits[:, None] * mass, mass]), group, average, mass=mass)

    both = of(np.stack([ones, ones], axis=1))
    assert both.value == pytest.approx(hits.mean())
    assert (both.low, both.high) == pytest.approx(
        (interval(hits, group).low, interval(hits, group).high), rel=1e-6
    )
    first = (group % 2 == 0).astype(float)
    apart = of(np.stack([first, 1 - first], axis=1))
    assert apart.high - apart.low > both.high - both.low


def test_ten_thousand_rows_of_two_hundred_groups_take_well_under_a_second() -> None:
    rng = np.random.default_rng(0)
    group, values = rng.integers(0, 200, 10_000), (rng.random(10_000) < 0.9).astype(float)
    began = time.process_time()
    interval(values, group)
    assert time.process_time() - began < 0.3


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 1, 1, 1], 4.0), ([1, 0, 0], 1.0), ([3, 1], 16 / 10), ([0, 0], 2.0)],
)
def test_the_effective_number_of_groups_by_hand(weights: list[float], expected: float) -> None:
    assert effective_number(np.array(weights, dtype=float)) == pytest.approx(expected)


def test_no_spread_is_wilson_over_groups() -> None:
    estimate = interval(np.ones(60), np.repeat(np.arange(20), 3))
    quantile = stats.t.ppf(0.975, 19)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(20 / (20 + quantile**2))


def test_one_group_says_nothing() -> None:
    estimate = interval(np.array([1.0, 0.0]), np.zeros(2, dtype=int), lowest=-1.0)
    assert (estimate.value, estimate.low, estimate.high, estimate.num_groups) == (0.5, -1.0, 1.0, 1)
    assert estimate.undecided.endswith("(effective 1.0 of 1); not decided")
    both = np.ones(2), np.ones(2)
    assert difference(both, (np.zeros(2), np.ones(2)), np.zeros(2, dtype=int))[1] == 1.0


def test_a_ratio_of_sums_is_weighted_and_differs_from_the_mean_of_ratios() -> None:
    union = np.array([10.0, 30.0, 0.0, 60.0])
    estimate = interval(np.array([0.5, 1.0, 0.0, 0.25]), np.arange(4), weights=union)
    assert estimate.value == pytest.approx((5 + 30 + 15) / 100)


def test_a_statistic_of_counts_by_hand() -> None:
    parts = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    estimate = interval_of(
        parts,
        np.arange(3),
        lambda s: 2 * s[:, 0] / (s[:, 0] + s[:, 1]),
        mass=parts.sum(axis=1, keepdims=True),
    )
    assert estimate.value == pytest.approx(4 / 5)


@pytest.mark.parametrize("num_groups", [80, 900])
def test_by_draws_agrees_with_by_sums(num_groups: int) -> None:
    values, group = drawn_shares(np.random.default_rng(4), 0.6, num_groups, 0.3)
    sums, sizes = np.bincount(group, weights=values), np.bincount(group)
    expected = interval(values, group)
    mass = np.ones((len(group), 1))
    estimate = interval_by(lambda w: float(w @ sums / (w @ sizes)), group, mass)
    assert estimate.value == pytest.approx(expected.value)
    assert estimate.high - estimate.low == pytest.approx(expected.high - expected.low, rel=0.1)


def test_of_one_group_with_weight_nothing_is_known() -> None:
    values, group, weights = np.array([0.2, 0.9, 0.4]), np.arange(3), np.array([0.0, 5.0, 0.0])
    estimate = interval(values, group, weights=weights)
    assert (estimate.value, estimate.low, estimate.high) == (0.9, 0.0, 1.0)
    apart, p = difference((values, weights), (values / 2, weights), group)
    assert (apart.low, apart.high, p) == (-1.0, 1.0, 1.0)


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=2,
        max_size=60,
    ),
    num_groups=st.integers(2, 9),
    heavy=st.sampled_from([0.0, 1.0, 50.0, 1e9]),
)
def test_p_is_below_a_twentieth_exactly_when_zero_is_left_out(
    pairs: list[tuple[float, float]], num_groups: int, heavy: float
) -> None:
    first, second = np.array(pairs).T
    weights = np.r_[heavy, np.ones(len(pairs) - 1)]
    estimate, p = difference(
        (first, weights), (second, weights), np.arange(len(pairs)) % num_groups
    )
    assert 0 < p <= 1
    assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1
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
