"""Probes: what frozen features still tell that they need not, such as which printer an image is of.

A logistic regression is fitted to the features of half of the rows and asked about the other half, and
the other way round. It stands beside chance: the share of rows that are right if all are given the
commonest value. Features that tell the domain well leave room for
shortcuts; they are no proof of one (Alain and Bengio 2016, "Understanding intermediate layers using
linear classifier probes").
"""

from typing import NamedTuple

import numpy as np

from assay.metrics.estimate import Estimate, interval
from assay.metrics.logistic import logistic_logits
from assay.shapes import Bool, Float, Int, Shaped

MOST_ROWS = 4000
"""Rows of a set that are probed, evenly chosen."""

MOST_GROUPS = 60
"""Groups that a probe tells apart, evenly chosen."""


class Probe(NamedTuple):
    """How well something is told, and how well by chance."""

    accuracy: Estimate
    chance: Estimate


def probe_domain(
    features: Float[np.ndarray, "num d"],
    domain: Shaped[np.ndarray, " num"],
    truth: Int[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
) -> Probe | None:
    """Probe for the domain of groups that the probe was not fitted to; None with fewer than two domains of two groups.

    The groups of each domain and class are shared out to the halves in turn, so that both halves have both classes.
    """
    rows = _evenly(len(domain), MOST_ROWS)
    features, domain, truth, group = features[rows], domain[rows], truth[rows], group[rows]
    names, first = np.unique(group, return_index=True)
    kinds = [(domain[i], truth[i]) for i in first.tolist()]
    order = sorted(range(len(names)), key=lambda i: (*kinds[i], i))
    half_of = {names[i]: place % 2 for place, i in enumerate(order)}
    half = np.array([half_of[name] for name in group.tolist()])
    return _probe(features, domain, half == 1, group)


def probe_group(
    features: Float[np.ndarray, "num d"], group: Shaped[np.ndarray, " num"]
) -> Probe | None:
    """Probe for the group, in the later half of its rows by the earlier and back; None with fewer than two groups of two rows."""
    names, counts = np.unique(group, return_counts=True)
    several = names[counts > 1]
    chosen = several[_evenly(len(several), MOST_GROUPS)]
    rows = np.flatnonzero(np.isin(group, chosen))
    rows = rows[_evenly(len(rows), MOST_ROWS)]
    features, group = features[rows], group[rows]
    is_later = np.zeros(len(group), bool)
    for name in chosen:
        members = np.flatnonzero(group == name)
        is_later[members[len(members) // 2 :]] = True
    return _probe(features, group, is_later, group)


def _evenly(num: int, most: int) -> Int[np.ndarray, " chosen"]:
    return np.linspace(0, num - 1, min(num, most)).astype(int)


def _probe(
    features: Float[np.ndarray, "num d"],
    values: Shaped[np.ndarray, " num"],
    is_second: Bool[np.ndarray, " num"],
    group: Shaped[np.ndarray, " num"],
) -> Probe | None:
    """Fit on each half and ask about the other, of the values that both have."""
    both = np.intersect1d(values[is_second], values[~is_second])
    kept = np.isin(values, both)
    if len(both) < 2:
        return None
    features, is_second, group = features[kept].astype(np.float64), is_second[kept], group[kept]
    codes = np.unique(values[kept], return_inverse=True)[1]
    hits = np.zeros(len(codes))
    lucky = (codes == np.bincount(codes).argmax()).astype(float)
    for fitted in (is_second, ~is_second):
        logits = logistic_logits(features[~fitted], features[fitted], codes[fitted], len(both))
        hits[~fitted] = logits.argmax(axis=1) == codes[~fitted]
    return Probe(interval(hits, group), interval(lucky, group))
