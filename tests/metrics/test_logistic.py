"""Logistic regression against scikit-learn's, and what val chooses of it."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from assay.metrics.logistic import (
    STRENGTHS,
    Scale,
    choose_logistic,
    decay_of,
    fit_logistic,
    logistic_logits,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def clouds(num: int, num_classes: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes about centres of their own."""
    rng = np.random.default_rng(seed)
    truth = np.arange(num) % num_classes
    centres = np.random.default_rng(99).normal(0, 1, (num_classes, dim))
    return centres[truth] + rng.normal(0, 1.0, (num, dim)), truth


@pytest.mark.parametrize("decay", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_logistic_regression_is_scikit_learns(num_classes: int, decay: float) -> None:
    bank, truth = clouds(150, num_classes, 6, 3)
    queries, _ = clouds(80, num_classes, 6, 4)
    bank, queries = bank * [1, 10, 100, 1, 1, 0.1] + 5, queries * [1, 10, 100, 1, 1, 0.1] + 5
    scaler = StandardScaler().fit(bank)
    # two classes are one vector there, and two opposite ones, of half the square each, here
    weight = (2 if num_classes == 2 else 1) / decay
    model = LogisticRegression(C=weight, tol=1e-9, max_iter=5000)
    model.fit(scaler.transform(bank), truth)
    expected = model.predict_proba(scaler.transform(queries))
    for kind in (np.float32, np.float64):
        logits = logistic_logits(queries.astype(kind), bank.astype(kind), truth, num_classes, decay)
        np.testing.assert_allclose(softmax(logits), expected, atol=1e-3)


def test_a_feature_that_never_changes_says_nothing() -> None:
    bank, truth = clouds(60, 3, 4, 5)
    queries, _ = clouds(20, 3, 4, 6)
    fixed, other = np.full((60, 1), 0.3), np.full((20, 1), 4.0)
    with_fixed = logistic_logits(
        np.column_stack([queries, other]), np.column_stack([bank, fixed]), truth, 3
    )
    expected = logistic_logits(queries, bank, truth, 3)
    np.testing.assert_allclose(softmax(with_fixed), softmax(expected), atol=1e-3)


def test_val_chooses_of_dinov2s_strengths_as_scikit_learn_would() -> None:
    """Each of 45 fits is scikit-learn's from nothing, though ours begin where the weaker ended."""
    assert (len(STRENGTHS), STRENGTHS[0], STRENGTHS[-1]) == (45, 1e-6, 1e5)
    assert np.allclose(np.diff(np.log10(STRENGTHS)), 11 / 44)
    features, truth = clouds(240, 3, 8, 1)
    train, val = slice(0, 120), slice(120, None)
    scale = Scale.of(features[train])
    design = scale.design(features)
    chosen = choose_logistic(design[train], truth[train], (design[val], truth[val]), 3)
    scores = []
    for strength in STRENGTHS[:33]:  # beyond C = 100 scikit-learn needs many thousand steps
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
        model.fit(design[train, :-1], truth[train])
        probs = model.predict_proba(design[val, :-1])
        right = (probs.argmax(1) == truth[val]).mean()
        scores.append((right, np.log(probs[np.arange(120), truth[val]]).mean(), strength))
    best = max(scores)
    assert chosen.strength == pytest.approx(best[2])
    logits = design[val] @ chosen.weights
    assert (logits.argmax(1) == truth[val]).mean() == best[0]


def test_two_classes_have_the_decay_of_scikit_learns_one_vector() -> None:
    assert [decay_of(4.0, num) for num in (2, 3)] == [0.5, 0.25]


def test_the_last_weight_has_no_decay() -> None:
    """Of features that say nothing the offsets alone remain, and those are the classes' shares."""
    truth = np.repeat([0, 1, 2], [50, 30, 20])
    weights = fit_logistic(np.column_stack([np.zeros((100, 2)), np.ones(100)]), truth, 3, 100.0)
    np.testing.assert_allclose(softmax(weights[-1:])[0], [0.5, 0.3, 0.2], atol=1e-4)
