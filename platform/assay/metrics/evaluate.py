"""What the predictions of one set are worth, computed from the predictions table alone.

Every number has an interval over groups and its n (`estimate`). Conventions where data are thin:

    absent class   a class never true has no recall, one never said no precision (None); a class
                   that is neither is left out of macro F1.
    mixed group    a group with several truths (a tile shot under every exposure, where exposure is
                   the class) has no answer as a whole: group and vote accuracy are None, views [].
    equal answers  of equal logits the first class is the answer; of equal votes the one with the
                   larger mean logit; equally confident rows enter risk-coverage together.
    calibration    reliability and risk-coverage use logits / temperature; nll and ece do not.
No number is NaN for a table that passes `predictions.check`.
"""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.errors import PredictionsError
from assay.metrics.decide import ece
from assay.metrics.estimate import Estimate, interval, interval_by, interval_of
from assay.metrics.predictions import (
    check,
    class_names,
    domain_columns,
    is_classification,
    logits_of,
    scores_of,
)
from assay.metrics.scores.classes import row_nll, softmax
from assay.metrics.summary import Bin, ClassSummary, Family, RiskCoverage, Summary, Views
from assay.shapes import Float, Int, Shaped

_NUM_SUBSETS = 32


_NUM_POINTS = 100


def by_group(
    logits: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
) -> tuple[
    Float[np.ndarray, "groups classes"], Int[np.ndarray, " groups"], Int[np.ndarray, " groups"]
]:
    """Pool the samples of each group; groups come in sorted order.

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
    by_code = logits[np.argsort(codes, kind="stable")].astype(np.float64)
    mean = np.add.reduceat(by_code, np.cumsum(sizes) - sizes, axis=0) / sizes[:, None]
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
    rows = predictions.filter(pc.equal(predictions["split"], split))
    if not rows.num_rows:
        present = ", ".join(sorted(predictions["split"].unique().to_pylist()))
        raise PredictionsError(
            f"No prediction belongs to split {split!r}; the table holds: {present}."
        )
    name, scores, weights = scores_of(rows)
    group = np.unique(rows["group"].to_numpy(), return_inverse=True)[1]
    domains = {
        column.removeprefix("domain."): _by_value(scores, weights, group, rows[column].to_numpy())
        for column in domain_columns(rows)
    }
    found = [(column, value) for column, estimates in domains.items() for value in estimates]
    own = _classification(rows, group, temperature) if is_classification(rows) else {}
    return Summary(
        num=rows.num_rows,
        num_groups=int(group.max()) + 1,
        metrics={name: interval(scores, group, weights=weights)} | own.pop("metrics", {}),
        domains=domains,
        worst_domain=min(found, key=lambda key: domains[key[0]][key[1]].value, default=None),
        **own,
    )


def _by_value(
    scores: Float[np.ndarray, " num"],
    weights: Float[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
    column: Shaped[np.ndarray, " num"],
) -> dict[str, Estimate]:
    """The main score of each value of a column; values without weight are left out."""
    return {
        str(value): interval(scores[own], group[own], weights=weights[own])
        for value in np.unique(column)
        if weights[own := column == value].any()
    }


def _classification(
    rows: pa.Table, group: Int[np.ndarray, " num"], temperature: float
) -> dict[str, Any]:
    """The fields of a summary that only classes have."""
    logits, truth, names = logits_of(rows), rows["truth"].to_numpy(), class_names(rows)
    said, num_classes = logits.argmax(axis=1), len(names)
    probs = softmax(logits.astype(np.float64) / temperature)
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(confusion, (truth, said), 1)
    return {
        "metrics": _metrics(logits, truth, said, group),
        "classes": {
            name: ClassSummary(
                num=int((truth == i).sum()),
                recall=_share(said == i, truth == i, group),
                precision=_share(truth == i, said == i, group),
            )
            for i, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
        "families": {
            column.removeprefix("domain."): _family(family, truth, said, group)
            for column in domain_columns(rows)
            if (family := _families(rows[column].to_numpy(), truth, num_classes)) is not None
        },
        "reliability": _reliability(probs.max(axis=1), said == truth, group),
        "risk_coverage": _risk_coverage(probs.max(axis=1), said != truth, group),
        "views": _views(logits, truth, group),
    }


def _metrics(
    logits: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    said: Int[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
) -> dict[str, Estimate | None]:
    pooled: dict[str, Estimate | None] = {"group_accuracy": None, "vote_accuracy": None}
    if not is_mixed(truth, group):
        mean, vote, group_truth = by_group(logits, truth, group)
        units = np.arange(len(group_truth))
        for key, answers in zip(pooled, (mean.argmax(axis=1), vote), strict=True):
            pooled[key] = interval((answers == group_truth).astype(float), units)
    lost = row_nll(logits, truth)
    # there is no worst loss, but an interval needs a range: that of what was seen
    most = float(max(lost.max(), math.log(logits.shape[1])))
    eye = np.eye(logits.shape[1])
    counts = np.concatenate([eye[truth] * (said == truth)[:, None], eye[truth] + eye[said]], axis=1)
    return pooled | {
        "macro_f1": interval_of(counts, group, _macro_f1),
        "nll": interval(lost, group, highest=most),
        "ece": ece(softmax(logits), truth, group),
    }


def _macro_f1(sums: Float[np.ndarray, "draws parts"]) -> Float[np.ndarray, " draws"]:
    """From right answers by class, and true plus said by class; classes without either left out."""
    right, either = np.split(sums, 2, axis=1)
    with np.errstate(invalid="ignore"):
        f1: np.ndarray = np.nanmean(2 * right / either, axis=1)
    return f1


def _share(hits: np.ndarray, among: np.ndarray, group: Int[np.ndarray, " num"]) -> Estimate | None:
    return interval(hits[among].astype(float), group[among]) if among.any() else None


def is_mixed(truth: Int[np.ndarray, " num"], group: Shaped[np.ndarray, " num"]) -> bool:
    """Return whether some group has several truths, and so no answer as a whole."""
    codes = np.unique(group, return_inverse=True)[1]
    pairs = np.unique(np.stack([codes, truth]), axis=1).shape[1]
    return bool(pairs > np.unique(codes).size)


def _families(
    column: Shaped[np.ndarray, " num"], truth: Int[np.ndarray, " num"], num_classes: int
) -> Int[np.ndarray, " classes"] | None:
    """The family of each class (-1: of a class that is absent), if the column says families.

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


