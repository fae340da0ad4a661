"""A task of a few numbers per image, for tests of everything that is not about images.

A task file like any other: tests and the processes they start load it with `load_task`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from assay.config import to_dict
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.data.order import Step
from assay.data.split import Split
from assay.nn.optim import Multiplier, OptimConfig
from assay.train.batches import Stream
from assay.train.loop import Loop
from assay.train.source import TaskSource
from assay.train.task import Batch, BatchRows, Task
from assay.train.task_config import TaskConfig, TrainConfig
from assay.train.worker import Job

SIZES = {"train": 21, "val": 7, "test": 5}
CLASSES = ("a", "b", "c")


@dataclass(frozen=True, kw_only=True)
class ToyConfig(TaskConfig):
    """Settings of the toy."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=4, batch_size=5, eval_batch_size=3)
    )
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.05))
    dropout: float = 0.0
    """Dropout of hidden features (probability)."""
    rests_until: float = 0.4
    """Share of the run during which one layer gets no gradient."""
    head_lr: float = 0.5
    """Learning rate of the head as a multiple of optim.lr."""


class Toy(Task):
    """Two layers, a third that joins late, and a parameter of the task's own."""

    Config = ToyConfig
    config: ToyConfig

    def __init__(self, config: ToyConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(config.dropout))
        self.late = nn.Linear(6, 16)
        self.head = nn.Linear(16, len(self.classes))
        self.scale = nn.Parameter(torch.ones(16))

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
        truth = dataset.truth[samples.rows]
        x = np.stack([features(int(r), int(t)) for r, t in zip(samples.rows, truth, strict=True)])
        if samples.train:
            noise = [np.random.default_rng(int(k)).normal(0, 0.1, 6) for k in samples.keys]
            x = x + np.stack(noise)
        return {
            "x": x.astype(np.float32),
            "truth": truth.astype(np.int64),
            "row": samples.rows,
        }

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        logits = self._logits(batch, progress >= self.config.rests_until)
        truth = torch.from_numpy(batch["truth"])
        loss = nn.functional.cross_entropy(logits.float(), truth)
        return {"loss": loss, "extra": torch.tensor(progress)}

    def _logits(self, batch: Batch, awake: bool) -> Tensor:
        x = torch.from_numpy(batch["x"])
        hidden = self.body(x) * self.scale
        return self.head(hidden + self.late(x) if awake else hidden)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self._logits(batch, True), "first": torch.from_numpy(batch["row"])}

    def param_groups(self, progress: float) -> Mapping[str, Multiplier]:
        return {"head.": Multiplier(lr=self.config.head_lr)}


def features(row: int, truth: int) -> np.ndarray:
    """Six numbers of a row; classes overlap a little."""
    values = np.random.default_rng(row).normal(0, 0.7, 6)
    values[truth] += 2
    return values


def make_config(
    optim: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **fields: Any
) -> ToyConfig:
    """Settings that differ from the toy's own in what is named."""
    base = ToyConfig(**fields)
    return replace(
        base, train=replace(base.train, **(train or {})), optim=replace(base.optim, **(optim or {}))
    )


def make_loop(
    folder: Path, config: ToyConfig, task_class: type[Task] = Toy, stream: Stream | None = None
) -> Loop:
    """A loop of one worker, without telemetry, on the toy's data."""
    job = make_job(folder, config)
    torch.manual_seed(config.train.seed)
    task = task_class(config, job.dataset)
    rows = {name: job.split.rows(name) for name in ("train", "val")}
    return Loop(task, task, rows, stream or job.stream(), folder)


def make_job(
    folder: Path, config: ToyConfig, strategy: str = "ddp", checkpoint_steps: int = 0
) -> Job:
    """A run of the toy that needs no file on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = [name for name, size in SIZES.items() for _ in range(size)]
    ids = [f"{row:03d}" for row in range(len(sets))]
    labels = [CLASSES[row % 3] for row in range(len(sets))]
    columns = {"id": ids, "image": ids, "label": labels, "group": ids, "content": ids}
    manifest = Manifest(pa.table(columns | {"split": pa.nulls(len(sets), pa.string())}))
    source = TaskSource("toy", globals()["__source__"])
    return Job(
        source,
        to_dict(config),
        manifest,
        Split(sets, {}),
        Pixels(Store(str(folder)), ids),
        folder,
        "cpu",
        strategy,
        judged=("test",),
        checkpoint_steps=checkpoint_steps,
    )


class StoppedError(Exception):
    """A planted end of the process."""


def changed(stream: Stream, change: Callable[[int, Batch], Batch]) -> Stream:
    """A stream whose training batches are changed by their number in this launch."""

    def served(steps: Sequence[Step], train: bool) -> Iterator[Batch]:
        for index, batch in enumerate(stream(steps, train)):
            yield change(index, batch) if train else batch

    return served


def stopping(stream: Stream, after: int) -> Stream:
    """A stream that breaks off after some training batches."""

    def stop(index: int, batch: Batch) -> Batch:
        if index == after:
            raise StoppedError
        return batch

    return changed(stream, stop)
