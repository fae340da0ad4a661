"""What the predictions of one set are worth, computed from the predictions table alone.

Every number has an interval over groups and its n (`estimate`). Conventions where data are thin:

    absent class   a class never true has no recall, one never answered no precision (None); a class
                   that is neither is left out of the macro means, where undefined shares count as 0.
    mixed group    a group with several truths (a tile shot under every exposure, where exposure is
                   the class) has no answer as a whole: group and vote accuracy are None, views [].
    equal answers  of equal logits the first class is the answer; of equal votes the one with the
                   larger mean logit; equally confident rows enter risk-coverage together.
    calibration    reliability and risk-coverage use logits / temperature; nll and ece do not.
No number is NaN for a table that passes `checks.check`.
"""

import math
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from assay.errors import PredictionsError
from assay.metrics.calibration import ece, estimate_nll, reliability, risk_coverage
from assay.metrics.checks import check
from assay.metrics.estimate import Estimate, interval, interval_of, share_of
from assay.metrics.predictions import (
    class_names,
    domain_columns,
    is_classification,
    logits_of,
    rows_of,
    scores_of,
    sets_of,
    view_scores_of,
)
from assay.metrics.scores.classes import softmax
from assay.metrics.summary import ClassSummary, Family, Summary, Views
from assay.metrics.view_pooling import attention_of, pool_views, sums_by_group
from assay.shapes import Float, Int, Shaped

_NUM_SUBSETS = 32


# Shares of true and answered in the denominators of means over classes.
_MACRO = {"macro_precision": (0.0, 1.0), "macro_recall": (1.0, 0.0), "macro_f1": (0.5, 0.5)}


def by_group(
    logits: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
    scores: Float[np.ndarray, " num"] | None = None,
) -> tuple[
    Float[np.ndarray, "groups classes"], Int[np.ndarray, " groups"], Int[np.ndarray, " groups"]
]:
    """Pool the samples of each group; groups come in sorted order.

    Args:
        logits: Of the samples.
        truth: Their classes.
        group: Their groups.
        scores: What samples weigh in their group, as logarithms; None: all alike.

    Returns:
        The mean logits of each group; its vote, the class that most of its samples are given
        (ties go to the tied class with the largest mean logit); its true class.

    Raises:
        PredictionsError: A group holds samples of more than one class.
    """
    names, codes, sizes = np.unique(group, return_inverse=True, return_counts=True)
    group_truth = np.zeros(names.size, dtype=truth.dtype)
    group_truth[codes] = truth
    mixed = np.unique(codes[group_truth[codes] != truth])
    if mixed.size:
        raise PredictionsError(
            f"{mixed.size} of {names.size} groups hold samples of more than one class (the first "
            f"is {str(names[mixed[0]])!r}), but a group is one part with one truth; group by what "
            f"has one label."
        )
    if scores is None:
        mean = sums_by_group(logits.astype(np.float64), codes) / sizes[:, None]
    else:
        mean = pool_views(logits.astype(np.float64), scores, codes)
    votes = np.zeros(mean.shape, dtype=int)
    np.add.at(votes, (codes, logits.argmax(axis=1)), 1)
    tied = votes == votes.max(axis=1, keepdims=True)
    return mean, np.where(tied, mean, -np.inf).argmax(axis=1), group_truth


def summarise(predictions: pa.Table, split: str, temperature: float = 1.0) -> Summary:
    """Judge the rows of one set.

    Args:
        predictions: The table of all sets.
        split: The set.
        temperature: Divides logits for what is calibrated; fitted on val.

    Raises:
        PredictionsError: The table fails `check`, or has no row of that set.
    """
    check(predictions)
    rows = rows_of(predictions, split)
    if not rows.num_rows:
        raise PredictionsError(
            f"No prediction belongs to split {split!r}; the table holds: {', '.join(sets_of(predictions))}."
        )
    name, scores, weights = scores_of(rows)
    group = np.unique(rows["group"].to_numpy(), return_inverse=True)[1]
    domains = {
        column.removeprefix("domain."): _by_value(scores, weights, group, rows[column].to_numpy())
        for column in domain_columns(rows)
    }
    columns_and_values = [(column, value) for column in domains for value in domains[column]]
    by_class = _by_class(rows, group, temperature) if is_classification(rows) else {}
    return Summary(
        num=rows.num_rows,
        num_groups=int(group.max()) + 1,
        metrics={name: interval(scores, group, weights=weights)} | by_class.pop("metrics", {}),
        domains=domains,
        worst_domain=min(
            columns_and_values, key=lambda pair: domains[pair[0]][pair[1]].value, default=None
        ),
        **by_class,
    )


