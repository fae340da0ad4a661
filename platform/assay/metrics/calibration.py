"""How far probabilities can be trusted: temperature, calibration error, reliability, risk by coverage."""

import math

import numpy as np

from assay.metrics.estimate import Estimate, effective_number, interval, interval_by
from assay.metrics.scores.classes import margins_of, row_nll, softmax
from assay.metrics.summary import Bin, RiskCoverage
from assay.shapes import Bool, Float, Int, Shaped

_MAX_TEMPERATURE = 100.0


_NUM_BINS = 15


_NUM_DRAWS = 2000


_NUM_POINTS = 100


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

    The sum over bins of |hits - sum of confidences| / rows; a bin holds (low, high].

    Chance adds to it, since a gap counts whatever its sign: a calibrated model has some, and its
    bootstrap has more. So the interval is reflected about the value (basic bootstrap), of gaps with
    the covariance that they have between groups (as Student's t, free by the effective number of
    groups), and begins at 0 where chance alone has as much.

    Sources: Guo et al., On Calibration of Modern Neural Networks, 2017, eq. 3; Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.
    """
    confidence = probs.max(axis=1)
    codes, sizes = np.unique(group, return_inverse=True, return_counts=True)[1:]
    sums = np.zeros((sizes.size, _NUM_BINS))
    hits = probs.argmax(axis=1) == truth
    np.add.at(sums, (codes, _bins(confidence, _NUM_BINS)), hits - confidence)
    gaps = sums.sum(axis=0) / truth.size
    value = float(np.abs(gaps).sum())
    # the covariance of the gaps, as sums over groups of fixed sizes, is root.T @ root
    root = np.linalg.qr(sums - np.outer(sizes, gaps)).R / truth.size
    if np.allclose(root, 0.0, atol=1e-12):  # one group, or all alike: as any share then is
        return interval(np.full(truth.size, value), group)
    root *= math.sqrt(sizes.size / (sizes.size - 1))
    effective = effective_number(sizes.astype(float))
    freedom, rng = max(1.0, effective - 1), np.random.default_rng(0)
    noise = rng.normal(size=(_NUM_DRAWS, len(root))) @ root
    by_chance = value <= np.quantile(np.abs(noise).sum(axis=1), 0.95)
    noise /= np.sqrt(rng.chisquare(freedom, size=(_NUM_DRAWS, 1)) / freedom)
    least, most = np.quantile(np.abs(gaps + noise).sum(axis=1), [0.025, 0.975])
    return Estimate(
        value=value,
        low=0.0 if by_chance else max(0.0, min(value, float(2 * value - most))),
        high=min(1.0, max(value, float(2 * value - least))),
        num=truth.size,
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
        aurc=interval_by(area, group),
    )
