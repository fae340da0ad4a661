"""evaluate.py against scikit-learn, torchmetrics, closed forms and planted tables."""

import json
from collections.abc import Callable
from itertools import combinations
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
from assay.metrics.predictions import logits_of, rows_of
from assay.metrics.scores.classes import accuracy, nll, softmax
from assay.typed import to_json

CLASSES = ["m1", "m2", "m3"]


def make_table(num: int = 12, seed: int = 0, **columns: Any) -> pa.Table:
    """Make a table of `num` rows, two per group; `columns` replace or join its own."""
    rng = np.random.default_rng(seed)
    values = {
        "id": [f"s{i:05d}" for i in range(num)],
        "split": ["val" if i % 6 < 2 else "test_seen" for i in range(num)],
        "group": [f"g{i // 2:05d}" for i in range(num)],
        "domain.machine": [("a", "b")[i // 2 % 2] for i in range(num)],
        "truth": pa.array([i // 2 % 3 for i in range(num)], pa.int32()),
        "logits": pa.array(rng.normal(size=(num, 3)).tolist(), pa.list_(pa.float32())),
    } | columns
    return pa.table(values).replace_schema_metadata({"classes": json.dumps(CLASSES)})


def hit_logits(truth: Any, hits: Any) -> pa.Array:
    """Make logits whose argmax is the truth where `hits` and the next class elsewhere."""
    picked = np.where(hits, truth, (np.asarray(truth) + 1) % 3)
    return pa.array(np.eye(3)[picked].tolist(), pa.list_(pa.float32()))


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


def test_risk_coverage_by_brute_force_with_ties() -> None:
    table = make_table(60)
    logits = np.round(np.array(table["logits"].to_pylist()))  # many equal confidences
    table = table.set_column(
        table.schema.get_field_index("logits"),
        "logits",
        pa.array(logits.tolist(), pa.list_(pa.float32())),
    )
    rows = rows_of(table, "test_seen")
    truth, logits = rows["truth"].to_numpy(), logits_of(rows)
    confidence = softmax(logits).max(axis=1)
    missed = logits.argmax(axis=1) != truth
    expected = np.mean([missed[confidence >= c].mean() for c in confidence])
    curve = summarise(table, "test_seen").risk_coverage
    assert curve.aurc.value == pytest.approx(expected)
    assert curve.coverage[-1] == 1.0
    assert curve.risk[-1] == pytest.approx(missed.mean())
    for share, risk in zip(curve.coverage, curve.risk, strict=True):
        least = np.sort(confidence)[::-1][round(share * len(truth)) - 1]
        assert risk == pytest.approx(missed[confidence >= least].mean())


def test_views_by_brute_force() -> None:
    """Five views a part: all subsets are few enough to be counted."""
    rng = np.random.default_rng(5)
    truth = np.repeat(np.arange(12) % 3, 5)
    logits = rng.normal(size=(60, 3)) + np.eye(3)[truth]
    table = make_table(
        60,
        split=["test"] * 60,
        group=[f"g{i // 5:02d}" for i in range(60)],
        truth=pa.array(truth, pa.int32()),
        logits=pa.array(logits.tolist()),
    )
    views = summarise(table, "test").views
    assert [v.views for v in views] == [1, 2, 3, 4, 5]
    for v in views:
        hits = [
            logits[list(rows)].mean(axis=0).argmax() == truth[rows[0]]
            for part in range(12)
            for rows in combinations(range(5 * part, 5 * part + 5), v.views)
        ]
        assert v.accuracy.value == pytest.approx(np.mean(hits))
        assert v.accuracy.num_groups == 12


def test_machines_of_one_model_are_told_from_a_column() -> None:
    truth = np.arange(30) % 3
    answers = truth.copy()
    answers[[0, 3]] = 1  # of m1 to m2, its sister
    answers[[6]] = 2  # and to m3, another model
    table = make_table(
        30,
        truth=pa.array(truth, pa.int32()),
        split=["test"] * 30,
        group=[f"g{i}" for i in range(30)],
        logits=pa.array(np.eye(3)[answers].tolist(), pa.list_(pa.float32())),
        **{"domain.model": [("A", "A", "B")[i % 3] for i in range(30)]},
    )
    families = summarise(table, "test").families
    assert set(families) == {"model"}  # the column machine changes within a class
    assert value(families["model"].accuracy) == pytest.approx(29 / 30)
    assert value(families["model"].within) == pytest.approx(2 / 3)


def test_summary_of_a_table_counted_by_hand() -> None:
    # test_seen: groups 1, 2 (rows 2-5) and 4, 5 (rows 8-11) of the classes 1, 2, 1, 2
    truth = np.arange(12) // 2 % 3
    hits = np.ones(12, dtype=bool)
    hits[[3, 4, 5]] = False  # group 1 (machine b): half; group 2 (machine a): none
    logits = np.eye(3)[np.where(hits, truth, (truth + 1) % 3)]
    logits[2] *= 2  # so group 1 is right by its mean logit and by its vote
    table = make_table(
        logits=pa.array(logits.tolist(), pa.list_(pa.float32(), 3)),
        **{"domain.design": ["x"] * 8 + ["y"] * 4},
    )
    summary = summarise(table, "test_seen")
    assert (summary.num, summary.num_groups) == (8, 4)
    assert (value(summary.metrics["accuracy"]), summary.num_groups) == (5 / 8, 4)
    assert value(summary.metrics["group_accuracy"]) == 3 / 4
    assert value(summary.metrics["vote_accuracy"]) == 3 / 4
    values = {
        (column, name): (estimate.value, estimate.num, estimate.num_groups)
        for column, estimates in summary.domains.items()
        for name, estimate in estimates.items()
    }
    assert values == {
        ("machine", "a"): (2 / 4, 4, 2),
        ("machine", "b"): (3 / 4, 4, 2),
        ("design", "x"): (1 / 4, 4, 2),
        ("design", "y"): (1.0, 4, 2),
    }
    assert summary.worst_domain == ("design", "x")
    rows = [2, 3, 4, 5, 8, 9, 10, 11]
    predicted = logits[rows].argmax(axis=1)
    for name, score in MACRO.items():
        expected = score(truth[rows], predicted, average="macro", zero_division=0)
        assert value(summary.metrics[name]) == pytest.approx(expected)
    expected = log_loss(truth[rows], softmax(logits[rows]), labels=range(3))
    assert value(summary.metrics["nll"]) == pytest.approx(expected)


def test_summary_is_json_without_nan() -> None:
    text = json.dumps(to_json(summarise(make_table(), "test_seen")), allow_nan=False)
    read = json.loads(text)
    assert read["metrics"]["accuracy"].keys() == {
        "value",
        "low",
        "high",
        "num",
        "num_groups",
        "num_effective",
    }
    assert read["worst_domain"][1] in read["domains"][read["worst_domain"][0]]


def test_summary_of_one_row_without_domains_is_finite() -> None:
    summary = summarise(make_table(1).drop_columns(["domain.machine"]), "val")
    json.dumps(to_json(summary), allow_nan=False)
    assert (summary.domains, summary.worst_domain) == ({}, None)
    assert (summary.metrics["accuracy"].low, summary.metrics["accuracy"].high) == (0.0, 1.0)


def test_summary_where_a_class_is_absent_is_finite() -> None:
    truth = np.zeros(12, dtype=int)
    logits = hit_logits(truth, np.arange(12) != 2)
    summary = summarise(make_table(truth=pa.array(truth, pa.int32()), logits=logits), "test_seen")
    json.dumps(to_json(summary), allow_nan=False)
    # class 0: tp 7, fn 1 -> 14/15; class 1: predicted once, never true -> 0; class 2: neither
    assert value(summary.metrics["macro_f1"]) == pytest.approx((14 / 15 + 0) / 2)
    assert value(summary.metrics["macro_precision"]) == pytest.approx((7 / 7 + 0) / 2)
    assert value(summary.metrics["macro_recall"]) == pytest.approx((7 / 8 + 0) / 2)


def test_summary_reads_both_kinds_of_list_in_chunks() -> None:
    table = make_table(60)
    fixed = table["logits"].cast(pa.list_(pa.float32(), 3))
    other = table.set_column(table.schema.get_field_index("logits"), "logits", fixed)
    chunked = pa.concat_tables([other.slice(0, 25), other.slice(25)])
    assert summarise(chunked, "test_seen") == summarise(table, "test_seen")


def test_summary_of_a_split_that_is_not_there() -> None:
    with pytest.raises(PredictionsError, match="'test'; the table holds: test_seen, val"):
        summarise(make_table(), "test")


@pytest.mark.parametrize("column", ["id", "truth", "logits"])
def test_unsound_tables_are_refused(column: str) -> None:
    with pytest.raises(PredictionsError, match=f"lacks {column}"):
        summarise(make_table(12).drop_columns([column]), "val")


def test_groups_with_two_truths_have_no_answer_as_a_whole() -> None:
    truth = pa.array([i % 3 for i in range(12)], pa.int32())
    summary = summarise(make_table(12, truth=truth), "test_seen")
    assert summary.metrics["group_accuracy"] is None
    assert summary.metrics["vote_accuracy"] is None
    assert summary.views == []
    assert summary.num_groups == 4
