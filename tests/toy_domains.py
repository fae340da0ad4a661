"""A task of small images from four printers, for tests of what algorithms against domains have in common.

A task file like any other: tests load it with `load_task`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assay.data.dataset import Column, Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.nn.averaging import AverageConfig
from assay.nn.domains.config import AlgorithmConfig
from assay.nn.optim import OptimConfig
from assay.train.batches import batches
from assay.train.domains import DomainClassification, DomainClassificationConfig
from assay.train.loop import Loop
from assay.train.task import BatchRows
from assay.train.task_config import TrainConfig

PRINTERS = ("a", "b", "c", "new")
PER_PRINTER, PER_PRINT = 12, 3
NUM = PER_PRINTER * len(PRINTERS)
TRAIN = np.array([row for row in range(3 * PER_PRINTER) if row % 4])
VAL = np.array([row for row in range(3 * PER_PRINTER) if not row % 4])


def dataset_of(train: np.ndarray = TRAIN, **domains: list[str]) -> Dataset:
    """Four printers, the last held out; prints of three frames, each of one class."""
    printers = [PRINTERS[row // PER_PRINTER] for row in range(NUM)]
    prints = [f"{row // PER_PRINT:03d}" for row in range(NUM)]
    named = domains or {"printer": printers}
    return Dataset(
        classes=("sound", "faulty"),
        truth=np.array([row // PER_PRINT % 2 for row in range(NUM)], np.int32),
        mask_classes=(),
        group=Column.of(prints),
        domains={name: Column.of(texts) for name, texts in named.items()},
        columns={},
        train=train,
        pixels=Pixels(Store(""), []),
    )


class Frames(DomainClassification):
    """A small net; the class is in the red, the printer in the green."""

    def __init__(self, config: Any, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3)
        )
        self.add_head(8, num_flat=8 * 4 * 4)

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> dict[str, np.ndarray]:
        image = np.stack(
            [np.random.default_rng(int(r)).integers(60, 120, (8, 8, 3)) for r in samples.rows]
        )
        truth = dataset.truth[samples.rows].astype(np.int64)
        image[..., 0] += 40 * truth[:, None, None]
        image[..., 1] += 40 * (samples.rows // PER_PRINTER)[:, None, None]
        ones = np.ones((len(truth), 3), np.float32)
        return {
            "image": image.astype(np.uint8),
            "mean": 0.4 * ones,
            "std": 0.2 * ones,
            "row": samples.rows,
            "truth": truth,
        }

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)
        return features


CONFIG = DomainClassificationConfig(
    train=TrainConfig(epochs=3, batch_size=9, eval_batch_size=5),
    optim=OptimConfig(lr=0.01, schedule="constant"),
)


def config_of(
    name: Any = "erm", average: str = "last", **fields: Any
) -> DomainClassificationConfig:
    places = {"mix_after": ("net.2",)} if name == "mixstyle" else {}
    sections = {key: fields.pop(key) for key in ("train", "optim", "domains") if key in fields}
    settings = {"begins": 0.2, "converged_looks": 2} if average == "swad" else {}
    return replace(
        CONFIG,
        algorithm=AlgorithmConfig(name=name, **places | fields),
        average=AverageConfig(weights=average, **settings),  # type: ignore[arg-type]
        **{key: replace(getattr(CONFIG, key), **value) for key, value in sections.items()},
    )


def task_of(config: DomainClassificationConfig, dataset: Dataset | None = None) -> Frames:
    torch.manual_seed(0)
    return Frames(config, dataset or dataset_of())


class StoppedError(Exception):
    """A planted end of the process."""


def loop_of(
    folder: Path, config: DomainClassificationConfig, stop: int = 10**6, every: int = 0
) -> Loop:
    """A loop that breaks off before a training batch."""
    task = task_of(config)

    def stream(steps, train):
        for index, batch in enumerate(batches(Frames, config, task.dataset, steps, train)):
            if train and index == stop:
                raise StoppedError
            yield batch

    return Loop(task, task, {"train": TRAIN, "val": VAL}, stream, folder, checkpoint_steps=every)


def batch_of(task: Frames, rows: np.ndarray = TRAIN) -> dict[str, np.ndarray]:
    return Frames.prepare(task.config, task.dataset, rows_of(rows))


def rows_of(rows: np.ndarray) -> BatchRows:
    return BatchRows(rows, np.zeros(len(rows), np.uint64), True)
