"""What embeddings are worth: who stands near whom, and how many directions are used.

Where classes are judged, neighbours of a row's own group are left out: another photo of the same part
says nothing about other parts. Where there are no classes, that photo is what must be found.
"""

from collections.abc import Sequence

import numpy as np

from assay.shapes import Bool, Float, Int

TEMPERATURE = 0.07
"""Of the similarities by which neighbours vote (Wu et al. 2018; DINOv2)."""
NUM_NEIGHBOURS = 20


def neighbour_logits(
    queries: Float[np.ndarray, "num d"],
    bank: Float[np.ndarray, "rows d"],
    truth: Int[np.ndarray, " rows"],
    num_classes: int,
    same_group: np.ndarray,
    k: int = NUM_NEIGHBOURS,
) -> Float[np.ndarray, "num classes"]:
    """Let the k most similar rows of a bank vote; see `votes_of_neighbours`."""
    return votes_of_neighbours(queries, bank, truth, num_classes, same_group, (k,))[k]


def votes_of_neighbours(
    queries: Float[np.ndarray, "num d"],
    bank: Float[np.ndarray, "rows d"],
    truth: Int[np.ndarray, " rows"],
    num_classes: int,
    same_group: np.ndarray,
    numbers: Sequence[int],
) -> dict[int, Float[np.ndarray, "num classes"]]:
    """Let the most similar rows of a bank vote for their classes, by each number of them.

    Each neighbour of cosine s has weight exp(s / temperature); every class is given a thousandth of
    the weakest neighbour's besides. Where all rows are of the query's part, all classes are alike.

    Args:
        queries: Embeddings to be classified.
        bank: Embeddings whose classes are known.
        truth: Their classes.
        num_classes: All classes.
        same_group: num x rows, where query and row are of one part.
        numbers: Neighbours, at most.

    Returns:
        Logarithms of the shares of the vote, by number of neighbours.
    """
    similarity = _normalised(queries) @ _normalised(bank).T
    similarity[same_group] = -np.inf
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : max(numbers)]
    scores = np.take_along_axis(similarity, nearest, axis=1)
    weights = np.exp((scores - 1.0) / TEMPERATURE)  # 0 where of the same part
    classes = truth[nearest]
    return {k: _log_shares(weights[:, :k], classes[:, :k], num_classes) for k in numbers}


def _log_shares(
    weights: Float[np.ndarray, "num k"], classes: Int[np.ndarray, "num k"], num_classes: int
) -> Float[np.ndarray, "num classes"]:
    votes = np.zeros((len(weights), num_classes))
    for rank in range(weights.shape[1]):
        votes[np.arange(len(votes)), classes[:, rank]] += weights[:, rank]
    votes += 1e-3 * np.where(weights > 0, weights, 1.0).min(axis=1, keepdims=True)
    shares: np.ndarray = np.log(votes / votes.sum(axis=1, keepdims=True))
    return shares


def partner_hits(
    embeddings: Float[np.ndarray, "num d"], group: Int[np.ndarray, " num"]
) -> tuple[Bool[np.ndarray, " num"], Bool[np.ndarray, " num"]]:
    """Say of each row whether its nearest other row is of its own group, and whether there is one of it."""
    similarity = _normalised(embeddings) @ _normalised(embeddings).T
    np.fill_diagonal(similarity, -np.inf)
    is_hit: np.ndarray = group[similarity.argmax(axis=1)] == group
    partnered = has_partner(group)
    return is_hit & partnered, partnered


def has_partner(group: Int[np.ndarray, " num"]) -> Bool[np.ndarray, " num"]:
    """Say of each row whether there is another one of its group."""
    several: np.ndarray = np.bincount(group)[group] > 1
    return several


def effective_rank(embeddings: Float[np.ndarray, "num d"]) -> float:
    """Return the exponential of the entropy of the singular values' shares (Roy and Vetterli 2007; RankMe).

    1 where all embeddings lie on one line through the origin, min(num, d) where all directions
    count alike.
    """
    values = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    share = values / max(values.sum(), np.finfo(np.float64).tiny)
    return float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))


def _normalised(embeddings: np.ndarray) -> np.ndarray:
    embeddings = embeddings.astype(np.float64)
    norm = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: np.ndarray = embeddings / np.maximum(norm, 1e-12)
    return scaled