def _by_value(
    scores: Float[np.ndarray, " num"],
    weights: Float[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
    column: Shaped[np.ndarray, " num"],
) -> dict[str, Estimate]:
    """Estimate the main score of each value of a column that has weight."""
    estimates = {}
    for value in np.unique(column):
        rows = column == value
        if weights[rows].any():
            estimates[str(value)] = interval(scores[rows], group[rows], weights=weights[rows])
    return estimates


def _by_class(rows: pa.Table, group: Int[np.ndarray, " num"], temperature: float) -> dict[str, Any]:
    """Return the fields of a summary that only classes have, and the metrics that only they have."""
    logits, truth, names = logits_of(rows), rows["truth"].to_numpy(), class_names(rows)
    scores = view_scores_of(rows)
    answers = logits.argmax(axis=1)
    confidence = softmax(logits.astype(np.float64) / temperature).max(axis=1)
    confusion = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(confusion, (truth, answers), 1)
    classes = {
        name: ClassSummary(
            num=int((truth == i).sum()),
            recall=share_of(answers == i, truth == i, group),
            precision=share_of(truth == i, answers == i, group),
        )
        for i, name in enumerate(names)
    }
    return {
        "metrics": _metrics(logits, truth, answers, group, scores),
        "classes": classes,
        "confusion": confusion.tolist(),
        "families": _families(rows, truth, answers, group),
        "reliability": reliability(confidence, answers == truth, group),
        "risk_coverage": risk_coverage(confidence, answers != truth, group),
        "views": _views(logits, truth, group, scores),
    }


def _metrics(
    logits: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    answers: Int[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
    scores: Float[np.ndarray, " num"] | None,
) -> dict[str, Estimate | None]:
    metrics: dict[str, Estimate | None] = {"group_accuracy": None, "vote_accuracy": None}
    if not is_mixed(truth, group):
        mean, vote, group_truth = by_group(logits, truth, group, scores)
        units = np.arange(len(group_truth))
        for key, pooled in zip(metrics, (mean.argmax(axis=1), vote), strict=True):
            metrics[key] = interval((pooled == group_truth).astype(float), units)
    true, answered = np.eye(logits.shape[1])[truth], np.eye(logits.shape[1])[answers]
    counts = np.concatenate([true * (answers == truth)[:, None], true, answered], axis=1)
    for name, (of_true, of_answered) in _MACRO.items():
        macro = partial(_macro, of_true=of_true, of_answered=of_answered)
        mass = of_true * true + of_answered * answered
        metrics[name] = interval_of(counts, group, macro, mass=mass)
    return metrics | {
        "nll": estimate_nll(logits, truth, group),
        "ece": ece(softmax(logits), truth, group),
    }


def _macro(
    sums: Float[np.ndarray, "draws parts"], of_true: float, of_answered: float
) -> Float[np.ndarray, " draws"]:
    """Average, over classes, right answers by a mix of the counts of true and of answered, all by class.

    Classes without either are left out.
    """
    right, true, answered = np.split(sums, 3, axis=1)
    count = of_true * true + of_answered * answered
    shares = np.divide(right, count, out=np.zeros_like(right), where=count > 0)
    shares[true + answered <= 0] = np.nan
    mean: np.ndarray = np.nanmean(shares, axis=1)
    return mean


def is_mixed(truth: Int[np.ndarray, " num"], group: Shaped[np.ndarray, " num"]) -> bool:
    """Return whether some group has several truths, and so no answer as a whole."""
    codes = np.unique(group, return_inverse=True)[1]
    pairs = np.unique(np.stack([codes, truth]), axis=1).shape[1]
    return bool(pairs > np.unique(codes).size)


def _families(
    rows: pa.Table,
    truth: Int[np.ndarray, " num"],
    answers: Int[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
) -> dict[str, Family]:
    """Estimate, by column that names families, their accuracy and the share of errors within them."""
    num_classes = len(class_names(rows))
    estimates = {}
    for column in domain_columns(rows):
        family = _family_of_class(rows[column].to_numpy(), truth, num_classes)
        if family is not None:
            same = family[truth] == family[answers]
            estimates[column.removeprefix("domain.")] = Family(
                accuracy=interval(same.astype(float), group),
                within=share_of(same, answers != truth, group),
            )
    return estimates


def _family_of_class(
    column: Shaped[np.ndarray, " num"], truth: Int[np.ndarray, " num"], num_classes: int
) -> Int[np.ndarray, " classes"] | None:
    """Return the family of each class (-1: of a class that is absent), if the column names families.

    It does if all rows of a class have one value, some classes share theirs, and not all do.
    """
    codes = np.unique(column, return_inverse=True)[1]
    pairs = np.unique(np.stack([truth, codes]), axis=1)
    num_present = np.unique(truth).size
    if pairs.shape[1] > num_present or not 1 < codes.max() + 1 < num_present:
        return None
    family = np.full(num_classes, -1)
    family[pairs[0]] = pairs[1]
    return family


def _views(
    logits: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
    scores: Float[np.ndarray, " num"] | None,
) -> list[Views]:
    """Estimate accuracy by number of views, of the groups that have the median number or more."""
    if is_mixed(truth, group):
        return []
    sizes = np.bincount(group)
    most = int(np.median(sizes))
    large = np.flatnonzero(sizes >= most)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(0)
    # what the weights of some views add up to does not change which of their means is the largest
    weights = np.ones(len(group)) if scores is None else attention_of(scores, group)
    weighed = logits * weights[:, None]
    views = []
    for num in range(1, most + 1):
        shares = [_hits_of_views(weighed, truth, members[i], num, rng) for i in large]
        views.append(Views(views=num, accuracy=interval(np.array(shares), large)))
    return views


def _hits_of_views(
    weighed: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    rows: Int[np.ndarray, " views"],
    num: int,
    rng: np.random.Generator,
) -> float:
    """Return the share of right answers of the mean logits of all, or 32 random, subsets of views."""
    if math.comb(len(rows), num) <= _NUM_SUBSETS:
        subsets = np.array(list(combinations(rows, num)))
    else:
        subsets = np.stack([rng.permutation(rows)[:num] for _ in range(_NUM_SUBSETS)])
    answers = weighed[subsets].astype(np.float64).mean(axis=1).argmax(axis=1)
    return float((answers == truth[rows[0]]).mean())
