"""How well a score tells one class from the other: areas under curves, and recall at a precision, over groups."""

from collections.abc import Callable

import numpy as np

from assay.metrics.estimate import Estimate, interval, interval_by, share_of
from assay.metrics.measures import Measure
from assay.metrics.scores.regions import area_under_roc
from assay.shapes import Bool, Float, Int

PRECISION = 0.9
"""That a threshold must keep on val."""

MEASURES = {
    "auroc": Measure("AUROC", "probability that a positive is ranked above a negative"),
    "average_precision": Measure("Average precision", "precision averaged over recall"),
    "f1": Measure("F1", "at the threshold of the best F1 on val"),
    "recall_at_precision": Measure(
        "Recall at precision", f"at the threshold that keeps a precision of {PRECISION:g} on val"
    ),
    "precision_kept": Measure("Precision kept", "at that threshold"),
}
"""How these measures are shown."""

Counts = Callable[[np.ndarray, np.ndarray], float]


def average_precision(
    negatives: Float[np.ndarray, " levels"], positives: Float[np.ndarray, " levels"]
) -> float:
    """Return the sum over levels, from the highest, of precision times what is gained in recall; NaN without a positive.

    Args:
        negatives: Their number at each level, rising.
        positives: The same.
    """
    hits = positives[::-1].cumsum()
    flagged = hits + negatives[::-1].cumsum()
    if not hits[-1]:
        return float("nan")
    precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
    return float((precision * positives[::-1]).sum() / hits[-1])


def measure_ranking(
    scores: Float[np.ndarray, " num"],
    is_positive: Bool[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
    val: tuple[Float[np.ndarray, " some"], Bool[np.ndarray, " some"]],
) -> dict[str, Estimate]:
    """Measure one set; nothing where it, or val, has one class alone.

    Args:
        scores: Higher for positives.
        is_positive: The truth.
        group: Groups, numbered from 0.
        val: Scores and truth of val, where thresholds are chosen.
    """
    if is_positive.all() or not is_positive.any() or val[1].all() or not val[1].any():
        return {}
    estimates = {
        "auroc": _estimate(lambda n, p: float(area_under_roc(n, p)), scores, is_positive, group),
        "average_precision": _estimate(average_precision, scores, is_positive, group),
    }
    best, precise = _thresholds(*val)
    flagged = scores >= best
    weights = (flagged * 1.0 + is_positive) / 2
    estimates["f1"] = interval((flagged & is_positive) * 1.0, group, weights=weights)
    if precise is not None:
        flagged = scores >= precise
        kept = share_of(is_positive, flagged, group)
        estimates["recall_at_precision"] = interval(flagged[is_positive] * 1.0, group[is_positive])
        estimates |= {} if kept is None else {"precision_kept": kept}
    return estimates


def _estimate(
    counts: Counts,
    scores: Float[np.ndarray, " num"],
    is_positive: Bool[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
) -> Estimate:
    levels = np.unique(scores, return_inverse=True)[1]

    def statistic(of_groups: Float[np.ndarray, " groups"]) -> float:
        weights = of_groups[group]
        value = counts(
            np.bincount(levels, weights * ~is_positive), np.bincount(levels, weights * is_positive)
        )
        # without the groups of one class nothing is ranked: the others say nothing of how it varies
        return value if np.isfinite(value) else statistic(np.ones(len(of_groups)))

    mass = np.stack([~is_positive, is_positive], axis=1) * 1.0
    return interval_by(statistic, group, mass)


def _thresholds(
    scores: Float[np.ndarray, " num"], is_positive: Bool[np.ndarray, " num"]
) -> tuple[float, float | None]:
    """Return the thresholds of the best F1, and of the most recall at the precision asked for; None where none keeps it."""
    values, levels = np.unique(scores, return_inverse=True)
    hits = np.bincount(levels, is_positive)[::-1].cumsum()[::-1]
    flagged = np.bincount(levels)[::-1].cumsum()[::-1]
    f1 = 2 * hits / (flagged + hits[0])
    keeps = np.flatnonzero(hits / flagged >= PRECISION)
    return float(values[f1.argmax()]), float(values[keeps[0]]) if len(keeps) else None
