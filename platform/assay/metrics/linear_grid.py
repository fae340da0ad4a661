"""A grid of linear classifiers on frozen tokens, all learnt at once; val chooses one.

DINOv2's linear evaluation: the class tokens of the last block or of the last four, with or without the mean of the
last block's patch tokens, each at 13 learning rates (52 heads), by SGD with momentum .9, no decay and a cosine, on the
same batches. Rates are for batches of 256 and scaled by the batch's size. Here features are of whole frames, without
augmentation; updates are as many as ten passes take, within 1250 and 12,500 (there: 12,500).

Source: Oquab et al. 2023, "DINOv2: learning robust visual features without supervision", B.3, and its published code.
"""

from typing import NamedTuple

import numpy as np

from assay.metrics.scores.classes import accuracy, nll
from assay.shapes import Float, Int

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""Learning rates for batches of 256."""

BATCH_SIZE, MOMENTUM, PASSES = 128, 0.9, 10
FEWEST_UPDATES, MOST_UPDATES = 1250, 12_500


class LinearHead(NamedTuple):
    """A head of the grid, and what it looks at."""

    blocks: int
    """Blocks, from the end, whose class tokens it is given."""
    pooled: bool
    """Whether it is given the mean of the patch tokens besides."""
    rate: float
    """Learning rate for batches of 256."""
    logits: Float[np.ndarray, "num classes"]
    """What it answers to the queries."""
    weights: Float[np.ndarray, "features classes"]
    bias: Float[np.ndarray, " classes"]


def inputs_of(
    tokens: Float[np.ndarray, "num parts d"],
) -> dict[tuple[int, bool], Float[np.ndarray, "num features"]]:
    """Return what the heads are given, by number of blocks and pooling.

    Args:
        tokens: Class tokens of the last blocks, first to last, then the mean of the last block's patch tokens.
    """
    num_blocks = tokens.shape[1] - 1
    inputs = {}
    for blocks in sorted({1, num_blocks}):
        for pooled in (False, True):
            parts = tokens[:, num_blocks - blocks : num_blocks + pooled]
            inputs[blocks, pooled] = np.ascontiguousarray(parts.reshape(len(tokens), -1))
    return inputs


def choose_head(
    queries: Float[np.ndarray, "num parts d"],
    bank: Float[np.ndarray, "rows parts d"],
    truth: Int[np.ndarray, " rows"],
    val: tuple[Int[np.ndarray, " some"], Int[np.ndarray, " some"]],
    num_classes: int,
) -> LinearHead:
    """Learn all heads on the bank; return the one of the best accuracy on val, ties going to the lower nll there.

    Args:
        queries: Tokens of the rows that are judged, val's among them.
        bank: Tokens of train.
        truth: Their classes.
        val: Which of the queries are val's, and their classes.
        num_classes: All classes.
    """
    rows, val_truth = val
    learnt = learn_heads(inputs_of(bank), truth, num_classes)
    best, chosen = (-np.inf, -np.inf), None
    for (blocks, pooled), features in inputs_of(queries).items():
        weights, biases = learnt[blocks, pooled]
        for index, rate in enumerate(RATES):
            logits = features @ weights[index] + biases[index]
            value = accuracy(logits[rows], val_truth), -nll(logits[rows], val_truth)
            if value > best:
                head = weights[index], biases[index, 0]
                best, chosen = value, LinearHead(blocks, pooled, rate, logits, *head)
    assert chosen is not None
    return chosen


def learn_heads(
    inputs: dict[tuple[int, bool], Float[np.ndarray, "rows features"]],
    truth: Int[np.ndarray, " rows"],
    num_classes: int,
) -> dict[
    tuple[int, bool],
    tuple[Float[np.ndarray, "rates features classes"], Float[np.ndarray, "rates 1 classes"]],
]:
    """Learn the weights and biases of a head for each input and rate, in one pass over the same batches."""
    rng = np.random.default_rng(0)
    num, rates = len(truth), np.array(RATES)[:, None, None]
    size = min(BATCH_SIZE, num)
    total = int(np.clip(PASSES * num // size, FEWEST_UPDATES, MOST_UPDATES))
    target, heads = np.eye(num_classes)[truth], {}
    for key, features in inputs.items():
        weights = rng.normal(0, 0.01, (len(RATES), features.shape[1], num_classes))
        biases = np.zeros((len(RATES), 1, num_classes))
        heads[key] = weights, biases, np.zeros_like(weights), np.zeros_like(biases)
    for update in range(total):
        rows = rng.integers(0, num, size)
        step = rates * size / 256 * (1 + np.cos(np.pi * update / total)) / 2
        for key, (weights, biases, *momenta) in heads.items():
            batch = inputs[key][rows]
            gap = (_probs(batch @ weights + biases) - target[rows]) / size
            for values, momentum, gradient in (
                (weights, momenta[0], batch.T @ gap),
                (biases, momenta[1], gap.sum(1, keepdims=True)),
            ):
                momentum *= MOMENTUM
                momentum += gradient
                values -= step * momentum
    return {key: (weights, biases) for key, (weights, biases, *_) in heads.items()}


def _probs(logits: Float[np.ndarray, "heads n classes"]) -> Float[np.ndarray, "heads n classes"]:
    exp: np.ndarray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exp /= exp.sum(axis=-1, keepdims=True)
    return exp
