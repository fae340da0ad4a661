"""Embeddings judged by their neighbours in other parts, and bundles that embed, name classes or answer for a part."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from assay.bundle.bundle import Bundle
from assay.bundle.card import Card
from assay.bundle.seal import seal
from assay.data.dataset import Dataset
from assay.errors import PredictionsError
from assay.metrics import attention_pooling
from assay.metrics.decide import DecideConfig, Decision
from assay.metrics.evaluate import summarise
from assay.metrics.logistic import decay_of, logistic_logits
from assay.metrics.scores.neighbours import effective_rank, neighbour_logits
from assay.train.source import TaskSource, load_task

Channels = load_task(TaskSource.read(Path(__file__).parents[1] / "toy_embedding.py"))
toy = sys.modules[Channels.__module__]
CONFIG, batch_of = toy.CONFIG, toy.batch_of


def test_val_is_scored_by_its_neighbours_in_other_parts(dataset: Dataset) -> None:
    """Two photos of a part are each other's nearest; by the next nearest all are wrong."""
    task = Channels(CONFIG, dataset)
    angle = np.radians(np.array([0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 50, 51.0]))
    embedding = np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    rows = np.arange(12)[::-1].copy()
    scores = task.validate({"embedding": embedding[rows], "row": rows})
    assert next(iter(scores)) == "neighbour_accuracy"
    same = np.array([[i // 2 == j // 2 for j in rows] for i in rows])
    logits = neighbour_logits(embedding[rows], embedding[rows], dataset.truth[rows], 3, same)
    right = logits.argmax(1) == dataset.truth[rows]
    assert scores["neighbour_accuracy"] == pytest.approx(right.mean())
    assert scores["neighbour_accuracy"] < 0.5
    expected = -logits[np.arange(12), dataset.truth[rows]].mean()
    assert scores["nll"] == pytest.approx(expected)
    assert scores["effective_rank"] == pytest.approx(effective_rank(embedding))


def test_without_labels_val_is_scored_by_finding_the_other_photo(dataset: Dataset) -> None:
    task = Channels(CONFIG, replace(dataset, classes=(), truth=np.zeros(12, np.int32)))
    rows = np.arange(12)
    near = np.eye(6, dtype=np.float32)[rows // 2]  # both photos of a part alike, parts far apart
    near += np.linspace(0, 0.01, 12, dtype=np.float32)[:, None]
    scores = task.validate({"embedding": near, "row": rows})
    assert next(iter(scores)) == "partner_found"
    assert scores["partner_found"] == 1
    assert scores["nll"] == 0
    apart = np.eye(6, dtype=np.float32)[rows % 6]  # each photo beside one of another part
    assert task.validate({"embedding": apart, "row": rows})["partner_found"] == 0


def predictions(num: int = 90, seed: int = 0) -> pa.Table:
    """Clouds about three centres, half of them in train; every part has a photo in either half."""
    rng = np.random.default_rng(seed)
    truth = np.arange(num) % 3
    vectors = rng.normal(0, 1, (num, 4)) + 2 * np.eye(3, 4)[truth]
    table = pa.table(
        {
            "id": [f"{i:03d}" for i in range(num)],
            "split": [("train", "val", "train", "test")[i % 4] for i in range(num)],
            "group": [f"g{i // 7}" for i in range(num)],
            "truth": pa.array(truth, pa.int32()),
            "embedding": pa.array(list(vectors)),
        }
    )
    return table.replace_schema_metadata({b"classes": json.dumps(["a", "b", "c"]).encode()})


def test_scoring_adds_logits_by_train_and_takes_its_rows_away() -> None:
    table = predictions()
    scored = Channels.score(CONFIG, table)
    splits, ids = np.array(table["split"].to_pylist()), np.array(table["id"].to_pylist())
    assert scored["id"].to_pylist() == ids[splits != "train"].tolist()
    assert scored.schema.metadata[b"classes"] == table.schema.metadata[b"classes"]
    vectors = np.array(table["embedding"].to_pylist())
    truth, group = table["truth"].to_numpy(), np.array(table["group"].to_pylist())
    bank, queries = splits == "train", splits != "train"
    same = group[queries][:, None] == group[bank]
    assert same.any()
    near = neighbour_logits(vectors[queries], vectors[bank], truth[bank], 3, same)
    strength = json.loads(scored.schema.metadata[b"probes"])["strength"]
    decay = decay_of(strength, 3)
    linear = logistic_logits(vectors[queries], vectors[bank], truth[bank], 3, decay)
    np.testing.assert_allclose(np.array(scored["logits"].to_pylist()), near)
    np.testing.assert_allclose(np.array(scored["logits_logistic"].to_pylist()), linear, atol=0.02)
    assert Channels.score(CONFIG, scored) is scored  # judged again: nothing is left to add


def test_without_labels_a_row_scores_by_its_nearest_of_the_set() -> None:
    vectors = [[1, 0], [1, 0.1], [0, 1], [0.5, -1], [0.9, -0.1], [0, 1.0]]
    table = pa.table(
        {
            "id": list("abcdef"),
            "split": ["test", "test", "test", "test", "test", "train"],
            "group": ["g", "g", "h", "h", "alone", "h"],
            "truth": pa.array(np.zeros(6), pa.int32()),
            "embedding": pa.array([np.array(v, np.float32) for v in vectors]),
        }
    ).replace_schema_metadata({b"classes": b"[]"})
    scored = Channels.score(CONFIG, table)
    assert scored["id"].to_pylist() == list("abcde")
    # a and b find each other; c and d, of one group, are nearer to others; e is alone in its group
    assert scored["score"].to_pylist() == [1, 1, 0, 0, 0]
    assert scored["weight"].to_pylist() == [1, 1, 1, 1, 0]
    summary = summarise(scored, "test")
    assert summary.metrics["partner_found"].value == pytest.approx(0.5)
    assert Channels.judge(CONFIG, scored, Path()).metrics == {}
    lonely = table.set_column(2, "group", pa.array(list("abcdef")))
    with pytest.raises(PredictionsError, match="no group of several images"):
        Channels.score(CONFIG, lonely)


def test_sets_without_labels_need_two_images_of_a_group(dataset: Dataset) -> None:
    rows = {"val": np.array([0, 1, 2]), "test": np.array([6, 8, 10])}  # two photos of each part
    Channels(CONFIG, dataset).refuse_sets(rows)
    task = Channels(CONFIG, replace(dataset, classes=(), truth=np.zeros(12, np.int32)))
    task.refuse_sets({"val": rows["val"]})
    with pytest.raises(PredictionsError, match="images of test have no labels, and no group"):
        task.refuse_sets(rows)


def test_the_logistic_regression_is_judged_beside_the_neighbours(tmp_path: Path) -> None:
    scored = Channels.score(CONFIG, predictions(240))
    judged = Channels.judge(CONFIG, scored, tmp_path)
    assert judged.metrics.keys() == {"val", "test"}
    for name, estimates in judged.metrics.items():
        rows = scored.filter(pa.compute.field("split") == name)
        logits = np.array(rows["logits_logistic"].to_pylist())
        right = (logits.argmax(1) == rows["truth"].to_numpy()).mean()
        estimate = estimates["logistic_accuracy"]
        assert estimate.value == pytest.approx(right)
        assert estimate.low < right < estimate.high
    assert "logistic_accuracy" in judged.measures


def test_a_bundle_embeds_as_the_task_does(dataset: Dataset, tmp_path: Path) -> None:
    task = Channels(CONFIG, dataset).eval()
    folder = tmp_path / "bundle"
    folder.mkdir()
    files = [dataset.pixels.store.here.parent / f"{name}.png" for name in dataset.pixels.contents]
    seal(folder, Card(classes=[], pipeline=task.export(folder, {})), files[0])
    with torch.no_grad():
        expected = task.predict(batch_of(task, np.arange(12), False))["embedding"].numpy()
    bundle = Bundle(folder)
    for row, answer in enumerate(bundle.predict_each([dataset.pixels[row] for row in range(12)])):
        np.testing.assert_allclose(answer.embedding, expected[row], atol=1e-4)
        np.testing.assert_array_equal(
            task.answer_columns(answer, row)["embedding"], answer.embedding
        )
        unit = np.array([*answer.golden().values()])
        np.testing.assert_allclose(
            unit, answer.embedding / np.linalg.norm(answer.embedding), atol=1e-6
        )
        assert json.loads(answer.cells([])["embedding"]) == answer.form("none")["embedding"]


def shipped(
    ship: Any, dataset: Dataset, folder: Path
) -> tuple[pa.Table, np.ndarray, Decision, Bundle]:
    """Train is rows 0 to 5; the judged table, all embeddings, what val decides, and the bundle."""
    image = replace(CONFIG.image, normalise="imagenet")
    config = replace(CONFIG, image=image, ship=ship)
    task = Channels(config, dataset).eval()
    rows = np.arange(12)
    with torch.no_grad():
        embedding = task.predict(batch_of(task, rows, False))["embedding"].numpy()
    truth = dataset.truth[rows]
    table = pa.table(
        {
            "id": [str(row) for row in rows],
            "split": ["train"] * 6 + ["val"] * 6,
            "group": [f"g{row // 2}" for row in rows],
            "truth": pa.array(truth, pa.int32()),
            "embedding": pa.array(list(embedding)),
        }
    ).replace_schema_metadata({b"classes": json.dumps(list(dataset.classes)).encode()})
    scored = Channels.score(config, table)
    task.adopt(scored)
    logits = np.array(scored["logits"].to_pylist())
    decision = Decision.fit(logits, truth[6:], rows[6:] // 2, dataset.classes, DecideConfig())
    files = [dataset.pixels.store.here.parent / f"{name}.png" for name in dataset.pixels.contents]
    pipeline = task.export(folder, {})
    assert (pipeline["kind"], pipeline["graphs"]) == ("image", ["classify"])
    card = Card(classes=list(dataset.classes), pipeline=pipeline, decision=decision)
    expected = dict(zip(dataset.classes, decision.probs(logits)[0].tolist(), strict=True))
    seal(folder, card, files[6], expected)
    return scored, embedding, decision, Bundle(folder)


def test_a_bundle_with_a_head_names_classes_and_embeds(dataset: Dataset, tmp_path: Path) -> None:
    """By scikit-learn's regression on the same scaled features, whose strength val has chosen."""
    scored, embedding, decision, bundle = shipped("logistic", dataset, tmp_path)
    logits, truth = np.array(scored["logits"].to_pylist()), dataset.truth
    answers = bundle.predict_each([dataset.pixels[row] for row in range(6, 12)])
    for row, answer in enumerate(answers):
        np.testing.assert_allclose(answer.embedding, embedding[6 + row], atol=1e-4)
        np.testing.assert_allclose(answer.logits, logits[row], atol=1e-3)
    strength = json.loads(scored.schema.metadata[b"probes"])["strength"]
    scaler = StandardScaler().fit(embedding[:6])
    model = LogisticRegression(C=strength, tol=1e-9, max_iter=5000)
    model.fit(scaler.transform(embedding[:6]), truth[:6])
    probs = model.predict_proba(scaler.transform(embedding[6:]))
    shares = np.exp(np.array([answer.logits for answer in answers]))
    np.testing.assert_allclose(shares / shares.sum(1, keepdims=True), probs, atol=0.01)
    part = bundle.together(answers[:2])
    assert part is not None
    mean = decision.probs(logits[:2].mean(0)[None])[0]
    assert list(part.probs.values()) == pytest.approx(mean, abs=1e-4)


def test_a_part_is_answered_by_attention_as_it_is_judged(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_pooling, "STRENGTHS", (10.0,))
    scored, _, decision, bundle = shipped("attention", dataset, tmp_path)
    logits, attention = np.array(scored["logits"].to_pylist()), scored["attention"].to_numpy()
    answers = bundle.predict_each([dataset.pixels[row] for row in range(6, 12)])
    assert np.ptp(attention) > 0.01
    for first in (0, 2, 4):
        views = slice(first, first + 2)
        shares = np.exp(attention[views]) / np.exp(attention[views]).sum()
        expected = decision.probs((shares @ logits[views])[None])[0]
        part = bundle.together(answers[views])
        assert part is not None
        assert list(part.probs.values()) == pytest.approx(expected, abs=1e-3)
