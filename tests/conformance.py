"""A task on a few images of its embedded data, for the conformance suite."""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from assay.config import to_dict
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.data.order import entry_keys
from assay.data.split import Split, draw_split
from assay.train.loop import Loop
from assay.train.source import TaskSource, load_task
from assay.train.task import Batch, BatchRows, Task
from assay.train.task_config import TaskConfig
from assay.train.worker import Job

ROOT = Path(__file__).parents[1]
SIZES = {"train": 8, "val": 5}
"""Images taken of each set; of every test set 3."""


@dataclass(frozen=True)
class System:
    """A task on a few images of its embedded data, decoded in a store."""

    source: TaskSource
    task: type[Task]
    config: TaskConfig
    manifest: Manifest
    split: Split
    pixels: Pixels

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.of(self.manifest, self.pixels, self.split.rows("train"))

    def job(self, folder: Path) -> Job:
        folder.mkdir(exist_ok=True)
        return Job(
            self.source,
            to_dict(self.config),
            self.manifest,
            self.split,
            self.pixels,
            folder,
            "cpu",
            "ddp",
            judged=tuple(self.split.tests),
            checkpoint_steps=1,
        )

    def model(self, seed: int = 0) -> Task:
        torch.manual_seed(seed)
        return self.task(self.config, self.dataset)

    def batch(self, rows: np.ndarray, train: bool, first_entry: int = 0) -> Batch:
        entries = np.arange(first_entry, first_entry + len(rows))
        keys = entry_keys(self.config.train.seed, 0, entries)
        return self.task.prepare(self.config, self.dataset, BatchRows(rows, keys, train))

    def loop(self, folder: Path) -> Loop:
        job, task = self.job(folder), self.model()
        rows = {name: self.split.rows(name) for name in SIZES}
        return Loop(task, task, rows, job.stream(), folder)


def read_source(name: str) -> TaskSource:
    """A file's source, or that of the README's own task."""
    if name != "README":
        return TaskSource.read(ROOT / name)
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*class \w+\(Classification\)[^`]*)```", text)
    assert len(code.splitlines()) < 70
    return TaskSource("linear", code.encode())


def make(file: str, tmp_path_factory: pytest.TempPathFactory) -> System:
    """Take a few images of every set of a file in tasks/, a toy or README's own task, on its `smoke` settings."""
    source = read_source(file)
    storage = tmp_path_factory.mktemp(source.name)
    task = load_task(source)
    smoke = task.presets()["smoke"]
    num_epochs = min(smoke.train.epochs, 2)  # none: what is learnt is learnt before the first
    brief = replace(smoke.train, epochs=num_epochs, batch_size=4, eval_batch_size=3)
    config = replace(smoke, train=brief)
    manifest = task.manifest(config, storage)
    drawn = draw_split(manifest, config.split)
    sets = ["unused"] * len(manifest)
    for name in ("train", "val", *drawn.tests):
        rows = drawn.rows(name)
        num = SIZES.get(name, 3)
        for row in rows[np.linspace(0, len(rows) - 1, num).astype(int)]:
            sets[row] = name
            for keys in (manifest.column("content"), *manifest.masks.values()):
                Store(str(storage / "store")).build(keys[row], Path(manifest.files[keys[row]]))
    pixels = Pixels(Store(str(storage / "store")), manifest.column("content"), manifest.masks)
    return System(source, task, config, manifest, Split(sets, {}), pixels)
