"""One answer to a group of images: a head that weighs views by what they show, fitted to frozen features.

Of a group's views with features x_v the weights are a_v = softmax over v of q x_v, and the logits W sum_v a_v x_v + b, which
is the mean of each view's own logits by these weights. Minimises - sum over groups of log softmax at the truth
+ decay / 2 (|W|^2 + |q|^2) by L-BFGS; q = 0, where it begins, is the logistic regression on mean features.

Source: Ilse, Tomczak and Welling 2018, "Attention-based deep multiple instance learning", whose hidden layer of tanh is left out.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from assay.metrics.evaluate import by_group
from assay.metrics.logistic import MOST_STEPS, decay_of
from assay.metrics.scores.classes import accuracy, nll, row_nll, softmax
from assay.metrics.view_pooling import attention_of, pool_views, sums_by_group
from assay.shapes import Float, Int

STRENGTHS = np.logspace(-4, 2, 13)
"""Values of C = 1 / decay that val chooses from."""


class Views(NamedTuple):
    """Images of groups."""

    design: Float[np.ndarray, "num d_1"]
    """Scaled features, and a column of ones."""
    truth: Int[np.ndarray, " num"]
    """Classes, one for all rows of a group."""
    group: Int[np.ndarray, " num"]


class ChosenAttention(NamedTuple):
    """What val has chosen."""

    strength: float
    """C."""
    weights: Float[np.ndarray, "d_1 classes"]
    query: Float[np.ndarray, " d_1"]


def fit_attention(
    views: Views,
    num_classes: int,
    decay: float = 1.0,
    start: Float[np.ndarray, "d_1 classes_1"] | None = None,
) -> Float[np.ndarray, "d_1 classes_1"]:
    """Fit weights and, as a last column, the query; the last row, of the ones, has no decay and moves no attention."""
    design, truth, group = views
    codes = np.unique(group, return_inverse=True)[1]
    target = np.zeros((codes.max() + 1, num_classes))
    target[codes, truth] = 1
    shape = (design.shape[1], num_classes + 1)
    is_decayed = (np.arange(shape[0]) < shape[0] - 1)[:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        values = flat.reshape(shape)
        answers, shares = design @ values[:, :-1], attention_of(design @ values[:, -1], codes)
        logits = sums_by_group(answers * shares[:, None], codes)
        gap = (softmax(logits) - target)[codes]
        slope = (gap * answers).sum(axis=1)
        slope = shares * (slope - np.bincount(codes, shares * slope)[codes])
        penalised = values * is_decayed
        of_views = np.column_stack([gap * shares[:, None], slope])
        value = row_nll(logits, target.argmax(axis=1)).sum() + decay / 2 * (penalised**2).sum()
        return float(value), (design.T @ of_views + decay * penalised).ravel()

    begin = np.zeros(shape) if start is None else start
    options = {"maxiter": MOST_STEPS}
    fitted = minimize(loss, begin.ravel(), jac=True, method="L-BFGS-B", options=options)
    solution: np.ndarray = fitted.x.reshape(shape)
    return solution


def choose_attention(train: Views, val: Views, num_classes: int) -> ChosenAttention:
    """Fit with each strength, from the weaker one's end on; keep that of the best accuracy on val's groups, ties going to the lower nll."""
    values: np.ndarray | None = None
    best, chosen = (-np.inf, -np.inf), None
    design, truth, group = val
    for strength in STRENGTHS:
        values = fit_attention(train, num_classes, decay_of(strength, num_classes), values)
        weights, query = values[:, :-1], values[:, -1]
        answers = design @ weights
        of_groups = by_group(answers, truth, group)[2]
        logits = pool_views(answers, design @ query, group)
        score = accuracy(logits, of_groups), -nll(logits, of_groups)
        if score > best:
            best, chosen = score, ChosenAttention(float(strength), weights, query)
    assert chosen is not None
    return chosen
