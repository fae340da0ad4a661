"""Batches for each worker, prepared by Ray Data on CPUs that training left free."""

import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial
from typing import Any

import numpy as np
import ray.data
from ray.data import ExecutionResources

from assay import errors
from assay.cluster.nodes import most_left_of_a_node, up
from assay.config import from_dict, to_dict
from assay.data.dataset import Dataset
from assay.data.order import Step
from assay.errors import AssayError, disk_faults
from assay.experiment.resources import FOR_DATA
from assay.train.batches import Stream, batches
from assay.train.source import TaskSource, load_task
from assay.train.task import Batch
from assay.train.task_config import TaskConfig

SAMPLES_PER_BLOCK = 64

STARVED_S = 60.0
"""Seconds without a batch, on a cluster that has no CPU for Ray Data, until they are given up."""

REFUSED = "refused"
"""Column of a block that holds an error's class and its sentence in the place of batches."""


def _set_up(cpus: float | None) -> None:
    """Make Ray Data silent and keep the order; let a pipeline take so many CPUs, or any that are free."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    if cpus is not None:
        context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=cpus)


def ray_stream(
    source: TaskSource,
    config: TaskConfig,
    dataset: Dataset,
    cpus: float | None = None,
    held: float = 0.0,
) -> Stream:
    """Return a stream whose batches are prepared by Ray Data tasks on CPUs that training left free.

    Args:
        source: the task's file.
        config: its settings.
        dataset: what it is given of the data.
        cpus: how many it may take at most; None: any that are free.
        held: CPUs that workers hold and that it never gets.
    """
    shared = ray.put((source, to_dict(config), dataset))

    def stream(steps: Sequence[Step], train: bool) -> Iterator[Batch]:
        if not steps:
            return
        _set_up(cpus)
        plan = ray.put(list(steps))
        group = max(1, SAMPLES_PER_BLOCK // max(len(step.rows) for step in steps))

        blocks = math.ceil(len(steps) / group)
        dataset = ray.data.range(len(steps), override_num_blocks=blocks).map_batches(
            partial(_prepare, shared, plan, train), batch_size=None
        )
        arrived = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        yield from _regroup(_arriving(iter(arrived), held), [len(step.rows) for step in steps])

    return stream


class StarvedError(Exception):
    """A node is gone, and with it the CPU that Ray Data would wait for without end."""


def _arriving(blocks: Iterator[Batch], held: float) -> Iterator[Batch]:
    """Hand on what arrives, while that can be.

    Raises:
        StarvedError: nothing came, and workers hold every CPU that the cluster still has.
    """
    pool = ThreadPoolExecutor(1)
    try:
        while True:
            coming = pool.submit(next, blocks, None)
            while not wait([coming], STARVED_S).done:
                has, left = up()["CPU"], most_left_of_a_node()
                if min(has - held, left + 1e-6) < FOR_DATA["CPU"]:
                    raise StarvedError(
                        f"Ray Data has no CPU any more: the cluster has {has:g}, the workers hold {held:g}, and what is reserved leaves {left:g} of a node"
                    )
            block = coming.result()
            if block is None:
                return
            yield block
    finally:
        pool.shutdown(wait=False)


def _prepare(shared: Any, plan: Any, train: bool, block: Batch) -> Batch:
    """Prepare the steps of one block, one after the other, in a Ray Data task.

    What the user can mend is a block too: of what a task raises Ray Data keeps the traceback alone.
    """
    task, config, dataset = _recall(shared)
    mine = [_plan(plan)[int(i)] for i in block["id"]]
    try:
        with disk_faults():
            parts = list(batches(task, config, dataset, mine, train))
    except AssayError as error:
        return {REFUSED: np.array([[type(error).__name__, str(error)]])}
    return {name: np.concatenate([batch[name] for batch in parts]) for name in parts[0]}


@lru_cache(maxsize=4)
def _recall(shared: Any) -> tuple[Any, TaskConfig, Dataset]:
    source, values, dataset = ray.get(shared)
    task = load_task(source)
    return task, from_dict(task.Config, values), dataset


@lru_cache(maxsize=4)
def _plan(plan: Any) -> list[Step]:
    steps: list[Step] = ray.get(plan)
    return steps


def _regroup(blocks: Iterator[Batch], sizes: Sequence[int]) -> Iterator[Batch]:
    """Cut blocks of any length into batches of the given sizes, in order."""
    rest: Batch = {}
    for size in sizes:
        while not rest or len(next(iter(rest.values()))) < size:
            try:
                block = next(blocks)
            except StopIteration:
                raise AssayError(
                    "Ray Data ended before all samples were served; see the lines above for the worker that failed."
                ) from None
            if REFUSED in block:
                kind, text = map(str, block[REFUSED][0])
                raise getattr(errors, kind)(text)
            if rest:
                rest = {k: np.concatenate([rest[k], v]) for k, v in block.items()}
            else:
                rest = dict(block)
        # blocks are read-only views of shared memory; a batch is the reader's own
        yield {k: v[:size].copy() for k, v in rest.items()}
        rest = {k: v[size:] for k, v in rest.items()}
