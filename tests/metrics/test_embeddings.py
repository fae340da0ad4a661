"""What embeddings are worth: every number follows from the table, and test decides nothing."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from assay.metrics import linear_grid
from assay.metrics.embeddings import answer, findings, note_of
from assay.metrics.frozen_heads import FrozenHead
from assay.metrics.linear_grid import inputs_of
from assay.metrics.predictions import rows_of


@pytest.fixture(autouse=True)
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_grid, "FEWEST_UPDATES", 60)


def table(num_classes: int, seed: int = 0, num: int = 360) -> tuple[pa.Table, pa.Table]:
    """Rows of val and test, and of train: clouds about the classes, three rows to a group; two blocks' tokens and their patches."""
    rng = np.random.default_rng(seed)
    group = np.arange(num) // 3
    truth = group % num_classes
    vectors = rng.normal(size=(num, 4)) + 1.3 * np.eye(num_classes, 4)[truth]
    tokens = np.concatenate([rng.normal(size=(num, 4)), vectors, rng.normal(size=(num, 4))], axis=1)
    columns: dict[str, Any] = {
        "id": [f"{row:03d}" for row in range(num)],
        "split": [("train", "train", "val", "test")[code // num_classes % 4] for code in group],
        "group": [f"g{code:03d}" for code in group],
        "truth": pa.array(truth, pa.int32()),
        "embedding": pa.array(list(vectors)),
        "tokens": pa.array(list(tokens)),
    }
    classes = json.dumps(["sound", "crack", "pit"][:num_classes]).encode()
    rows = pa.table(columns).replace_schema_metadata({b"classes": classes})
    is_train = pa.compute.equal(rows["split"], "train")
    return rows.filter(pa.compute.invert(is_train)), rows.filter(is_train)


def lists(rows: pa.Table, column: str) -> np.ndarray:
    return np.array(rows[column].to_pylist())


def test_every_number_follows_from_the_columns() -> None:
    rows, bank = table(3)
    answered = answer(rows, bank)
    assert "tokens" not in answered.column_names
    assert answered.schema.metadata[b"classes"] == rows.schema.metadata[b"classes"]
    note = note_of(answered)
    assert note["head"]["blocks"] in (1, 2)
    assert note["labels"] == [[0.01, 3, 5], [0.05, 3, 5], [0.1, 6, 5], [1.0, 60, 1]]
    metrics, figures = findings(answered, "")
    assert metrics.keys() == {"val", "test"}
    test = rows_of(answered, "test")
    truth, hits = test["truth"].to_numpy(), lists(test, "hits_labels")
    assert hits.shape == (90, 16)
    for name in ("knn_10", "knn_100", "logistic", "linear"):
        right = lists(test, f"logits_{name}").argmax(1) == truth
        estimate = metrics["test"][f"{name}_accuracy"]
        assert estimate.value == pytest.approx(right.mean())
        assert (estimate.num, estimate.num_groups) == (90, 30)
        assert estimate.low < estimate.value < estimate.high
    assert "knn_200_accuracy" not in metrics["test"]  # train has 180 rows
    mean = lists(test, "logits_linear").reshape(30, 3, 3).mean(1).argmax(1)
    expected = (mean == truth.reshape(30, 3)[:, 0]).mean()
    assert metrics["test"]["linear_group_accuracy"].value == pytest.approx(expected)
    shares = np.exp(test["attention"].to_numpy()).reshape(30, 3, 1)
    weighed = (lists(test, "logits_attention").reshape(30, 3, 3) * shares).sum(1).argmax(1)
    expected = (weighed == truth.reshape(30, 3)[:, 0]).mean()
    assert metrics["test"]["attention_group_accuracy"].value == pytest.approx(expected)
    by_share = {"1": hits[:, :5], "5": hits[:, 5:10], "10": hits[:, 10:15], "100": hits[:, 15:]}
    for share, of_draws in by_share.items():
        estimate = metrics["test"][f"labels_{share}_accuracy"]
        assert estimate.value == pytest.approx(of_draws.mean())
    (figure,) = figures
    (series,) = figure.series.values()
    assert series.x == [3, 3, 6, 60]
    assert series.y[-1] == pytest.approx(hits[:, 15:].mean())
    assert "n = 90 images in 30 groups" in figure.caption
    assert "auroc" not in metrics["test"]


def test_test_decides_nothing() -> None:
    rows, bank = table(3)
    answered = answer(rows, bank)
    is_test = np.array(rows["split"].to_pylist()) == "test"
    truth = np.where(is_test, (rows["truth"].to_numpy() + 1) % 3, rows["truth"].to_numpy())
    moved = rows.set_column(3, "truth", pa.array(truth, pa.int32()))
    again = answer(moved, bank)
    assert again.schema.metadata == answered.schema.metadata
    for column in ("logits", "logits_logistic", "logits_linear"):
        np.testing.assert_array_equal(lists(again, column), lists(answered, column))


def test_two_classes_are_ranked_by_the_one_that_is_named() -> None:
    rows, bank = table(2)
    answered = answer(rows, bank)
    test = rows_of(answered, "test")
    logits, is_crack = lists(test, "logits_logistic"), test["truth"].to_numpy() == 1
    area = roc_auc_score(is_crack, logits[:, 1] - logits[:, 0])
    unnamed, crack, sound = (findings(answered, name)[0]["test"] for name in ("", "crack", "sound"))
    assert unnamed == crack
    assert crack["auroc"].value == pytest.approx(area)
    assert sound["auroc"].value == pytest.approx(area)  # of either class the same
    assert sound["average_precision"] != crack["average_precision"]
    assert {"f1", "recall_at_precision", "precision_kept"} <= crack.keys()
    margin = (logits[:, 1] - logits[:, 0]).reshape(-1, 3)
    for rule, of_groups in (("mean", margin.mean(1)), ("max", margin.max(1))):
        area = roc_auc_score(is_crack[::3], of_groups)
        assert crack[f"group_{rule}_auroc"].value == pytest.approx(area)
    assert {"group_any_f1", "group_attention_auroc", "group_attention_f1"} <= crack.keys()


def test_groups_of_several_classes_have_no_answer_of_their_own() -> None:
    rows, bank = table(2)
    mixed = rows.set_column(2, "group", pa.array([f"g{i // 2}" for i in range(len(rows))]))
    answered = answer(mixed, bank)
    assert "attention" not in answered.column_names
    assert not [key for key in findings(answered, "")[0]["test"] if "group" in key]


def test_without_tokens_there_are_no_linear_heads() -> None:
    rows, bank = table(3)
    answered = answer(rows.drop(["tokens"]), bank.drop(["tokens"]))
    assert "logits_linear" not in answered.column_names
    assert "head" not in note_of(answered)
    assert "linear_accuracy" not in findings(answered, "")[0]["test"]


@pytest.mark.parametrize("ship", ["logistic", "linear", "attention"])
def test_a_head_that_ships_is_the_main_answer_and_stands_in_the_table(ship: Any) -> None:
    """What the table keeps gives the logits back, of val's choice of strength, blocks and rate."""
    rows, bank = table(3)
    answered, by_neighbours = answer(rows, bank, ship), answer(rows, bank)
    np.testing.assert_array_equal(lists(answered, "logits"), lists(by_neighbours, f"logits_{ship}"))
    np.testing.assert_array_equal(lists(answered, "logits_knn_20"), lists(by_neighbours, "logits"))
    head = FrozenHead.of_table(answered)
    features = lists(rows, "embedding")
    if ship == "linear":
        note, tokens = note_of(answered)["head"], lists(rows, "tokens").reshape(len(rows), 3, 4)
        assert (head.blocks, head.pooled) == (note["blocks"], note["pooled"])
        features = inputs_of(tokens)[head.blocks, head.pooled]
    logits = (features - head.mean) @ head.weights + head.bias
    np.testing.assert_allclose(logits, lists(answered, "logits"), atol=1e-9)
    if ship == "attention":
        scores = answered["attention"].to_numpy() - (features - head.mean) @ head.query
        np.testing.assert_allclose(scores, scores[0], atol=1e-9)
        assert answered["view_score"] == answered["attention"]
    else:
        assert head.query is None
    assert "knn_20_accuracy" in findings(answered, "")[0]["test"]
    assert b"head" not in by_neighbours.schema.metadata
