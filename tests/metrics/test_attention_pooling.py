"""Attention over the images of a group: against autograd and scikit-learn, and where one view of five shows the class."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from assay.metrics.attention_pooling import Views, choose_attention, fit_attention
from assay.metrics.evaluate import by_group
from assay.metrics.logistic import decay_of
from assay.metrics.view_pooling import attention_of, pool_views


def bags(num: int, seed: int, num_classes: int = 2) -> Views:
    """Groups of five views, of which one, marked by the last feature, tells the class; the others tell loudly what is not so."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(num), 5))
    truth = (np.arange(num) % num_classes)[group]
    features = rng.normal(size=(5 * num, num_classes + 1))
    features[:, -1] *= 0.3
    first = np.unique(group, return_index=True)[1]
    told = rng.integers(0, num_classes, 5 * num)
    told[first] = truth[first]
    features[:, :-1] += 3 * np.eye(num_classes)[told]
    features[first, -1] += 2
    return Views(np.column_stack([features, np.ones(5 * num)]), truth, group)


def objective(views: Views, values: torch.Tensor, decay: float, num_classes: int) -> torch.Tensor:
    """The loss group by group, as it is written in the paper but for the hidden layer."""
    design, truth, group = views
    total = decay / 2 * values[:-1].square().sum()
    for name in np.unique(group):
        x = torch.from_numpy(design[group == name])
        pooled = (x @ values[:, -1]).softmax(0) @ x
        label = torch.from_numpy(truth[group == name])[:1]
        logits = (pooled @ values[:, :-1])[None]
        total = total + torch.nn.functional.cross_entropy(logits, label, reduction="sum")
    return total


@pytest.mark.parametrize("num_classes", [2, 3])
def test_what_is_fitted_is_where_autograd_finds_no_slope(num_classes: int) -> None:
    views = bags(30, 0, num_classes)
    fitted = fit_attention(views, num_classes, decay=1.0)
    values = torch.from_numpy(fitted).requires_grad_(True)
    loss = objective(views, values, 1.0, num_classes)
    loss.backward()
    assert values.grad is not None
    assert values.grad.abs().max() < 0.02
    beside = torch.zeros_like(values)
    mean = objective(views, beside, 1.0, num_classes).item()
    assert loss.item() < 0.8 * mean
    assert abs(fitted[-1, -1]) < 1e-9  # the ones weigh all views alike


def test_groups_of_one_image_are_scikit_learns_logistic_regression() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 90)
    features = rng.normal(size=(90, 4)) + np.eye(3, 4)[truth]
    design = np.column_stack([features, np.ones(90)])
    fitted = fit_attention(Views(design, truth, np.arange(90)), 3, decay_of(0.5, 3))
    model = LogisticRegression(C=0.5, tol=1e-9, max_iter=5000).fit(features, truth)
    shares = np.exp(design @ fitted[:, :-1])
    probs = model.predict_proba(features)
    np.testing.assert_allclose(shares / shares.sum(1, keepdims=True), probs, atol=2e-3)
    assert not fitted[:, -1].any()


def test_equal_scores_are_the_mean_and_one_high_score_is_its_row() -> None:
    rng = np.random.default_rng(0)
    group, logits = rng.integers(3, 8, 40), rng.normal(size=(40, 3))
    mean = by_group(logits, group, group)[0]
    np.testing.assert_allclose(pool_views(logits, np.full(40, 7.0), group), mean)
    scores = np.zeros(40)
    chosen = np.unique(group, return_index=True)[1]
    scores[chosen] = 900.0
    np.testing.assert_allclose(pool_views(logits, scores, group), logits[chosen])
    shares = attention_of(rng.normal(size=40), group)
    np.testing.assert_allclose(np.bincount(group, shares)[np.unique(group)], 1)


def test_attention_finds_the_view_that_tells_where_the_mean_does_not() -> None:
    """n = 300 groups of five that nothing was fitted to, one seed."""
    train, val, test = (bags(num, seed) for num, seed in ((200, 1), (100, 2), (300, 3)))
    chosen = choose_attention(train, val, 2)
    design, truth, group = test
    logits, scores = design @ chosen.weights, design @ chosen.query
    plain, _, of_group = by_group(logits, truth, group)
    pooled = pool_views(logits, scores, group)
    assert (pooled.argmax(1) == of_group).mean() > 0.95
    assert (plain.argmax(1) == of_group).mean() < 0.85
    told = np.zeros(len(group), bool)
    told[np.unique(group, return_index=True)[1]] = True
    shares = attention_of(scores, group)
    assert shares[told].mean() > 0.9
    # and val alone has chosen: by other classes of val it would be another strength, by those of test not
    other = choose_attention(train, val._replace(truth=1 - val.truth), 2)
    assert other.strength != chosen.strength
