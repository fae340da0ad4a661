"""Near-copies across a published split: found once, told in the plan, dropped if asked, judged apart."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from assay.data.near.copies import Leak
from assay.experiment import copies, run
from assay.experiment.judge import _tell_copies_apart
from assay.experiment.options import parse
from assay.experiment.run import prepare, read_data
from assay.files import write_parquet
from assay.metrics.evaluate import summarise
from assay.runs.record import RunRecord
from assay.train.source import TaskSource, load_task

SOURCE = TaskSource.read(Path(__file__).parents[2] / "tasks" / "fingerprint.py")


def scene(seed):
    noise = np.random.default_rng(seed).standard_normal((120, 160, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Images of two classes in train and test; two of test are train's, mirrored or turned by 30 degrees."""
    folder = tmp_path_factory.mktemp("published")
    for name, num in (("train", 6), ("test", 3)):
        for label in "ab":
            (folder / "images" / name / label).mkdir(parents=True)
            for i in range(num):
                seed = (name == "test", ord(label), i)
                cv2.imwrite(str(folder / f"images/{name}/{label}/{i}.png"), scene(seed))
    mirrored = cv2.imread(str(folder / "images/train/a/1.png"))[:, ::-1]
    cv2.imwrite(str(folder / "images/test/a/0.png"), mirrored)
    matrix = cv2.getRotationMatrix2D((79.5, 59.5), 30, 1)
    turned = cv2.warpAffine(cv2.imread(str(folder / "images/train/a/2.png")), matrix, (160, 120))
    cv2.imwrite(str(folder / "images/test/a/1.png"), turned)
    root = (
        f"--preset smoke --data.root {folder}/images --data.patterns {{label}}/{{name}} --data.group "
        f"--data.domains --workers 0 --storage {folder}/runs --split.unseen-domain"
    )
    task = load_task(SOURCE)
    config, resources, _ = parse(task, [*root.split(), ""])
    manifest = task.manifest(config, folder / "runs")
    data = read_data(SOURCE, manifest, config, resources, folder / "runs")
    return data, config, folder / "runs"


def test_copies_in_a_published_split_are_told_and_left_where_they_are(published):
    data, config, _ = published
    plan = prepare(data, config, "plain")
    ids = data.manifest.column("id")
    assert {(ids[each.row][:8], ids[each.twin][:9]) for each in plan.near} == {
        ("test/a/0", "train/a/1"),
        ("test/a/1", "train/a/2"),
    }
    assert plan.leaks["test"] == Leak(num=6, near=2, classes={"a": (3, 2), "b": (3, 0)})
    assert plan.split.report["near_duplicates_test"] <= 2  # val may have taken a twin
    assert "dropped" not in plan.split.sets


def test_grouped_copies_leave_train_while_the_leak_as_published_is_still_told(published):
    data, config, _ = published
    grouped = replace(config, split=replace(config.split, near_duplicates="group"))
    plan, plain = prepare(data, grouped, "grouped"), prepare(data, config, "plain")
    ids = np.array(data.manifest.column("id"))
    assert {name[:9] for name in ids[plan.split.rows("dropped")]} == {"train/a/1", "train/a/2"}
    assert plan.split.report["near_duplicates_test"] == 0
    assert plan.split.report["near_dropped"] == 2
    assert plan.leaks == plain.leaks
    np.testing.assert_array_equal(plan.split.rows("test"), plain.split.rows("test"))


def test_copies_are_looked_for_once(published, monkeypatch):
    data, _, storage = published
    signatures = data.pixels.survey().signatures
    monkeypatch.setattr(copies, "near_pairs", None)
    assert copies.copies_among(data.pixels, signatures, storage) == data.pairs
    assert len(data.pairs) == 2


def test_copies_that_are_not_looked_for_are_not_said_to_be_none(published, monkeypatch):
    data, config, storage = published
    monkeypatch.setattr(run, "copies_among", None)
    without = replace(config, split=replace(config.split, near_duplicates="off"))
    _, resources, _ = parse(load_task(SOURCE), ["--workers", "0", "--storage", str(storage)])
    again = read_data(SOURCE, data.manifest, without, resources, storage)
    plan = prepare(again, without, "without")
    assert plan.leaks is None
    assert not any(name.startswith("near_duplicates") for name in plan.split.report)
    (line,) = RunRecord(leaks=plan.leaks).leaks_said()
    assert "not looked for" in line


def test_the_main_score_is_told_apart_where_a_test_set_has_both(tmp_path):
    names = [f"{i}" for i in range(6)]
    answers, truth = np.array([0, 1, 1, 0, 0, 1]), np.array([0, 1, 0, 0, 1, 0], np.int32)
    columns = {
        "id": names,
        "split": ["test"] * 6,
        "group": names,
        "truth": pa.array(truth),
        "logits": pa.array(list(np.eye(2, dtype=np.float32)[answers])),
    }
    classes = {b"classes": json.dumps(["a", "b"])}
    predictions = pa.table(columns).replace_schema_metadata(classes)
    split = pa.table({key: columns[key] for key in ("id", "split", "group")})
    summary = summarise(predictions, "test")

    def apart(near_copy):
        table = split.append_column("near_copy", pa.array(near_copy))
        write_parquet(tmp_path / "split.parquet", table)
        return _tell_copies_apart(tmp_path, predictions, "test", summary).metrics

    metrics = apart([True, True, False, False, False, False])
    assert metrics["on_copies"].value == 1
    assert metrics["on_others"].value == 0.25
    assert metrics["on_others"].num == 4
    assert "on_copies" not in apart([False] * 6)
    write_parquet(tmp_path / "split.parquet", split)  # an older Assay's
    assert _tell_copies_apart(tmp_path, predictions, "test", summary) is summary
