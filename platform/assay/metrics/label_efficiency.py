"""How few labels are enough: a logistic regression on frozen features, of 1, 5, 10 and 100 % of train's groups.

Groups are drawn class by class, at least one of each, as labels are given part by part; the strength C is 1 at every
share, since val's labels, which would choose it, are labels too.
"""

from typing import NamedTuple

import numpy as np

from assay.metrics.logistic import Scale, decay_of, fit_logistic
from assay.shapes import Bool, Float, Int

SHARES = (0.01, 0.05, 0.1, 1.0)
"""Of train's groups, of which labels are given."""

NUM_DRAWS = 5
"""Of the groups, at each share below 1."""


class LabelledShare(NamedTuple):
    """What some labels are worth."""

    share: float
    num_groups: int
    """Groups whose labels are given."""
    hits: Bool[np.ndarray, "draws num"]
    """Whether each query is answered rightly, by draw."""


def draw_groups(
    truth: Int[np.ndarray, " rows"], group: Int[np.ndarray, " rows"], share: float, draw: int
) -> Int[np.ndarray, " groups"]:
    """Draw a share of the groups of each class, rounded, and at least one.

    A group of several classes counts as one of its first row's.
    """
    rng = np.random.default_rng([draw, round(share * 1e6)])
    groups, first = np.unique(group, return_index=True)
    classes = truth[first]
    drawn = []
    for label in np.unique(classes):
        of_class = groups[classes == label]
        num = max(1, round(share * len(of_class)))
        drawn.append(rng.permutation(of_class)[:num])
    return np.sort(np.concatenate(drawn))


def label_efficiency(
    queries: tuple[Float[np.ndarray, "num d"], Int[np.ndarray, " num"]],
    bank: tuple[Float[np.ndarray, "rows d"], Int[np.ndarray, " rows"]],
    group: Int[np.ndarray, " rows"],
    num_classes: int,
) -> list[LabelledShare]:
    """Answer queries by the labels of shares of the bank's groups.

    Args:
        queries: Embeddings and classes that are judged.
        bank: Embeddings and classes of train.
        group: The bank's groups.
        num_classes: All classes.
    """
    scale = Scale.of(bank[0])  # without labels all of train is at hand
    design, asked = scale.design(bank[0]), scale.design(queries[0])
    shares = []
    for share in SHARES:
        hits = []
        for draw in range(NUM_DRAWS if share < 1 else 1):
            groups = draw_groups(bank[1], group, share, draw)
            rows = np.isin(group, groups)
            decay = decay_of(1.0, num_classes)
            weights = fit_logistic(design[rows], bank[1][rows], num_classes, decay)
            hits.append((asked @ weights).argmax(1) == queries[1])
        shares.append(LabelledShare(share, len(groups), np.stack(hits)))
    return shares
