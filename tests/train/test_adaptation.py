"""Adaptation: to the first frames of printers that are new, without their labels, and judged on later ones."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from assay.data.dataset import Column, Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.errors import ConfigError
from assay.nn.networks import NetworkConfig
from assay.train.adaptation import AdaptConfig, Answers, judge_adapted
from assay.train.prints import FramesConfig, Prints, PrintsConfig
from assay.train.task import BatchRows

PRINTERS, PER_PRINT, PRINTS = ("a", "b", "new"), 6, 4
NUM = len(PRINTERS) * PRINTS * PER_PRINT
NEW = np.arange(2 * PRINTS * PER_PRINT, NUM)
EVERY_S = 2.0


def dataset_of(labels: int = 0) -> Dataset:
    """Prints of three printers, the last not trained on; rows stand in the reverse of time."""
    rows = np.arange(NUM)
    prints = rows // PER_PRINT
    return Dataset(
        classes=("sound", "faulty"),
        truth=((prints + labels) % 2).astype(np.int32),
        mask_classes=(),
        group=Column.of([f"{p:02d}" for p in prints]),
        domains={"printer": Column.of([PRINTERS[p // PRINTS] for p in prints])},
        columns={"time": Column.of([f"{1000 + EVERY_S * (NUM - row):.1f}" for row in rows])},
        train=np.arange(0, 2 * PRINTS * PER_PRINT),
        pixels=Pixels(Store(""), []),
    )


class Frames(Prints):
    """Images are brighter on the new printer."""

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> dict[str, np.ndarray]:
        rng = [np.random.default_rng(int(row)) for row in samples.rows]
        image = np.stack([r.integers(60, 120, (32, 32, 3)) for r in rng])
        image[samples.rows >= NEW[0]] += 90
        ones = np.ones((len(image), 3), np.float32)
        truth = dataset.truth[samples.rows].astype(np.int64)
        arrays = {"image": image.astype(np.uint8), "mean": 0.4 * ones, "std": 0.2 * ones}
        return arrays | {"row": samples.rows, "truth": truth}


MINUTES = 10 * EVERY_S / 60
"""Of ten frames."""


def task_of(*methods: Any, dataset: Dataset | None = None, **fields: Any) -> Frames:
    config = PrintsConfig(
        frames=FramesConfig(time="stem"),
        model=NetworkConfig(network="test_resnet"),
        adapt=AdaptConfig(methods=methods, minutes=MINUTES, batch_size=4, **fields),
    )
    config = replace(config, image=replace(config.image, height_px=32, width_px=32))
    torch.manual_seed(0)
    return Frames(config, dataset or dataset_of()).eval()


ALL = np.arange(NUM)


def columns_of(task: Frames, rows: np.ndarray = ALL) -> dict[str, np.ndarray]:
    batch = Frames.prepare(
        task.config, task.dataset, BatchRows(rows, np.zeros(len(rows), np.uint64), False)
    )
    with torch.no_grad():
        return {k: v.numpy() for k, v in (task.predict(batch) | task.predict_once(batch)).items()}


def test_the_first_frames_of_a_new_printer_are_adapted_to_and_not_judged():
    """The last ten rows are the first ten frames."""
    task = task_of("recalibrate")
    judged = columns_of(task)["later"]
    assert np.flatnonzero(judged).tolist() == NEW[:-10].tolist()
    (code,) = task.adaptation.new
    assert task.adaptation.first[code].tolist() == list(range(NUM - 1, NUM - 11, -1))


def test_statistics_are_those_of_the_first_frames_and_nothing_else_moves():
    task = task_of("recalibrate")
    before = {name: value.clone() for name, value in task.state_dict().items()}
    columns = columns_of(task)
    assert all(torch.equal(task.state_dict()[name], value) for name, value in before.items())
    (copy,) = task.adaptation.copies.values()
    stem = next(m for m in copy.modules() if isinstance(m, nn.BatchNorm2d))
    convolution = next(m for m in copy.modules() if isinstance(m, nn.Conv2d))
    means = []
    for batch in task.adaptation._batches(np.arange(NUM - 1, NUM - 11, -1)):
        with torch.no_grad():
            means.append(convolution(batch).mean((0, 2, 3)))
    torch.testing.assert_close(stem.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-4)
    later = NEW[:-10]
    assert np.abs(columns["adapted_recalibrate"][later] - columns["logits"][later]).max() > 1e-3
    assert not columns["adapted_recalibrate"][: NEW[0]].any()


def test_tent_moves_scale_and_shift_of_its_copy():
    task = task_of("tent", lr=0.05)
    columns_of(task)
    ((_, copy),) = task.adaptation.copies.items()
    moved = {
        name
        for (name, p), q in zip(copy.named_parameters(), Answers(task).parameters(), strict=True)
        if not torch.equal(p, q)
    }
    norms = {
        f"{name}.{kind}"
        for name, m in copy.named_modules()
        if isinstance(m, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert moved
    assert moved <= norms


def test_labels_change_nothing_and_neither_does_the_order_of_questions():
    first, other = (
        task_of("recalibrate", "tent"),
        task_of("recalibrate", "tent", dataset=dataset_of(1)),
    )
    together, relabelled = columns_of(first), columns_of(other)
    part = columns_of(task_of("recalibrate", "tent"), NEW[3:5])
    for name in ("adapted_recalibrate", "adapted_tent"):
        np.testing.assert_array_equal(together[name], relabelled[name])
        np.testing.assert_allclose(part[name], together[name][NEW[3:5]], atol=1e-5)


def test_what_cannot_be_adapted_is_one_sentence():
    with pytest.raises(ConfigError, match="says nowhere when frames were taken"):
        PrintsConfig(adapt=AdaptConfig(methods=("tent",)))
    config = task_of("tent").config
    group = replace(config, model=replace(config.model, norm="group"))
    with pytest.raises(ConfigError, match="The model has no batch normalisation"):
        Frames(group, dataset_of())
    assert "adapt.minutes" in PrintsConfig().idle()


def test_adapted_and_not_are_judged_on_the_same_rows():
    """Of four rows that are judged the model is right on one, the adapted one on three."""
    right = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    plain = np.concatenate([right[0], *[right[1]] * 3, right[0]])
    adapted = np.concatenate([*[right[0]] * 3, right[1], right[1]])
    columns = {
        "id": [str(i) for i in range(5)],
        "split": ["test_unseen"] * 5,
        "group": list("aabbc"),
        "truth": pa.array([1] * 5, pa.int32()),
        "logits": plain.tolist(),
        "adapted_tent": adapted.tolist(),
        "later": [1, 1, 1, 1, 0],
    }
    table = pa.table(columns).replace_schema_metadata({b"classes": json.dumps(["0", "1"]).encode()})
    judged = judge_adapted(table).metrics["test_unseen"]
    assert judged["not_adapted"].value == 0.25
    assert judged["adapted_tent"].value == 0.75
    assert judged["adapted_tent"].num == 4
    nothing = table.set_column(6, "later", pa.array([0] * 5))
    assert not judge_adapted(nothing).metrics
    (why,) = judge_adapted(nothing).warnings
    assert "Adaptation is not judged" in why
    assert not judge_adapted(table).warnings
    assert not judge_adapted(table.drop_columns(["later"])).metrics
