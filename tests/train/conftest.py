"""Runs of the toy by one worker, and what they wrote."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
