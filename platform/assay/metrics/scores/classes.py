"""Scores of classes as arrays: what training and judging both compute."""

import numpy as np

from assay.shapes import Float, Int


def softmax(logits: Float[np.ndarray, "num classes"]) -> Float[np.ndarray, "num classes"]:
    """Return the probabilities of each row, in float64."""
    exp: np.ndarray = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    exp /= exp.sum(axis=1, keepdims=True)
    return exp


def row_nll(
    logits: Float[np.ndarray, "num classes"], truth: Int[np.ndarray, " num"]
) -> Float[np.ndarray, " num"]:
    """Return the negative log-likelihood of each row's truth, in nats; finite for finite logits."""
    margins = margins_of(logits, truth)
    highest = margins.max(axis=1)
    losses: np.ndarray = highest + np.log(np.exp(margins - highest[:, None]).sum(axis=1))
    return losses


def margins_of(
    logits: Float[np.ndarray, "num classes"], truth: Int[np.ndarray, " num"]
) -> Float[np.ndarray, "num classes"]:
    """Return each logit less that of the truth, in float64."""
    margins: np.ndarray = logits.astype(np.float64)
    margins -= margins[np.arange(truth.size), truth][:, None]
    return margins


def accuracy(logits: Float[np.ndarray, "num classes"], truth: Int[np.ndarray, " num"]) -> float:
    """Return the share of rows whose largest logit (the first, if tied) is the true class."""
    return float((logits.argmax(axis=1) == truth).mean())


def nll(logits: Float[np.ndarray, "num classes"], truth: Int[np.ndarray, " num"]) -> float:
    """Return the mean negative log-likelihood of the truth, in nats."""
    return float(row_nll(logits, truth).mean())
