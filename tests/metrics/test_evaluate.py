"""evaluate.py against scikit-learn, torchmetrics, closed forms and loops over groups."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
)
from torchmetrics.functional.classification import multiclass_calibration_error

from assay.errors import PredictionsError
from assay.metrics.compare import compare
from assay.metrics.estimate import Estimate
from assay.metrics.evaluate import by_group, summarise
from assay.metrics.scores.classes import accuracy, nll, softmax
from assay.typed import to_json

# Metrics


MACRO = {
    "macro_precision": precision_score,
    "macro_recall": recall_score,
    "macro_f1": f1_score,
}


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


@pytest.fixture(scope="session")
def scored(random_scores: Callable[..., Any]) -> Callable[..., tuple[Any, Any, Any]]:
    """Draws logits and truth of single images, and summarises them."""

    def draw(num_classes: int, num: int = 300) -> tuple[Any, Any, Any]:
        logits, truth = random_scores(num_classes, num, num_classes)
        ids = [f"s{i}" for i in range(num)]
        columns = {
            "id": ids,
            "split": ["test"] * num,
            "group": ids,
            "truth": pa.array(truth, pa.int32()),
            "logits": pa.array(logits.tolist(), pa.list_(pa.float32())),
        }
        names = json.dumps([f"c{i}" for i in range(num_classes)])
        table = pa.table(columns).replace_schema_metadata({"classes": names})
        return logits, truth, summarise(table, "test")

    return draw


@pytest.mark.parametrize("num_classes", [2, 3, 21])
def test_metrics_agree_with_sklearn_and_torchmetrics(
    scored: Callable[..., Any], num_classes: int
) -> None:
    logits, truth, summary = scored(num_classes)
    answers = logits.argmax(axis=1)
    assert accuracy(logits, truth) == pytest.approx(accuracy_score(truth, answers))
    assert value(summary.metrics["accuracy"]) == pytest.approx(accuracy_score(truth, answers))
    for name, score in MACRO.items():
        expected = score(truth, answers, average="macro", zero_division=0)
        assert value(summary.metrics[name]) == pytest.approx(expected)
    expected = log_loss(truth, softmax(logits), labels=np.arange(num_classes))
    assert nll(logits, truth) == pytest.approx(expected)
    assert value(summary.metrics["nll"]) == pytest.approx(expected)
    probs = torch.from_numpy(softmax(logits))
    error = multiclass_calibration_error(probs, torch.from_numpy(truth), num_classes, n_bins=15)
    assert value(summary.metrics["ece"]) == pytest.approx(float(error), abs=1e-6)
    assert summary.confusion == confusion_matrix(truth, answers, labels=range(num_classes)).tolist()
    recalls = recall_score(truth, answers, average=None, zero_division=0)
    precisions = precision_score(truth, answers, average=None, zero_division=0)
    for i, shares in enumerate(summary.classes.values()):
        assert shares.num == (truth == i).sum()
        assert value(shares.recall) == pytest.approx(recalls[i])
        if shares.precision is not None:
            assert value(shares.precision) == pytest.approx(precisions[i])


def test_nll_survives_huge_logits() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], dtype=np.float32)
    assert nll(logits, np.array([0, 0])) == pytest.approx(5e3)


def test_every_number_bears_an_interval_around_it(scored: Callable[..., Any]) -> None:
    _, _, summary = scored(3)
    estimates = [e for e in summary.metrics.values() if e is not None]
    estimates += [summary.risk_coverage.aurc, *(b.accuracy for b in summary.reliability)]
    for estimate in estimates:
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.low < estimate.high


def test_reliability_bins_hold_all_rows_and_their_confidence(scored: Callable[..., Any]) -> None:
    logits, truth, summary = scored(3)
    confidence = softmax(logits).max(axis=1)
    assert sum(b.num for b in summary.reliability) == len(truth)
    for b in summary.reliability:
        in_bin = (confidence > b.low) & (confidence <= b.high)
        assert b.confidence == pytest.approx(confidence[in_bin].mean())
        hits = (logits.argmax(axis=1) == truth)[in_bin]
        assert value(b.accuracy) == pytest.approx(hits.mean())


def test_a_table_of_scores_has_its_score_and_domains_alone() -> None:
    columns = {
        "id": list("abcd"),
        "split": ["test"] * 4,
        "group": list("wxyz"),
        "domain.build": list("ppqq"),
        "score": [0.5, 1.0, 0.0, 0.25],
        "weight": [10.0, 30.0, 0.0, 60.0],
    }
    summary = summarise(pa.table(columns).replace_schema_metadata({"score": "IoU"}), "test")
    assert list(summary.metrics) == ["IoU"]
    assert value(summary.metrics["IoU"]) == pytest.approx(0.5)
    assert summary.domains["build"]["p"].value == pytest.approx(35 / 40)
    assert summary.worst_domain == ("build", "q")
    assert (summary.classes, summary.confusion, summary.views) == ({}, [], [])
    json.dumps(to_json(summary), allow_nan=False)


# Groups


def test_by_group_pools_logits_and_votes() -> None:
    logits = np.array(
        [
            [9.0, 0.0, 0.0],  # b: one sure sample for class 0 ...
            [0.0, 1.0, 0.0],  # b: ... against two for class 1
            [0.0, 1.0, 0.0],
            [0.0, 2.0, 0.0],  # a: a tie of 1 and 2, which 2 wins by its mean logit;
            [1.5, 0.0, 3.0],  # a: class 0 has no vote
        ]
    )
    group = np.array(["b", "b", "b", "a", "a"])
    mean, vote, truth = by_group(logits, np.array([1, 1, 1, 2, 2]), group)
    np.testing.assert_allclose(mean, [[0.75, 1.0, 1.5], [3.0, 2 / 3, 0.0]])
    np.testing.assert_array_equal(vote, [2, 1])
    np.testing.assert_array_equal(truth, [2, 1])


def test_by_group_breaks_ties_only_among_the_tied() -> None:
    logits = np.array([[5.0, 5.1, 0.0], [5.0, 0.0, 5.1]])  # class 0: largest mean, no vote
    mean, vote, _ = by_group(logits, np.array([0, 0]), np.array(["g", "g"]))
    assert mean.argmax() == 0
    assert vote.tolist() == [1]


def test_by_group_agrees_with_a_loop(random_scores: Callable[..., Any]) -> None:
    logits, truth = random_scores(3)
    group = np.random.default_rng(0).permutation(truth + 3 * np.arange(300) % 60 * 3)
    truth = (group % 3).astype(np.int32)
    mean, vote, group_truth = by_group(logits, truth, group)
    for row, name in enumerate(sorted(set(group.tolist()))):
        rows = logits[group == name]
        votes = np.bincount(rows.argmax(axis=1), minlength=3)
        tied = [c for c in range(3) if votes[c] == votes.max()]
        np.testing.assert_allclose(mean[row], rows.mean(axis=0), rtol=1e-5, atol=1e-6)
        assert vote[row] == max(tied, key=lambda c: rows.mean(axis=0)[c])
        assert group_truth[row] == name % 3


def test_a_view_score_weighs_rows_in_their_groups_everywhere() -> None:
    """In accuracy of groups, accuracy by views, and comparisons; every other number stays as it is."""
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    group, truth = np.array(["a", "a", "b", "b"]), np.array([1, 1, 1, 1])
    scores = np.log([1.0, 3.0, 1.0, 1.0])
    pooled = by_group(logits, truth, group, scores)[0]
    np.testing.assert_allclose(pooled, [[0.5, 0.75], [1.5, 0.5]])
    columns = {"id": list("klmn"), "split": ["test"] * 4, "group": group.tolist()}
    answers = {"truth": pa.array(truth, pa.int32()), "logits": pa.array(list(logits))}
    metadata = {b"classes": json.dumps(["sound", "crack"]).encode()}
    plain = pa.table(columns | answers).replace_schema_metadata(metadata)
    weighed = plain.append_column("view_score", pa.array(scores))
    found, before = summarise(weighed, "test"), summarise(plain, "test")
    assert value(found.metrics["group_accuracy"]) == 1 / 2
    assert value(before.metrics["group_accuracy"]) == 0
    assert [value(views.accuracy) for views in found.views] == [1 / 2, 1 / 2]
    assert [value(views.accuracy) for views in before.views] == [1 / 2, 0]
    assert found.metrics["accuracy"] == before.metrics["accuracy"]
    (comparison,) = compare({"weighed": weighed, "plain": plain})
    assert comparison.mcnemar is not None
    assert (comparison.mcnemar.only_first, comparison.mcnemar.only_second) == (1, 0)


def test_a_group_with_two_truths_is_refused() -> None:
    group = np.array(["a", "a", "b", "b"])
    with pytest.raises(PredictionsError, match=r"1 of 2 groups .* 'b'"):
        by_group(np.zeros((4, 3)), np.array([0, 0, 1, 2]), group)
