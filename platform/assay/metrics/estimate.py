"""An estimate: a number with its 95 % interval over groups and its n.

Samples of one part are not independent, so whole groups are drawn: the standard error is that of a
bootstrap over groups. The percentiles of a bootstrap are too narrow with few groups and have no
width near 0 and 1, so the interval around the value is Wilson's, with the number of independent
samples that this standard error amounts to, and Student's t for the groups it was found from.

Conventions
    one group    nothing is known about the spread: the whole range.
    no spread    all groups say the same: as many independent samples as groups.
    many groups  the jackknife over groups takes the place of the bootstrap, whose limit it has.

Sources: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Wilson,
1927; Franco, Little, Louis and Slud, Comparative Study of Confidence Intervals for Proportions in
Complex Sample Surveys, 2019 (score intervals at an effective sample size).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from assay.errors import PredictionsError
from assay.shapes import Bool, Float, Shaped

_NUM_RESAMPLES = 2000


_MOST_BOOTSTRAPPED = 2000


_NUM_RANKED = 200


_BATCH = 2_000_000


Statistic = Callable[[np.ndarray], np.ndarray]
"""Sums over rows (draws d) to one number per draw (draws)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    """What was measured on all samples."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    num: int
    """Number of samples."""
    num_groups: int
    """Number of groups the samples belong to, which is what the interval is drawn over."""

    def __str__(self) -> str:
        """Return a text such as "0.912 [0.873, 0.944] (n=120 in 60 groups)"."""
        groups = "group" if self.num_groups == 1 else "groups"
        return f"{bracket(self)} (n={self.num} in {self.num_groups} {groups})"


def bracket(estimate: Estimate) -> str:
    """Return an estimate with its interval, such as "0.871 [0.812, 0.911]"."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def signed(difference: Estimate) -> str:
    """Return a difference with its interval, such as "+0.031 [-0.012, +0.074]"."""
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def interval_of(
    parts: Float[np.ndarray, "num d"],
    group: Shaped[np.ndarray, " num"],
    statistic: Statistic,
    *,
    lowest: float = 0.0,
    highest: float = 1.0,
    seed: int = 0,
) -> Estimate:
    """Estimate any statistic of sums over rows, such as F1 from counts.

    Args:
        parts: What each row adds to the sums.
        group: The group of each row.
        statistic: From sums (draws d) to numbers (draws); where a draw leaves it undefined, NaN.
        lowest: The least the statistic can be.
        highest: The most it can be.
        seed: Of the bootstrap; the order of rows does not matter.

    Raises:
        PredictionsError: A part is not finite, or the statistic of all rows is undefined or
            outside its range.
    """
    codes = np.unique(group, return_inverse=True)[1]
    sums = np.stack([np.bincount(codes, weights=column) for column in parts.T], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(sums.sum(axis=0)[None])[0])
        spread = _standard_error(sums, statistic, seed) if len(sums) > 1 else 0.0
    if not (np.isfinite(parts).all() and lowest - 1e-9 <= value <= highest + 1e-9):
        raise PredictionsError(
            f"A statistic of {len(parts)} rows is {value}, allowed are {lowest:g} to {highest:g}; "
            "look for rows that are not finite, or that bear no weight at all."
        )
    return _estimate(value, spread, lowest, highest, len(parts), len(sums))


def interval_by(
    statistic: Callable[[Float[np.ndarray, " groups"]], float],
    num: int,
    num_groups: int,
    *,
    lowest: float = 0.0,
    highest: float = 1.0,
    seed: int = 0,
) -> Estimate:
    """Estimate what is no function of sums, such as the area under a curve of ranked rows.

    Args:
        statistic: From how often each group was drawn to a number.
        num: Number of rows.
        num_groups: Number of groups.
        lowest: The least the statistic can be.
        highest: The most it can be.
        seed: Of the bootstrap, of 200 draws.
    """
    rng, chances = np.random.default_rng(seed), np.full(num_groups, 1 / num_groups)
    spread = 0.0
    if num_groups > 1:
        resampled = [
            statistic(rng.multinomial(num_groups, chances).astype(float))
            for _ in range(_NUM_RANKED)
        ]
        spread = float(np.std(resampled)) * math.sqrt(num_groups / (num_groups - 1))
    value = statistic(np.ones(num_groups))
    return _estimate(value, spread, lowest, highest, num, num_groups)


