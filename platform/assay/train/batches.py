"""Batches of steps, prepared one after the other; the reference that every stream equals."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from assay.data.dataset import Dataset
from assay.data.order import Step, entry_keys
from assay.train.task import Batch, BatchRows, Task
from assay.train.task_config import TaskConfig


@runtime_checkable
class Stream(Protocol):
    """Turns this worker's steps into prepared batches, in order."""

    def __call__(self, steps: Sequence[Step], train: bool) -> Iterator[Batch]:
        """Prepare the steps; empty steps are left out."""
        ...


def batches(
    task: type[Task],
    config: TaskConfig,
    dataset: Dataset,
    steps: Sequence[Step],
    train: bool,
) -> Iterator[Batch]:
    """Prepare steps one after the other in this process; the reference that every stream equals."""
    for step in steps:
        keys = entry_keys(config.train.seed, step.epoch, step.entries)
        yield task.prepare(config, dataset, BatchRows(step.rows, keys, train))
