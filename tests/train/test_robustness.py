"""Robustness: a task whose rule is known is corrupted, and judged beside an independent count."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from assay.data.dataset import Dataset
from assay.data.inputs.corrupt import KINDS
from assay.data.inputs.image import ImageConfig
from assay.train import robustness
from assay.train.classification import Classification, ClassificationConfig
from assay.train.robustness import RobustnessConfig
from assay.train.task import BatchRows

CLASSES = ("dark", "light")
TRUTH = np.arange(8, dtype=np.int32) % 2
ROWS = np.arange(8)
CONFIG = ClassificationConfig(
    image=ImageConfig(
        height_px=24, width_px=24, normalise="constants", mean=(0.5,) * 3, std=(1.0,) * 3
    ),
    robustness=RobustnessConfig(kinds=KINDS),
)
"""Frames of 24x24 of images of 16x24: eight rows of each are padding."""


class Level(Classification):
    """Light is what is lighter than half of full scale, where the frame is not padded."""

    def __init__(self, config: Any, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.add_head(1)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def features(self, images: Tensor) -> Tensor:
        return images[:, :1, 8:16].mean((2, 3))


@pytest.fixture(scope="module")
def dataset(
    dataset_of: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    rng = np.random.default_rng(0)
    images = [
        (100 + 60 * truth + rng.integers(-20, 20, (16, 24, 3))).astype(np.uint8) for truth in TRUTH
    ]
    return dataset_of(tmp_path_factory.mktemp("level"), images, CLASSES, TRUTH, np.arange(4))


@pytest.fixture(scope="module")
def task(dataset: Dataset) -> Level:
    return Level(CONFIG, dataset).eval()


def batch_of(task: Level, rows: np.ndarray) -> Any:
    keys = np.zeros(len(rows), np.uint64)
    return Level.prepare(task.config, task.dataset, BatchRows(rows, keys, False))


def predicted(task: Level, rows: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {
            name: column.numpy() for name, column in task.predict_once(batch_of(task, rows)).items()
        }


def test_each_kind_gives_the_logits_of_five_strengths(task):
    columns = predicted(task, ROWS)
    assert set(columns) == {f"logits_{kind}" for kind in KINDS}
    assert {column.shape for column in columns.values()} == {(8, 5 * 2)}


def test_what_a_row_gets_depends_on_seed_and_row_alone(task, dataset):
    whole = predicted(task, ROWS)
    turned = predicted(task, ROWS[::-1].copy())
    alone = predicted(task, ROWS[3:4])
    for name, column in whole.items():
        assert np.allclose(turned[name][::-1], column, atol=1e-6)
        assert np.allclose(alone[name][0], column[3], atol=1e-6)
    other = Level(replace(CONFIG, train=replace(CONFIG.train, seed=7)), dataset).eval()
    assert not np.allclose(predicted(other, ROWS)["logits_noise"], whole["logits_noise"], atol=1e-6)


def test_light_moves_the_logit_by_what_it_adds_to_the_picture(task):
    """The mean of the unpadded frame moves by 10 % to 50 % of full scale, up or down, short of clipping."""
    batch = batch_of(task, ROWS)
    with torch.no_grad():
        plain = task.predict(batch)["logits"].numpy()[:, 1]
    moves = predicted(task, ROWS)["logits_light"].reshape(8, 5, 2)[..., 1] - plain[:, None]
    assert np.allclose(np.abs(moves[:, 0]), 0.1, atol=0.01)
    assert len(np.unique(np.sign(moves[:, 0]))) == 2
    assert np.array_equal(np.sign(moves), np.repeat(np.sign(moves[:, :1]), 5, axis=1))


def test_padding_stays_zero(task):
    for kind in KINDS:
        changed = robustness._corrupted(task, batch_of(task, ROWS), kind, 5)
        assert not changed["image"][:, :4].any()
        assert not changed["image"][:, 20:].any()
        assert changed["image"][:, 4:20].any()


def test_images_normalised_by_their_own_light_are_so_after_it_changed(dataset):
    config = replace(CONFIG, image=replace(CONFIG.image, normalise="image"))
    task = Level(config, dataset).eval()
    changed = robustness._corrupted(task, batch_of(task, ROWS), "light", 2)
    for frame, mean, std in zip(changed["image"], changed["mean"], changed["std"], strict=True):
        inside = frame[4:20].reshape(-1, 3) / 255
        assert np.allclose(inside.mean(0), mean, atol=1e-5)
        assert np.allclose(inside.std(0), std, atol=1e-5)


def test_nothing_is_asked_of_a_task_without_kinds(dataset):
    task = Level(replace(CONFIG, robustness=RobustnessConfig()), dataset)
    assert predicted(task, ROWS) == {}


def test_accuracy_by_strength_is_counted_from_the_table():
    """Four groups of two rows; under blur the answer is right at strengths up to the row's number less one."""
    rows, truth = np.arange(8), np.arange(8) % 2
    right = np.arange(1, 6)[None] < rows[:, None]
    answers = np.where(right, truth[:, None], 1 - truth[:, None])
    table = pa.table(
        {
            "id": [str(row) for row in rows],
            "split": ["val"] * 2 + ["test"] * 6,
            "group": [str(row // 2) for row in rows],
            "truth": pa.array(truth, pa.int32()),
            "logits": list(np.eye(2)[truth]),
            "logits_blur": list(np.eye(2)[answers].reshape(8, -1)),
        }
    ).replace_schema_metadata({b"classes": json.dumps(CLASSES).encode()})
    judged = robustness.judge(table)
    assert set(judged.metrics) == {"val", "test"}
    assert set(judged.metrics["test"]) == {"accuracy_blur"} == set(judged.measures)
    estimate = judged.metrics["test"]["accuracy_blur"]
    assert estimate.value == pytest.approx(right[2:].mean())
    assert (estimate.num, estimate.num_groups) == (6, 3)
    [figure] = judged.figures
    assert figure.series["blur"].x == [0, 1, 2, 3, 4, 5]
    assert figure.series["blur"].y == pytest.approx([1.0, *right[2:].mean(axis=0)])
    assert figure.series["blur"].low[5] < figure.series["blur"].y[5] < figure.series["blur"].high[5]
    assert not robustness.judge(table.drop_columns(["logits_blur"])).metrics
