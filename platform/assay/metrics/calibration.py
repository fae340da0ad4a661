"""How far probabilities can be trusted: temperature, calibration error, reliability, risk by coverage."""

import math
from dataclasses import replace

import numpy as np

from assay.metrics.estimate import Estimate, interval, interval_by
from assay.metrics.jackknife import effective_number
from assay.metrics.scores.classes import margins_of, row_nll, softmax
from assay.metrics.summary import Bin, RiskCoverage
from assay.shapes import Bool, Float, Int, Shaped

_MAX_TEMPERATURE = 100.0


_NUM_BINS = 15


_NUM_DRAWS = 2000


_NUM_POINTS = 100


_CLEAR = 3.0
"""Standard errors of a gap above which its sign is taken as known; by chance one bin of 15 has so many in 4 of 100."""


def fit_temperature(
    logits: Float[np.ndarray, "num classes"], truth: Int[np.ndarray, " num"]
) -> float:
    """Return the T between 0.01 and 100 for which logits / T have the least NLL.

    The NLL is convex in 1 / T, so the sign of its slope is bisected. Logits that separate the
    classes perfectly have no finite optimum and meet a limit; logits that say nothing give 1.
    Fit it on val. Source: Guo et al., 2017, section 4.2.
    """
    margins = margins_of(logits, truth)
    low, high = -math.log(_MAX_TEMPERATURE), math.log(_MAX_TEMPERATURE)
    for _ in range(40):
        middle = (low + high) / 2
        slope = (softmax(margins / math.exp(middle)) * margins).sum()
        if slope == 0:
            break
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


def estimate_nll(
    logits: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
) -> Estimate:
    """Estimate the mean NLL, in nats.

    There is no worst loss, but an interval needs a range: it ends at the largest of these rows, or
    at log(classes) if that is more.
    """
    losses = row_nll(logits, truth)
    highest = float(max(losses.max(), math.log(logits.shape[1])))
    return interval(losses, group, highest=highest)


def ece(
    probs: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
) -> Estimate:
    """Estimate the expected calibration error over 15 equal-width bins of the largest probability.

    The sum over bins of |hits - sum of confidences| / rows; a bin holds (low, high]. The interval is
    that of `estimate_gaps`. Source: Guo et al., On Calibration of Modern Neural Networks, 2017, eq. 3.
    """
    confidence = probs.max(axis=1)
    codes, sizes = np.unique(group, return_inverse=True, return_counts=True)[1:]
    sums = np.zeros((sizes.size, _NUM_BINS))
    hits = probs.argmax(axis=1) == truth
    np.add.at(sums, (codes, _bins(confidence, _NUM_BINS)), hits - confidence)
    return estimate_gaps(sums, sizes.astype(float), truth.size)


def estimate_gaps(
    sums: Float[np.ndarray, "groups bins"], sizes: Float[np.ndarray, " groups"], num: int
) -> Estimate:
    """Estimate the sum over bins of the absolute gaps between what was said and what came, per sample.

    Chance adds to it, since a gap counts whatever its sign: a calibrated model has some, and how much
    it adds cannot be known from the sample (most where there are no gaps, none where all are large).
    So each end is a bound by the triangle inequality. With g the true gaps and e the errors of those
    seen, |g + e| summed is at least sign(g) (g + e) summed, which gives the upper end; it is at most
    sign(g) (g + e) over bins that are clear of 0, and |g| + |e| over the others, which gives the
    lower. The errors are drawn with the covariance of the gaps between groups, as Student's t, free
    by the effective number of groups. Such intervals are rather too wide than too short: in simulations
    (tests/benchmarks/coverage.md) they hold the truth in 97 to 100 of 100.

    Args:
        sums: What came, less what was said, of each group, by bin.
        sizes: Samples (or pixels) of each group.
        num: Number of rows, for the estimate.

    Source: Kumar, Liang and Ma, Verified Uncertainty Calibration, 2019, for the bias (section 5).
    """
    gaps = sums.sum(axis=0) / sizes.sum()
    value = float(np.abs(gaps).sum())
    # the covariance of the gaps, as sums over groups of fixed sizes, is root.T @ root
    root = np.linalg.qr(sums - np.outer(sizes, gaps)).R / sizes.sum()
    if np.allclose(root, 0.0, atol=1e-12):  # one group, or all alike: as any share then is
        return replace(
            interval(np.full(sizes.size, value), np.arange(sizes.size), weights=sizes), num=num
        )
    root *= math.sqrt(sizes.size / (sizes.size - 1))
    effective = effective_number(sizes)
    freedom, rng = max(1.0, effective - 1), np.random.default_rng(0)
    errors = rng.normal(size=(_NUM_DRAWS, len(root))) @ root
    errors /= np.sqrt(rng.chisquare(freedom, size=(_NUM_DRAWS, 1)) / freedom)
    signed = np.where(gaps < 0, -errors, errors)
    is_clear = np.abs(gaps) > _CLEAR * np.sqrt((root**2).sum(axis=0))
    above = np.quantile(signed.sum(axis=1), 0.975)
    below = np.quantile(np.where(is_clear, signed, np.abs(errors)).sum(axis=1), 0.975)
    return Estimate(
        value=value,
        low=max(0.0, value - float(below)),
        high=min(1.0, max(value, value + float(above))),
        num=num,
        num_groups=sizes.size,
        num_effective=effective,
    )


def reliability(
    confidence: Float[np.ndarray, " num"],
    hits: Bool[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
) -> list[Bin]:
    """Return the bins of ten that have rows: low, high, num, confidence and accuracy."""
    edges = np.linspace(0, 1, 11)
    bins = _bins(confidence, 10)
    bars = []
    for i in np.unique(bins):
        in_bin = bins == i
        bars.append(
            Bin(
                low=float(edges[i]),
                high=float(edges[i + 1]),
                num=int(in_bin.sum()),
                confidence=float(confidence[in_bin].mean()),
                accuracy=interval(hits[in_bin].astype(float), group[in_bin]),
            )
        )
    return bars


def _bins(confidence: Float[np.ndarray, " num"], num: int) -> Int[np.ndarray, " num"]:
    """Return the number of each row's bin; a bin holds (low, high]."""
    bins: np.ndarray = np.ceil(confidence * num).astype(int).clip(1, num) - 1
    return bins


def risk_coverage(
    confidence: Float[np.ndarray, " num"],
    missed: Bool[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
) -> RiskCoverage:
    """Return the share of errors among the most confident rows, for each share of rows.

    Source: Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017.
    """
    order = np.argsort(-confidence, kind="stable")
    errors, group = missed[order].astype(float), group[order]
    ends = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    risk = np.cumsum(errors)[ends] / (ends + 1)

    def area(draws: Float[np.ndarray, " groups"]) -> float:
        """Average over rows the risk of all rows at least as confident."""
        weights = draws[group]
        num_rows, num_errors = np.cumsum(weights)[ends], np.cumsum(weights * errors)[ends]
        steps = np.diff(num_rows, prepend=0.0)
        return float((steps * num_errors / np.maximum(num_rows, 1e-12)).sum() / num_rows[-1])

    points = np.unique(np.linspace(0, len(ends) - 1, _NUM_POINTS).round().astype(int))
    return RiskCoverage(
        coverage=((ends + 1) / len(order))[points].tolist(),
        risk=risk[points].tolist(),
        aurc=interval_by(area, group, np.ones((len(group), 1))),
    )
