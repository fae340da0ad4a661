"""calibration.py against scikit-learn, scipy, closed forms and simulation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from assay.metrics.calibration import ece, estimate_gaps, fit_temperature
from assay.metrics.scores.classes import row_nll, softmax

# Temperature


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_temperature_is_scipys_optimum(random_scores: Callable[..., Any], scale: float) -> None:
    logits, truth = random_scores(1)
    logits = logits * np.float32(scale)

    def loss(log_temperature: float) -> float:
        return float(log_loss(truth, softmax(logits / np.exp(log_temperature)), labels=range(3)))

    best = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-7})
    assert fit_temperature(logits, truth) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_temperature_recovers_a_planted_one() -> None:
    rng = np.random.default_rng(0)
    calibrated = rng.normal(scale=2.0, size=(40_000, 4))
    truth = (calibrated + rng.gumbel(size=calibrated.shape)).argmax(axis=1)  # ~ softmax(logits)
    assert fit_temperature(3.0 * calibrated, truth) == pytest.approx(3.0, rel=0.03)


def test_temperature_has_limits_and_a_neutral_value() -> None:
    right, truth = np.eye(3) * 0.01, np.arange(3)
    assert fit_temperature(right, truth) == pytest.approx(0.01)
    assert fit_temperature(right, (truth + 1) % 3) == pytest.approx(100.0)
    assert fit_temperature(np.zeros((3, 3)), truth) == 1.0


def test_nll_and_softmax_survive_huge_logits() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], dtype=np.float32)
    np.testing.assert_array_equal(row_nll(logits, np.array([0, 0])), [0.0, 1e4])
    np.testing.assert_array_equal(softmax(logits), np.eye(2))


def test_nll_is_sklearns(random_scores: Callable[..., Any]) -> None:
    logits, truth = random_scores(2)
    expected = log_loss(truth, softmax(logits), labels=range(3))
    assert row_nll(logits, truth).mean() == pytest.approx(expected)


# Calibration error


def test_ece_by_hand() -> None:
    probs = np.array([[0.62, 0.38], [0.65, 0.35], [0.69, 0.31], [0.05, 0.95], [0.98, 0.02]])
    truth = np.array([0, 1, 0, 1, 0])
    # bin (9/15, 10/15]: confidences .62 and .65, one hit of two: |1 - 1.27| = .27
    # bin (10/15, 11/15]: confidence .69, a hit: |1 - .69| = .31
    # bin (14/15, 1]: confidences .95 and .98, two hits of two: |2 - 1.93| = .07
    estimate = ece(probs, truth, np.array(["a", "a", "b", "b", "c"]))
    assert estimate.value == pytest.approx((0.27 + 0.31 + 0.07) / 5)
    assert (estimate.num, estimate.num_groups) == (5, 3)


def test_ece_does_not_cancel_between_bins() -> None:
    probs = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    truth = np.array([0, 0, 0, 1])  # under-confident by .4 in one bin, over-confident in another
    assert ece(probs, truth, np.arange(4)).value == pytest.approx((0.8 + 0.8) / 4)


def test_ece_of_sure_and_right_is_zero_and_of_one_group_unknown() -> None:
    assert ece(np.array([[1.0, 0.0]] * 3), np.zeros(3, dtype=int), np.arange(3)).value == 0.0
    estimate = ece(np.array([[0.7, 0.3]] * 3), np.zeros(3, dtype=int), np.zeros(3, dtype=int))
    assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(0.3), 0.0, 1.0)


def test_ece_that_all_groups_share_is_as_unsure_as_a_share() -> None:
    group = np.repeat(np.arange(20), np.arange(20) % 5 + 1)  # of any size
    estimate = ece(np.full((group.size, 2), [0.7, 0.3]), np.zeros(group.size, dtype=int), group)
    sizes = np.bincount(group, minlength=20)
    effective = sizes.sum() ** 2 / (sizes**2).sum()  # as many hits of so many at Student's t
    ratio = stats.t.ppf(0.975, effective - 1) ** 2 / effective
    centre = (estimate.value + ratio / 2) / (1 + ratio)
    assert (estimate.low + estimate.high) / 2 == pytest.approx(centre)
    assert estimate.low < 0.2 < 0.3 < 0.4 < estimate.high


def scaled(rng: Any, num_groups: int, scale: float) -> tuple[Any, Any, Any]:
    """Draw probabilities that are right at scale 1, and too sure above; alike within a group."""
    group = np.repeat(np.arange(num_groups), rng.integers(3, 10, num_groups))
    logits = rng.normal(scale=1.5, size=(num_groups, 3))[group] + rng.normal(size=(group.size, 3))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return softmax(scale * logits), truth, group


@pytest.mark.parametrize("num_groups", [12, 200])
@pytest.mark.parametrize("scale", [1.0, 1.25, 3.0])
def test_the_interval_of_ece_covers_the_truth(num_groups: int, scale: float) -> None:
    """Measured in 1000 simulations (coverage.md): 97 to 100 %; the percentiles of a bootstrap hold 0 never."""
    rng = np.random.default_rng(num_groups)
    expected = 0.0 if scale == 1 else ece(*scaled(rng, 50_000, scale)).value
    covered = 0
    for _ in range(150):
        estimate = ece(*scaled(rng, num_groups, scale))
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        covered += estimate.low <= expected <= estimate.high
    assert covered / 150 >= 0.93


@pytest.mark.parametrize("sign", [1, -1])
def test_of_one_clear_gap_the_interval_is_students(sign: int) -> None:
    """Groups of four in one bin: the gap is the mean of the groups' means, and of one sign."""
    group = np.repeat(np.arange(30), 4)
    sums = np.where(np.arange(30) % 3 == 0, 3.0, 2.0) * sign
    estimate = estimate_gaps(sums[:, None], np.full(30, 4.0), group.size)
    low, high = stats.ttest_1samp(abs(sums) / 4, 0).confidence_interval()
    assert estimate.value == pytest.approx(abs(sums).mean() / 4)
    assert (estimate.low, estimate.high) == (
        pytest.approx(low, abs=4e-3),
        pytest.approx(high, abs=4e-3),
    )


def test_where_no_gap_is_clear_the_interval_begins_at_0() -> None:
    """Each group has its gap in a bin of its own, so that chance alone has as much."""
    estimate = estimate_gaps(np.diag([1.0, -1.0] * 6), np.full(12, 4.0), 48)
    assert estimate.value == pytest.approx(12 / 48)
    assert estimate.low == 0.0 < estimate.value < estimate.high
