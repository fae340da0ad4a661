"""Which images a report keeps, and how: chosen by rule, small, replaced as a whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.data.near.copies import NearDuplicate
from assay.metrics.decide import Decision
from assay.report import samples

CLASSES = ["a", "b", "c"]
DECISION = Decision(
    temperature=2.0,
    coverage=0.9,
    quantile=0.5,
    costs=None,
    positive=None,
    threshold=None,
    num=10,
    num_groups=5,
)


def table(num: int, seed: int = 0, split: str = "test", **columns: Any) -> pa.Table:
    """Draw predictions of a poor model."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(num, 3)).astype(np.float32)
    truth = rng.integers(0, 3, num).astype(np.int32)
    values = {
        "id": [f"{split}/{i:03d}.png" for i in range(num)],
        "split": [split] * num,
        "group": [f"{split}{i // 2}" for i in range(num)],
        "domain.design": [f"d{i % 4}" for i in range(num)],
        "truth": pa.array(truth),
        "logits": pa.array(list(logits)),
    }
    return pa.table(values | columns).replace_schema_metadata({b"classes": json.dumps(CLASSES)})


def scores(num: int) -> pa.Table:
    """Make a table of scores; the id's number is the score."""
    predictions = table(num).drop_columns(["truth", "logits"])
    predictions = predictions.append_column("score", pa.array(np.arange(num) / num))
    return predictions.replace_schema_metadata({b"score": b"IoU"})


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits)
    return exp / exp.sum(axis=1, keepdims=True)


def test_errors_are_the_most_confident_ones_by_calibrated_probability():
    rows = table(60)
    chosen = [r for r in samples.choose(rows, DECISION) if r["kind"] == "error"]
    probs = softmax(np.array(rows["logits"].to_pylist()) / 2.0)
    truth = rows["truth"].to_numpy()
    wrong = [i for i in range(60) if probs[i].argmax() != truth[i]]
    expected = sorted(wrong, key=lambda i: -probs[i].max())[:8]
    assert [r["id"] for r in chosen] == [f"test/{i:03d}.png" for i in expected]
    assert [r["prob"] for r in chosen] == pytest.approx([probs[i].max() for i in expected])
    assert all(r["answer"] != r["truth"] and not r["right"] for r in chosen)
    assert [r["rejected"] for r in chosen] == [(probs[i] >= 0.5).sum() != 1 for i in expected]


def test_examples_are_right_spread_and_chosen_by_hash():
    rows = table(200, seed=1)
    chosen = [r for r in samples.choose(rows, DECISION) if r["kind"] == "example"]
    assert len(chosen) == 6
    assert all(r["right"] and r["answer"] == r["truth"] for r in chosen)
    assert sorted(r["truth"] for r in chosen) == ["a", "a", "b", "b", "c", "c"]
    assert len({r["domains"]["design"] for r in chosen}) == 4
    # the first is the right row with the lowest hash, whatever its class
    right = softmax(np.array(rows["logits"].to_pylist())).argmax(1) == rows["truth"].to_numpy()
    ids = [name for name, r in zip(rows["id"].to_pylist(), right, strict=True) if r]
    assert chosen[0]["id"] == min(ids, key=lambda n: hashlib.blake2b(n.encode()).digest())


def test_the_order_of_rows_decides_nothing():
    rows = table(80, seed=2)
    shuffled = rows.take(np.random.default_rng(0).permutation(80))
    assert samples.choose(rows, DECISION) == samples.choose(shuffled, DECISION)


def test_a_perfect_model_has_no_errors_and_a_hopeless_one_no_examples():
    logits = np.eye(3, dtype=np.float32)[np.arange(9) % 3]
    for shift, kind in ((0, "example"), (1, "error")):
        truth = ((np.arange(9) + shift) % 3).astype(np.int32)
        rows = table(9, truth=pa.array(truth), logits=pa.array(list(logits)))
        assert {r["kind"] for r in samples.choose(rows, DECISION)} == {kind}


def test_of_scores_the_lowest_come_first_and_examples_from_the_rest():
    chosen = samples.choose(scores(30), None)
    errors = [r for r in chosen if r["kind"] == "error"]
    assert [r["score"] for r in errors] == pytest.approx([i / 30 for i in range(8)])
    examples = [r for r in chosen if r["kind"] == "example"]
    assert len(examples) == 6
    assert not {r["id"] for r in errors} & {r["id"] for r in examples}
    assert "prob" not in chosen[0]


