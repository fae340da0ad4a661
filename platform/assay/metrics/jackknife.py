"""How much a statistic varies over groups: by leaving out one at a time, and by how alike the rows of a group are.

Sources are those of `metrics.estimate`.
"""

import math
from collections.abc import Callable

import numpy as np

from assay.shapes import Float, Int

_CAUTION = 0.5
"""Standard errors by which rows of a group are taken to be more alike than they look."""


Statistic = Callable[[np.ndarray], np.ndarray]
"""Sums over rows (draws d) to one number per draw (draws)."""


def effective_number(weights: Float[np.ndarray, " groups"]) -> float:
    """Return how many groups of equal weight would say as much; their number where none has weight.

    Source: Kish, Survey Sampling, 1965, section 11.7.
    """
    squares = float((weights**2).sum())
    return float(weights.sum() ** 2 / squares) if squares else float(len(weights))


def fewest_effective(mass: Float[np.ndarray, "num k"], codes: Int[np.ndarray, " num"]) -> float:
    """Return the effective number of groups of the denominator that has fewest; of none with weight, as of one that has none."""
    return min(effective_number(np.bincount(codes, weights=column)) for column in mass.T)


def row_shares(mass: Float[np.ndarray, "num k"]) -> Float[np.ndarray, " num"]:
    """Return the share that each row has of a statistic whose denominators count the same."""
    total = mass.sum(axis=0)
    present = total > 0
    counts: np.ndarray = (mass[:, present] / total[present]).sum(axis=1) / max(1, present.sum())
    return counts


def free_share(mass: Float[np.ndarray, "num k"], codes: Int[np.ndarray, " num"]) -> float:
    """Return the share of the groups' spread that the means of a statistic leave, averaged over its denominators.

    A mean takes as much as the squares of its groups' shares sum to: of n equal ones 1/n, of two that
    are all that a class has, half.
    """
    sums = np.stack([np.bincount(codes, weights=column) for column in mass.T], axis=1)
    sums = sums[:, sums.sum(axis=0) > 0]
    squares = float(((sums / sums.sum(axis=0)) ** 2).sum())
    return 1 - squares / max(1, sums.shape[1])


def jackknife(
    parts: Float[np.ndarray, "num d"],
    codes: Int[np.ndarray, " num"],
    statistic: Statistic,
    mass: Float[np.ndarray, " num"],
) -> tuple[float, float, float]:
    """Return a statistic, its variance over groups, and the effective number of these."""
    sums = np.stack([np.bincount(codes, weights=column) for column in parts.T], axis=1)
    total = sums.sum(axis=0)
    value = float(statistic(total[None])[0])
    effective = effective_number(np.bincount(codes, weights=mass))
    if len(sums) == 1:
        return value, 0.0, effective
    rest = total - sums
    rest[np.abs(rest) <= 1e-12 * np.abs(total)] = 0.0
    # what is undefined without a group rests on that group alone, and `effective` says so
    left = statistic(rest)
    left = np.where(np.isfinite(left), left, value)
    variance = float(((left - value) ** 2).sum()) * (len(sums) - 1) / len(sums)
    return value, variance, effective


def slopes(statistic: Statistic, sums: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """Differentiate a statistic by each of its sums (central differences)."""
    steps = np.diag(1e-5 * np.abs(sums))
    rise = statistic(sums + steps) - statistic(sums - steps)
    span = 2 * steps.diagonal()
    by_sum: np.ndarray = np.divide(rise, span, out=np.zeros_like(span), where=span > 0)
    return by_sum


def alike_variance(
    influence: Float[np.ndarray, " num"],
    mass: Float[np.ndarray, " num"],
    codes: Int[np.ndarray, " num"],
) -> float:
    """Return the variance of a sum of influences if rows are equally alike in all groups.

    The correlation within groups is one less the variance within them by the whole variance, per
    mass (one-way analysis of variance); a jackknife over groups gives its standard error.
    """

    def by_group(numbers: np.ndarray) -> Float[np.ndarray, " groups"]:
        return np.bincount(codes, weights=numbers)

    weight, squares = by_group(mass), by_group(mass**2)
    each = np.divide(influence, mass, out=np.zeros_like(influence), where=mass > 0)
    mean = np.divide(by_group(influence), weight, out=np.zeros_like(weight), where=weight > 0)
    # of each group: squares within it, all squares, masses that are free within it, all mass
    terms = np.stack([by_group(mass * (each - mean[codes]) ** 2), by_group(mass * each**2)], axis=1)
    free = weight - np.divide(squares, weight, out=np.zeros_like(weight), where=weight > 0)
    terms = np.concatenate([terms, np.stack([free, weight], axis=1)], axis=1)
    sums = terms.sum(axis=0)
    independent = float((influence**2).sum())
    if sums[1] <= 0 or sums[2] <= 1e-9:
        return independent
    left = _correlation(sums - terms)
    error = math.sqrt(len(terms) - 1) * float(left.std())
    alike = min(1.0, float(_correlation(sums[None])[0]) + _CAUTION * error)
    ratio = float((weight**2).sum() / squares.sum())
    return independent * max(0.0, 1 + alike * (ratio - 1))


def _correlation(sums: Float[np.ndarray, "draws 4"]) -> Float[np.ndarray, " draws"]:
    """Return 1 - variance within / whole variance, from -1 to 1; 1 where it is undefined."""
    within, total, free, weight = sums.T
    defined = (free > 1e-9) & (total > 1e-15)
    part = within * weight
    share = np.divide(part, free * total, out=np.zeros_like(part), where=defined)
    correlation: np.ndarray = (1 - share).clip(-1, 1)
    return correlation
