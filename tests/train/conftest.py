"""Runs of the toy by one worker, what they wrote, and data sets of images drawn by a test."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from assay.data.dataset import Column, Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.synthetic.draw_once import write_image
from assay.train.source import TaskSource, load_task
from assay.train.worker import work as train_to_the_end

toy = sys.modules[load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py")).__module__]


def _work(folder: Path, config, change=lambda stream: stream, every: int = 0):
    job = toy.make_job(folder, config, checkpoint_steps=every)
    return train_to_the_end(job, change(job.stream()))


@pytest.fixture(scope="session")
def work():
    """Trains by one worker with a checkpoint after each `every` steps, on the changed stream of batches."""
    return _work


@pytest.fixture(scope="session")
def lines_of():
    """Lines of metrics.jsonl; of equal kind and step the last."""

    def read(folder: Path, kind: str = "") -> list[dict]:
        lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
        last = {(line["kind"], line["step"]): line for line in lines if kind in ("", line["kind"])}
        return list(last.values())

    return read


@pytest.fixture(scope="session")
def config():
    """Dropout, and a layer that joins in the middle."""
    return toy.make_config(dropout=0.2)


@pytest.fixture(scope="session")
def straight(tmp_path_factory, config) -> Path:
    """A run of 20 updates (4 epochs of 21 rows in batches of 5, 5, 5, 5 and 1) that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    position = _work(folder, config, every=1)
    assert (position.step, position.done) == (20, True)
    return folder


@pytest.fixture
def plant_val(monkeypatch):
    """Puts accuracies and losses in the place of what looks at val find."""

    def plant(accuracies: list[float], nlls: list[float]) -> None:
        values: dict[str, Iterator[float]] = {"accuracy": iter(accuracies), "nll": iter(nlls)}
        for name, planted in values.items():
            monkeypatch.setattr(f"assay.train.task.{name}", lambda *_, p=planted: next(p))

    return plant


@pytest.fixture(scope="session")
def dataset_of() -> Callable[..., Dataset]:
    """Makes a data set of RGB images, which it writes into a folder by their row, and a store beside them."""

    def make(
        folder: Path,
        images: Sequence[np.ndarray],
        classes: Sequence[str],
        truth: np.ndarray,
        train: np.ndarray,
        groups: Sequence[str] = (),
    ) -> Dataset:
        contents, store = (
            [f"{row:032x}" for row in range(len(images))],
            Store(str(folder / "store")),
        )
        for content, image in zip(contents, images, strict=True):
            write_image(folder / f"{content}.png", image)
            store.build(content, folder / f"{content}.png")
        return Dataset(
            classes=tuple(classes),
            truth=truth.astype(np.int32),
            mask_classes=(),
            group=Column.of(groups or contents),
            domains={},
            columns={},
            train=train,
            pixels=Pixels(store, contents),
        )

    return make


@pytest.fixture(scope="module")
def dataset(
    dataset_of: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    """Two photos of each of six parts, of three classes."""
    rng, parts = np.random.default_rng(0), np.arange(12) // 2
    images = [
        rng.integers(20 + 20 * part, 29 + 20 * part + 9 * row, (24, 32, 3), dtype=np.uint8)
        for row, part in enumerate(parts)
    ]
    groups = [f"part {part}" for part in parts]
    return dataset_of(
        tmp_path_factory.mktemp("images"), images, "abc", parts % 3, np.arange(6), groups
    )
