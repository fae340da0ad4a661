"""One value of several rows of a group: their sum, or their mean by weights that follow from scores."""

import numpy as np

from assay.shapes import Float, Shaped


def attention_of(
    scores: Float[np.ndarray, " num"], group: Shaped[np.ndarray, " num"]
) -> Float[np.ndarray, " num"]:
    """Return the softmax of scores over the rows of each group."""
    codes = np.unique(group, return_inverse=True)[1]
    most = np.full(codes.max() + 1, -np.inf)
    np.maximum.at(most, codes, scores)
    weights = np.exp(scores - most[codes])
    shares: np.ndarray = weights / np.bincount(codes, weights)[codes]
    return shares


def pool_views(
    logits: Float[np.ndarray, "num classes"],
    scores: Float[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
) -> Float[np.ndarray, "groups classes"]:
    """Return the mean logits of each group, in sorted order, its rows weighed by the softmax of their scores."""
    return sums_by_group(logits * attention_of(scores, group)[:, None], group)


def sums_by_group(
    values: Float[np.ndarray, "num classes"], group: Shaped[np.ndarray, " num"]
) -> Float[np.ndarray, "groups classes"]:
    """Add up the rows of each group."""
    order = np.argsort(group, kind="stable")
    starts = np.unique(group[order], return_index=True)[1]
    sums: np.ndarray = np.add.reduceat(values[order], starts, axis=0)
    return sums