def _family(
    family: Int[np.ndarray, " classes"],
    truth: Int[np.ndarray, " num"],
    said: Int[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
) -> Family:
    same = family[truth] == family[said]
    return Family(
        accuracy=interval(same.astype(float), group), within=_share(same, said != truth, group)
    )


def _reliability(
    confidence: Float[np.ndarray, " num"], hits: np.ndarray, group: Int[np.ndarray, " num"]
) -> list[Bin]:
    edges = np.linspace(0, 1, 11)
    bins = np.ceil(confidence * 10).astype(int).clip(1, 10) - 1
    return [
        Bin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            num=int((bins == i).sum()),
            confidence=float(confidence[bins == i].mean()),
            accuracy=interval(hits[bins == i].astype(float), group[bins == i]),
        )
        for i in np.unique(bins)
    ]


def _risk_coverage(
    confidence: Float[np.ndarray, " num"], missed: np.ndarray, group: Int[np.ndarray, " num"]
) -> RiskCoverage:
    """The share of errors among the most confident rows, for each share of rows.

    Source: Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017.
    """
    order = np.argsort(-confidence, kind="stable")
    missed, group = missed[order].astype(float), group[order]
    ends = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    risk = np.cumsum(missed)[ends] / (ends + 1)

    def area(drawn: Float[np.ndarray, " groups"]) -> float:
        """The mean over rows of the risk of all rows at least as confident."""
        weights = drawn[group]
        rows, errors = np.cumsum(weights)[ends], np.cumsum(weights * missed)[ends]
        own = np.diff(rows, prepend=0.0)
        return float((own * errors / np.maximum(rows, 1e-12)).sum() / rows[-1])

    kept = np.unique(np.linspace(0, len(ends) - 1, _NUM_POINTS).round().astype(int))
    return RiskCoverage(
        coverage=((ends + 1) / len(order))[kept].tolist(),
        risk=risk[kept].tolist(),
        aurc=interval_by(area, len(order), int(group.max()) + 1),
    )


def _views(
    logits: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    group: Int[np.ndarray, " num"],
) -> list[Views]:
    """Accuracy by number of views; the same groups at each: those with the median number or more."""
    if is_mixed(truth, group):
        return []
    sizes = np.bincount(group)
    most = int(np.median(sizes))
    kept = np.flatnonzero(sizes >= most)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(0)
    return [
        Views(
            views=num,
            accuracy=interval(
                np.array([_hits_of_views(logits, truth, members[g], num, rng) for g in kept]), kept
            ),
        )
        for num in range(1, most + 1)
    ]


def _hits_of_views(
    logits: Float[np.ndarray, "num classes"],
    truth: Int[np.ndarray, " num"],
    rows: Int[np.ndarray, " views"],
    num: int,
    rng: np.random.Generator,
) -> float:
    """Share of right answers of the mean logits of all, or of 32 random, subsets of some views."""
    if math.comb(len(rows), num) <= _NUM_SUBSETS:
        subsets = np.array(list(combinations(rows, num)))
    else:
        subsets = np.stack([rng.permutation(rows)[:num] for _ in range(_NUM_SUBSETS)])
    answers = logits[subsets].astype(np.float64).mean(axis=1).argmax(axis=1)
    return float((answers == truth[rows[0]]).mean())
