"""An estimate: a number with its 95 % interval over groups and its n.

Samples of one part are not independent, so what varies is whole groups: the standard error is that
of a jackknife, which leaves out one group at a time. Groups of unequal weight say less than as many
equal ones: their effective number (Kish), less what the means that were estimated take of it, is what Student's t is free
by. The interval around the value is Wilson's, with the number of independent samples that this standard error amounts to.

Conventions
    shares          a few large groups without an error would hide that errors come by the group, so
                    the interval holds the one that follows from how alike the rows of a group are, which
                    all groups tell, and Student's t is free by their plain number.
    differences     (`lowest` below 0) can err to both sides and need no such floor.
    one group       nothing is known about the spread: the whole range, also where others have no weight.
    of two classes  an area under a curve ranks one class against the other, so that many groups of one make up for
                    none of the other: effective are those of the scarcer, and of a single one nothing is known.
    no spread       all groups say the same: as many independent samples as effective groups. If no
                    group differs, a difference is at most the share of groups that may and were not seen.
    too few groups  below `FEWEST` effective ones an interval is given, and no verdict.

Sources: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Kish,
Survey Sampling, 1965, section 11.7; Bell and McCaffrey, Bias Reduction in Standard Errors for Linear
Regression with Multi-Stage Samples, 2002; Wilson, 1927; Franco, Little, Louis and Slud, Comparative
Study of Confidence Intervals for Proportions in Complex Sample Surveys, 2019 (score intervals at an
effective sample size). The benchmark tests/benchmarks/coverage.py measures how often they hold.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from assay.errors import PredictionsError
from assay.metrics.jackknife import (
    Statistic,
    alike_variance,
    fewest_effective,
    free_share,
    jackknife,
    row_shares,
    slopes,
)
from assay.shapes import Bool, Float, Int, Shaped

FEWEST = 4.0
"""Effective groups below which two runs are not said to differ."""


_MOST_RANKED = 400
"""Groups above which `interval_by` leaves out several at a time."""


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
    num_effective: float | None = None
    """Number of groups of equal weight that would say as much; None where it was not recorded."""

    def __str__(self) -> str:
        """Return a text such as "0.912 [0.873, 0.944] (n=120 in 60 groups)"."""
        groups = "group" if self.num_groups == 1 else "groups"
        effective = (
            f", effective {_round_below(self.effective)}" if 1 < self.effective < FEWEST else ""
        )
        return f"{bracket(self)} (n={self.num} in {self.num_groups} {groups}{effective})"

    @property
    def effective(self) -> float:
        """The effective number of groups; their plain number where it was not recorded."""
        return float(self.num_groups) if self.num_effective is None else self.num_effective

    @property
    def undecided(self) -> str:
        """Why a difference with this estimate is no verdict, in words; empty where it may be one."""
        if self.effective >= FEWEST:
            return ""
        return f"too few or too unequal groups to compare (effective {_round_below(self.effective)} of {self.num_groups}); not decided"


def _round_below(effective: float) -> str:
    """Round an effective number that is too small, just below the limit not up to it."""
    return f"{min(effective, FEWEST - 0.1):.1f}"


def bracket(estimate: Estimate) -> str:
    """Return an estimate with its interval, such as "0.871 [0.812, 0.911]"."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def signed(difference: Estimate) -> str:
    """Return a difference with its interval, such as "+0.031 [-0.012, +0.074]"."""
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def interval(
    values: Float[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
    *,
    weights: Float[np.ndarray, " num"] | None = None,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> Estimate:
    """Estimate a (weighted) mean over samples.

    Args:
        values: One number per sample, between `lowest` and `highest` (a hit is 1, a miss 0).
        group: The group of each sample.
        weights: Of each sample, not all 0; None: 1. Hits / unions with unions for weights is a
            ratio of sums, such as a micro IoU.
        lowest: The least a value can be: 0 for shares, -1 for differences of shares.
        highest: The most a value can be.

    Raises:
        PredictionsError: A value or weight is not finite, or all weights are 0.
    """
    weights = np.ones(len(values)) if weights is None else weights
    parts = np.stack([values * weights, weights], axis=1)
    return interval_of(parts, group, _ratio, mass=parts[:, 1:], lowest=lowest, highest=highest)


def interval_of(
    parts: Float[np.ndarray, "num d"],
    group: Shaped[np.ndarray, " num"],
    statistic: Statistic,
    *,
    mass: Float[np.ndarray, "num k"],
    lowest: float = 0.0,
    highest: float = 1.0,
    by_scarcest: bool = False,
) -> Estimate:
    """Estimate any statistic of sums over rows, such as F1 from counts.

    Args:
        parts: What each row adds to the sums.
        group: The group of each row.
        statistic: From sums (draws d) to numbers (draws); where a draw leaves it undefined, NaN.
        mass: What each row adds to each denominator of the statistic (the k classes of an average).
        lowest: The least the statistic can be.
        highest: The most it can be.
        by_scarcest: Whether it hangs on each of its denominators, as an area under a curve does, and is no average
            over them.

    Raises:
        PredictionsError: A part is not finite, or the statistic of all rows is undefined or
            outside its range.
    """
    codes = np.unique(group, return_inverse=True)[1]
    counts = row_shares(mass)
    value, variance, effective = jackknife(parts, codes, statistic, counts)
    if not (np.isfinite(parts).all() and lowest - 1e-9 <= value <= highest + 1e-9):
        raise PredictionsError(
            f"A statistic of {len(parts)} rows is {value}, allowed are {lowest:g} to {highest:g}; "
            "look for rows that are not finite, or that bear no weight at all."
        )
    num_groups, free = int(codes.max()) + 1, free_share(mass, codes)
    if by_scarcest:
        effective = fewest_effective(mass, codes)
        free = 1 - 1 / effective
    spreads = [(variance, effective * free)]
    if lowest >= 0 and num_groups > 1 and counts.any():
        influence = parts @ slopes(statistic, parts.sum(axis=0))
        spreads.append((alike_variance(influence, counts, codes), num_groups * free))
    return _estimate(value, spreads, lowest, highest, len(parts), num_groups, effective)


def interval_by(
    statistic: Callable[[Float[np.ndarray, " groups"]], float],
    group: Int[np.ndarray, " num"],
    mass: Float[np.ndarray, "num k"],
) -> Estimate:
    """Estimate a share that is no function of sums, such as the area under a curve of ranked rows.

    Args:
        statistic: From the weight of each group to a number from 0 to 1.
        group: The number of each row's group.
        mass: What each row adds to each class that is ranked, on every one of which the statistic hangs.
    """
    num = int(group.max()) + 1
    value, variance = statistic(np.ones(num)), 0.0
    if num > 1:
        blocks = np.random.default_rng(0).permutation(num) % min(num, _MOST_RANKED)
        count = int(blocks.max()) + 1
        left = np.array([statistic((blocks != block).astype(float)) for block in range(count)])
        variance = float(((left - value) ** 2).sum()) * (count - 1) / count
    effective = fewest_effective(mass, group)
    return _estimate(value, [(variance, effective - 1)], 0.0, 1.0, len(group), num, effective)


def share_of(
    hits: Bool[np.ndarray, " num"],
    among: Bool[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
) -> Estimate | None:
    """Estimate the share of hits among some of the rows; None where these are none."""
    return interval(hits[among].astype(float), group[among]) if among.any() else None


def share_of_sums(part: np.ndarray, whole: np.ndarray, group: np.ndarray) -> Estimate:
    """Estimate a share of what is summed over rows; 1 where there is nothing to share."""
    return interval_of(np.stack([part, whole], axis=1), group, _share, mass=whole[:, None])


def _share(sums: Float[np.ndarray, "draws 2"]) -> Float[np.ndarray, " draws"]:
    """Return shares of sums; 1 where there is nothing to share: nothing marked, or nothing to find."""
    part, whole = sums.T
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)


def difference(
    first: tuple[Float[np.ndarray, " num"], Float[np.ndarray, " num"]],
    second: tuple[Float[np.ndarray, " num"], Float[np.ndarray, " num"]],
    group: Shaped[np.ndarray, " num"],
) -> tuple[Estimate, float]:
    """Estimate one weighted mean less another of the same rows, and the two-sided p of no difference.

    p is below .05 exactly when the interval leaves out 0; it is 1 for one group with weight.

    Args:
        first: Values from 0 to 1, and weights, of each row.
        second: The same of the other.
        group: The group of each row.
    """
    from scipy.special import stdtr  # a bundle opens without it

    (values, weights), (others, other_weights) = first, second
    parts = np.stack([values * weights, weights, others * other_weights, other_weights], axis=1)
    mass = row_shares(parts[:, 1::2])

    def less(sums: Float[np.ndarray, "draws 4"]) -> Float[np.ndarray, " draws"]:
        return _ratio(sums[:, :2]) - _ratio(sums[:, 2:])

    estimate = interval_of(parts, group, less, mass=mass[:, None], lowest=-1.0)
    if estimate.effective <= 1:
        return estimate, 1.0
    value, variance, effective = jackknife(
        parts, np.unique(group, return_inverse=True)[1], less, mass
    )
    if not value and not variance:
        most = 1 - 0.025 ** (1 / effective)
        return replace(estimate, low=-most, high=most), 1.0
    share = (estimate.value + 1) / 2
    score = abs(share - 0.5) * 2 * math.sqrt(_independent(share, variance / 4, effective))
    return estimate, float(2 * stdtr(max(1.0, effective - 1), -score))


def _ratio(sums: Float[np.ndarray, "draws 2"]) -> Float[np.ndarray, " draws"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient: np.ndarray = sums[:, 0] / sums[:, 1]
    return quotient


def _estimate(
    value: float,
    spreads: Sequence[tuple[float, float]],
    lowest: float,
    highest: float,
    num: int,
    num_groups: int,
    effective: float,
) -> Estimate:
    """Put around a value the interval that holds those of each variance and what Student's t is free by."""
    value = min(max(value, lowest), highest)
    low, high = lowest, highest
    if effective > 1 + 1e-6:
        width = highest - lowest
        share = (value - lowest) / width
        ends = [
            _score_interval(
                share,
                _independent(share, variance / width**2, effective),
                _t_quantile(0.975, max(1.0, freedom)),
            )
            for variance, freedom in spreads
        ]
        low = lowest + width * min(end for end, _ in ends)
        high = lowest + width * max(end for _, end in ends)
    return Estimate(
        value=value,
        low=min(low, value),
        high=max(high, value),
        num=num,
        num_groups=num_groups,
        num_effective=round(effective, 6),
    )


def _independent(share: float, variance: float, effective: float) -> float:
    """Return how many independent samples would give their share this variance."""
    most = share * (1 - share)
    if variance <= 1e-12 * max(most, 1e-12) or most == 0:
        return effective
    return most / variance


def _score_interval(share: float, num: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a share."""
    ratio = quantile**2 / num
    centre = (share + ratio / 2) / (1 + ratio)
    half = math.sqrt(share * (1 - share) * ratio + ratio**2 / 4) / (1 + ratio)
    return max(0.0, centre - half), min(1.0, centre + half)


def _t_quantile(level: float, freedom: float) -> float:
    from scipy.special import stdtrit  # a bundle opens without it

    return float(stdtrit(freedom, level))
