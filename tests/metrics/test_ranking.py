"""Ranking of two classes against scikit-learn, and thresholds that val alone chooses."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from assay.metrics.ranking import measure_ranking


def rows(num: int, seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of overlapping classes, truth by group."""
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, num // 4, num))
    group = np.unique(group, return_inverse=True)[1]
    truth = (rng.random(group.max() + 1) < 0.3)[group]
    scores = rng.normal(size=num) + truth
    return (scores.round(0) if ties else scores), truth, group


@pytest.mark.parametrize("ties", [False, True])
def test_areas_and_f1_are_scikit_learns(ties: bool) -> None:
    scores, truth, group = rows(200, 1, ties)
    val = rows(120, 2, ties)[:2]
    measured = measure_ranking(scores, truth, group, val)
    assert measured["auroc"].value == pytest.approx(roc_auc_score(truth, scores))
    expected = average_precision_score(truth, scores)
    assert measured["average_precision"].value == pytest.approx(expected)
    best = max(np.unique(val[0]), key=lambda t: f1_score(val[1], val[0] >= t))
    assert measured["f1"].value == pytest.approx(f1_score(truth, scores >= best))
    for estimate in measured.values():
        assert estimate.low < estimate.value < estimate.high
        assert estimate.num_groups <= group.max() + 1


def test_recall_is_that_of_the_lowest_threshold_whose_precision_val_keeps() -> None:
    val_scores = np.arange(20.0)
    val_truth = val_scores >= 10
    val_truth[5] = True  # at 5: 11 of 15; at 10: 10 of 10; at 9: 10 of 11
    scores, truth = np.array([8.0, 9.0, 9.5, 12.0, 3.0]), np.array([True, True, False, True, False])
    measured = measure_ranking(scores, truth, np.arange(5), (val_scores, val_truth))
    assert measured["recall_at_precision"].value == pytest.approx(2 / 3)
    assert measured["precision_kept"].value == pytest.approx(2 / 3)


def test_where_no_threshold_keeps_the_precision_none_is_told() -> None:
    scores, truth, group = rows(60, 3, False)
    measured = measure_ranking(scores, truth, group, (scores, np.arange(60) == scores.argmin()))
    assert measured.keys() == {"auroc", "average_precision", "f1"}


def test_a_set_of_one_class_has_no_ranking() -> None:
    scores, truth, group = rows(60, 4, False)
    assert measure_ranking(scores, np.ones(60, bool), group, (scores, truth)) == {}
    assert measure_ranking(scores, truth, group, (scores, np.zeros(60, bool))) == {}


def test_of_a_class_of_one_group_the_areas_are_not_known() -> None:
    scores, _, group = rows(80, 5, False)
    measured = measure_ranking(scores, group == 3, group, (scores, group % 2 == 0))
    for name in ("auroc", "average_precision"):
        assert (measured[name].low, measured[name].high) == (0.0, 1.0)


@pytest.mark.parametrize("num_positive", [2, 3, 5])
def test_few_positives_among_many_negatives_have_intervals_that_hold(num_positive: int) -> None:
    truth, held = np.arange(60) < num_positive, 0
    for seed in range(100):
        scores = np.random.default_rng(seed).normal(size=60) + truth
        auroc = measure_ranking(scores, truth, np.arange(60), (scores, truth))["auroc"]
        assert auroc.effective == pytest.approx(num_positive)
        held += auroc.low <= norm.cdf(1 / np.sqrt(2)) <= auroc.high
    assert held >= 90  # 70 to 89 were held by the effective number of all groups
