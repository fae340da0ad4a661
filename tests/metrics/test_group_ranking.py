"""Groups of two classes by what their images say together: by hand, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from assay.metrics.group_ranking import MEASURES, group_scores, measure_groups


def test_rules_by_hand() -> None:
    """Group 4 is of rows 0, 2 and 3, group 7 of the rest."""
    group, margins = np.array([4, 7, 4, 4, 7]), np.array([-3.0, -1.0, 2.0, -1.0, -0.5])
    attending = np.array([0.0, 5.0, 4.0, 8.0, 1.0]), np.log([1.0, 1.0, 2.0, 1.0, 3.0])
    scores = group_scores(margins, attending, group)
    assert list(scores) == ["any", "mean", "max", "attention"]
    assert scores["any"].tolist() == [1, 0]
    np.testing.assert_allclose(scores["mean"], [-2 / 3, -0.75])
    np.testing.assert_allclose(scores["max"], [2, -0.5])
    np.testing.assert_allclose(scores["attention"], [(0 + 2 * 4 + 8) / 4, (5 + 3 * 1) / 4])
    assert "attention" not in group_scores(margins, None, group)


def test_one_view_that_shows_it_is_lost_in_the_mean_and_not_in_the_highest() -> None:
    """Of six views of a defective unit one shows the defect; areas and F1 are scikit-learn's."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(240), 6)
    margins, is_positive = rng.normal(-1.5, 0.6, 1440), np.arange(240) % 3 == 0
    margins[::6] += 3.0 * is_positive
    val = group < 120
    scores, of_val = (group_scores(margins[rows], None, group[rows]) for rows in (~val, val))
    truth, of_val_truth = is_positive[120:], is_positive[:120]
    measured = measure_groups(scores, truth, (of_val, of_val_truth))
    for rule in ("mean", "max"):
        area = roc_auc_score(truth, scores[rule])
        assert measured[f"group_{rule}_auroc"].value == pytest.approx(area)
        assert measured[f"group_{rule}_auroc"].num_groups == 120
    assert measured["group_max_auroc"].value > measured["group_mean_auroc"].high
    expected = f1_score(truth, scores["any"])
    assert measured["group_any_f1"].value == pytest.approx(expected)
    assert measured.keys() <= MEASURES.keys()
    assert "group_any_auroc" not in measured
    assert measure_groups(scores, np.ones(120, bool), (of_val, of_val_truth)) == {}