def stored(
    folder: Path, predictions: pa.Table, size: tuple[int, int] = (40, 60)
) -> tuple[Manifest, Pixels]:
    """Store noise images of a table's rows; the manifest has a row of train in front."""
    ids = ["train/0.png", *predictions["id"].to_pylist()]
    for i, name in enumerate(ids):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(path), noise)
        Store(str(folder / "store")).build(f"{i:04d}", path)
    contents = [f"{i:04d}" for i in range(len(ids))]
    manifest = Manifest(pa.table({"id": ids, "content": contents}))
    return manifest, Pixels(Store(str(folder / "store")), contents)


def collected(folder: Path, predictions: pa.Table, **more: Any) -> dict[str, Any]:
    samples.collect(folder, predictions, *stored(folder, predictions), DECISION, **more)
    index: dict[str, Any] = json.loads((folder / "samples" / "samples.json").read_text())
    return index


def test_every_test_set_is_shown_and_val_is_not(tmp_path):
    both = pa.concat_tables([table(12, split=s) for s in ("val", "test_seen", "test_unseen")])
    index = collected(tmp_path, both)
    assert {s["split"] for s in index["samples"]} == {"test_seen", "test_unseen"}
    images = {s["image"] for s in index["samples"]}
    assert {p.name for p in (tmp_path / "samples").iterdir()} == images | {"samples.json"}


def test_without_a_test_set_val_is_shown(tmp_path):
    assert {s["split"] for s in collected(tmp_path, table(4, split="val"))["samples"]} == {"val"}


def test_boxes_are_scaled_with_the_image(tmp_path):
    boxes = pa.array([[0.0, 0.0, 1200.0, 800.0, 300.0, 200.0, 600.0, 400.0]])
    rows = table(1, boxes=boxes, attn=pa.array([[0.25, 0.75]]))
    samples.collect(tmp_path, rows, *stored(tmp_path, rows, (800, 1200)), DECISION)
    sample = json.loads((tmp_path / "samples" / "samples.json").read_text())["samples"][0]
    assert (sample["width"], sample["height"]) == (480, 320)
    assert sample["boxes"] == [[0, 0, 480, 320], [120, 80, 240, 160]]
    assert sample["attn"] == [0.25, 0.75]
    image = cv2.imread(str(tmp_path / "samples" / sample["image"]))
    assert image.shape == (320, 480, 3)


def test_boxes_fit_a_thumbnail_of_rounded_sides(tmp_path):
    rows = table(1, boxes=pa.array([[0.0, 0.0, 1000.0, 3.0]]))
    samples.collect(tmp_path, rows, *stored(tmp_path, rows, (3, 1000)), DECISION)
    sample = json.loads((tmp_path / "samples" / "samples.json").read_text())["samples"][0]
    assert sample["boxes"] == [[0, 0, sample["width"], sample["height"]]] == [[0, 0, 480, 1]]


def test_judging_again_replaces_the_images(tmp_path):
    collected(tmp_path, table(40))
    before = {p.name for p in (tmp_path / "samples").glob("*.jpg")}
    (tmp_path / "samples" / "0123.jpg").write_bytes(b"of an older judging")
    again = table(40, truth=pa.array(np.zeros(40, dtype=np.int32)))
    index = collected(tmp_path, again)
    after = {p.name for p in (tmp_path / "samples").glob("*.jpg")}
    assert after == {s["image"] for s in index["samples"]}
    assert after != before


def test_the_same_judging_keeps_the_same_files(tmp_path):
    first = collected(tmp_path, table(12))
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "samples").glob("*.jpg")}
    assert collected(tmp_path, table(12)) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "samples").glob("*.jpg")} == times


def test_near_duplicates_are_kept_as_pairs_the_nearest_first(tmp_path):
    near = [NearDuplicate(1 - bits / 100, 1 + bits, "test", 0) for bits in range(9)]
    pairs = collected(tmp_path, table(12), near=near)["near"]
    assert [(p["agreement"], p["id"], p["twin"]) for p in pairs] == [
        (1 - bits / 100, f"test/{bits:03d}.png", "train/0.png") for bits in range(6)
    ]
    assert all(
        (tmp_path / "samples" / p[key]).exists() for p in pairs for key in ("image", "twin_image")
    )


def test_a_kept_image_has_its_colours():
    image = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    jpeg = np.frombuffer(samples._encode(image, samples.MAX_BYTES), np.uint8)
    decoded = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
    assert decoded.reshape(-1, 3).mean(0) == pytest.approx([200, 100, 50], abs=2)


def test_noise_is_compressed_until_it_is_small():
    noise = np.random.default_rng(0).integers(0, 256, (480, 480, 3), dtype=np.uint8)
    assert len(samples._encode(noise, samples.MAX_BYTES)) <= samples.MAX_BYTES
