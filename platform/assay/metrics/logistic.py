"""Logistic regression on frozen features: one strength, or 45 of which val chooses.

Minimises - sum over rows of log softmax(W x + b) at the truth + decay / 2 |W|^2, by L-BFGS. Features are scaled to the
mean and the deviation of rows that need no labels. The grid of 45 values of C = 1 / decay is DINOv2's (Oquab et al.
2023, "DINOv2: learning robust visual features without supervision", and its published code for logistic regression).
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from assay.metrics.scores.classes import accuracy, nll
from assay.shapes import Float, Int

STRENGTHS = np.logspace(-6, 5, 45)
"""Values of C that val chooses from."""

MOST_STEPS = 1000
"""Of L-BFGS, for each of them."""


class Scale(NamedTuple):
    """Mean and deviation of features."""

    mean: Float[np.ndarray, " d"]
    std: Float[np.ndarray, " d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "rows d"]) -> "Scale":
        """Take those of some rows; a feature that never changes says nothing."""
        return cls(features.mean(0), np.maximum(features.std(0), 1e-6))

    def design(self, features: Float[np.ndarray, "num d"]) -> Float[np.ndarray, "num d_1"]:
        """Return scaled features and a column of ones."""
        scaled = (features.astype(np.float64) - self.mean) / self.std
        return np.column_stack([scaled, np.ones(len(features))])


class Chosen(NamedTuple):
    """What val has chosen."""

    strength: float
    """C."""
    weights: Float[np.ndarray, "d_1 classes"]


def decay_of(strength: float, num_classes: int) -> float:
    """Return what scikit-learn's C amounts to; of two classes it fits one vector, which is two opposite ones of half the square each."""
    return (2 if num_classes == 2 else 1) / strength


def fit_logistic(
    design: Float[np.ndarray, "rows d_1"],
    truth: Int[np.ndarray, " rows"],
    num_classes: int,
    decay: float = 1.0,
    start: Float[np.ndarray, "d_1 classes"] | None = None,
) -> Float[np.ndarray, "d_1 classes"]:
    """Fit the weights of a multinomial logistic regression; the last row, of the ones, has no decay."""
    target, shape = np.eye(num_classes)[truth], (design.shape[1], num_classes)
    is_decayed = (np.arange(shape[0]) < shape[0] - 1)[:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logits = design @ weights
        logits -= logits.max(axis=1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        penalised = weights * is_decayed
        gradient = design.T @ (np.exp(log_probs) - target) + decay * penalised
        value = -(target * log_probs).sum() + decay / 2 * (penalised**2).sum()
        return float(value), gradient.ravel()

    begin = np.zeros(shape) if start is None else start
    options = {"maxiter": MOST_STEPS}
    fitted = minimize(loss, begin.ravel(), jac=True, method="L-BFGS-B", options=options)
    weights: np.ndarray = fitted.x.reshape(shape)
    return weights


def logistic_logits(
    queries: Float[np.ndarray, "num d"],
    bank: Float[np.ndarray, "rows d"],
    truth: Int[np.ndarray, " rows"],
    num_classes: int,
    decay: float = 1.0,
) -> Float[np.ndarray, "num classes"]:
    """Classify queries by a regression that is fitted to a bank, and scaled by it."""
    scale = Scale.of(bank)
    weights = fit_logistic(scale.design(bank), truth, num_classes, decay)
    logits: np.ndarray = scale.design(queries) @ weights
    return logits


def choose_logistic(
    design: Float[np.ndarray, "rows d_1"],
    truth: Int[np.ndarray, " rows"],
    val: tuple[Float[np.ndarray, "num d_1"], Int[np.ndarray, " num"]],
    num_classes: int,
) -> Chosen:
    """Fit with each strength, and keep that of the best accuracy on val; ties go to the lower nll there.

    Each fit begins with the weights of the next weaker C.

    Args:
        design: Scaled features of train, with ones.
        truth: Their classes.
        val: Scaled features and classes of val.
        num_classes: All classes.
    """
    weights: np.ndarray | None = None
    best, chosen = (-np.inf, -np.inf), None
    for strength in STRENGTHS:
        decay = decay_of(strength, num_classes)
        weights = fit_logistic(design, truth, num_classes, decay, weights)
        logits = val[0] @ weights
        value = accuracy(logits, val[1]), -nll(logits, val[1])
        if value > best:
            best, chosen = value, Chosen(float(strength), weights)
    assert chosen is not None
    return chosen