def _estimate(
    value: float, spread: float, lowest: float, highest: float, num: int, num_groups: int
) -> Estimate:
    """Put the interval around a value with this standard error."""
    value = min(max(value, lowest), highest)
    low, high = lowest, highest
    if num_groups > 1:
        width = highest - lowest
        share = (value - lowest) / width
        independent = _effective(share, spread / width, num_groups)
        ends = _score_interval(share, independent, _t_quantile(0.975, num_groups - 1))
        low, high = (lowest + width * end for end in ends)
    return Estimate(
        value=value, low=min(low, value), high=max(high, value), num=num, num_groups=num_groups
    )


def interval(
    values: Float[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
    *,
    weights: Float[np.ndarray, " num"] | None = None,
    lowest: float = 0.0,
    highest: float = 1.0,
    seed: int = 0,
) -> Estimate:
    """Estimate a (weighted) mean over samples.

    Args:
        values: One number per sample, between `lowest` and `highest` (a hit is 1, a miss 0).
        group: The group of each sample.
        weights: Of each sample, not all 0; None: 1. Hits / unions with unions for weights is a
            ratio of sums, such as a micro IoU.
        lowest: The least a value can be: 0 for shares, -1 for differences of shares.
        highest: The most a value can be.
        seed: Of the bootstrap.

    Raises:
        PredictionsError: A value or weight is not finite, or all weights are 0.
    """
    weights = np.ones(len(values)) if weights is None else weights
    parts = np.stack([values * weights, weights], axis=1)
    return interval_of(
        parts, group, lambda s: s[:, 0] / s[:, 1], lowest=lowest, highest=highest, seed=seed
    )


def share_of(
    hits: Bool[np.ndarray, " num"],
    among: Bool[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
) -> Estimate | None:
    """Estimate the share of hits among some of the rows; None where these are none."""
    return interval(hits[among].astype(float), group[among]) if among.any() else None


def p_value(
    values: Float[np.ndarray, " num"], group: Shaped[np.ndarray, " num"], *, seed: int = 0
) -> float:
    """Return the two-sided p of "the mean of these differences, from -1 to 1, is 0".

    It is below .05 exactly when `interval(values, group, lowest=-1)` leaves out 0; 1 for one group.
    """
    from scipy.special import stdtr  # a bundle opens without it

    codes = np.unique(group, return_inverse=True)[1]
    sums = np.stack([np.bincount(codes, weights=values), np.bincount(codes)], axis=1)
    if len(sums) == 1:
        return 1.0
    spread = _standard_error(sums, lambda s: s[:, 0] / s[:, 1], seed)
    share = (float(values.mean()) + 1) / 2
    num = _effective(share, spread / 2, len(sums))
    return float(2 * stdtr(len(sums) - 1, -abs(share - 0.5) * 2 * math.sqrt(num)))


def _standard_error(sums: Float[np.ndarray, "groups d"], statistic: Statistic, seed: int) -> float:
    """Return the statistic's standard error over groups; draws that leave it undefined do not count."""
    num = len(sums)
    if num > _MOST_BOOTSTRAPPED:
        jackknifed = statistic(sums.sum(axis=0) - sums)
        return math.sqrt((num - 1) * np.nanvar(jackknifed))
    # sorted: what is drawn must not depend on the names of the groups
    sums = sums[np.lexsort(sums.T)]
    rng = np.random.default_rng(seed)
    batch_size = max(1, _BATCH // num)
    batches = []
    for start in range(0, _NUM_RESAMPLES, batch_size):
        size = min(batch_size, _NUM_RESAMPLES - start)
        draws = rng.multinomial(num, np.full(num, 1 / num), size=size)
        batches.append(statistic(draws @ sums))
    resampled = np.concatenate(batches)
    if np.isfinite(resampled).sum() < 2:
        return 0.0
    # the bootstrap's variance is that of num groups, of which num - 1 are free
    return float(np.nanstd(resampled)) * math.sqrt(num / (num - 1))


def _effective(share: float, spread: float, num_groups: int) -> float:
    """Return how many independent samples would give their share this standard error."""
    variance = share * (1 - share)
    if spread**2 <= 1e-12 * max(variance, 1e-12) or variance == 0:
        return float(num_groups)
    return variance / spread**2


def _score_interval(share: float, num: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a share."""
    ratio = quantile**2 / num
    centre = (share + ratio / 2) / (1 + ratio)
    half = math.sqrt(share * (1 - share) * ratio + ratio**2 / 4) / (1 + ratio)
    return max(0.0, centre - half), min(1.0, centre + half)


def _t_quantile(level: float, freedom: int) -> float:
    from scipy.special import stdtrit  # a bundle opens without it

    return float(stdtrit(freedom, level))
