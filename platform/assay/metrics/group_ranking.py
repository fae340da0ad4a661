"""What the images of a group say together, of two classes: how well each rule tells groups of one from those of the other.

    any         positive where an image is taken for it, which has no threshold
    mean, max   of the images' scores, the difference of their logits
    attention   of the head that weighs images by what they show, its mean by these weights

A defect that some views alone show is lost in a mean, and max takes every view's noise; thresholds are chosen on val's groups.
"""

import numpy as np

from assay.metrics.estimate import Estimate, interval
from assay.metrics.measures import Measure
from assay.metrics.ranking import measure_ranking
from assay.metrics.view_pooling import pool_views
from assay.shapes import Bool, Float, Int

RULES = {
    "any": "an image taken for positive",
    "mean": "the mean of images' scores",
    "max": "the highest of images' scores",
    "attention": "scores weighed by attention",
}

MEASURES = {
    f"group_{rule}_{key}": Measure(f"{label}, groups by {rule}", f"groups ranked by {meaning}")
    for rule, meaning in RULES.items()
    for key, label in (("auroc", "AUROC"), ("f1", "F1"))
    if (rule, key) != ("any", "auroc")
}
"""How these measures are shown."""


def group_scores(
    margins: Float[np.ndarray, " num"],
    attending: tuple[Float[np.ndarray, " num"], Float[np.ndarray, " num"]] | None,
    group: Int[np.ndarray, " num"],
) -> dict[str, Float[np.ndarray, " groups"]]:
    """Score each group, in sorted order, by each rule.

    Args:
        margins: Logit of the positive less that of the other.
        attending: The same of the head that weighs images, and the logarithms of their weights; None: there is none.
        group: Groups of the images.
    """
    codes = np.unique(group, return_inverse=True)[1]
    most = np.full(codes.max() + 1, -np.inf)
    np.maximum.at(most, codes, margins)
    mean = np.bincount(codes, margins) / np.bincount(codes)
    scores = {"any": (most > 0) * 1.0, "mean": mean, "max": most}
    if attending is not None:
        scores["attention"] = pool_views(attending[0][:, None], attending[1], group)[:, 0]
    return scores


def measure_groups(
    scores: dict[str, Float[np.ndarray, " groups"]],
    is_positive: Bool[np.ndarray, " groups"],
    val: tuple[dict[str, Float[np.ndarray, " some"]], Bool[np.ndarray, " some"]],
) -> dict[str, Estimate]:
    """Measure how the groups of a set are told; nothing where it, or val, has one class alone."""
    units, estimates = np.arange(len(is_positive)), {}
    for rule, of_groups in scores.items():
        ranked = measure_ranking(of_groups, is_positive, units, (val[0][rule], val[1]))
        if rule == "any" and ranked:
            weights = (of_groups + is_positive) / 2
            ranked = {"f1": interval(of_groups * is_positive, units, weights=weights)}
        for key in ranked.keys() & {"auroc", "f1"}:
            estimates[f"group_{rule}_{key}"] = ranked[key]
    return dict(sorted(estimates.items()))
