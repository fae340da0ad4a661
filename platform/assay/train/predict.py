"""Prediction of a set of rows on all workers, in batches that do not depend on their number."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from assay.data.order import Step, fixed_order, steps_of
from assay.train.batches import Stream
from assay.train.task import Batch, Task


def world() -> tuple[int, int]:
    """Return this worker's rank and the number of workers."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Predictor:
    """Predicts one set of rows, on each worker a part of its batches.

    Args:
        task: the module, bare or sharded.
        stream: where batches come from.
        rows: row numbers of the set, at least one.
        cache_bytes: prepared batches stay in memory for the next time up to this size per worker.
        once: for the table that a run is judged by: add the columns of the task's `predict_once`, and
            compute in float32, as the graphs that ship do, whatever training computes in.
    """

    def __init__(
        self,
        task: Task,
        stream: Stream,
        rows: np.ndarray,
        cache_bytes: int = 0,
        once: bool = False,
    ) -> None:
        self.task, self.stream = task, stream
        self.cache_bytes, self.once = cache_bytes, once
        self.precision = "fp32" if once else task.config.train.precision
        self.rank, self.world_size = world()
        self.steps = steps_of(fixed_order(rows, task.config.train.eval_batch_size), 0)
        self.cache: list[Batch] | None = None
        self.first: tuple[Batch, dict[str, np.ndarray]] | None = None
        """The first batch of this worker and its columns, for `probe`."""

    def predict(self) -> dict[str, np.ndarray]:
        """Predict the rows by the present weights: columns on every rank, in the order of the rows."""
        # FSDP gathers parameters in every forward, so all ranks must run equally many
        rounds = math.ceil(len(self.steps) / self.world_size)
        last = len(self.steps) - 1
        steps = [self.steps[min(i * self.world_size + self.rank, last)] for i in range(rounds)]
        batches = iter(self.cache) if self.cache else self.stream(steps, train=False)
        cache: list[Batch] = []
        room = self.cache_bytes
        self.task.eval()
        parts: list[dict[str, np.ndarray]] = []
        for step, batch in zip(steps, batches, strict=True):
            room -= sum(array.nbytes for array in batch.values())
            if room >= 0:
                cache.append(batch)
            columns = self._columns(batch)
            if not parts:
                self.first = batch, columns
            parts.append(columns | {"row": step.rows})
        if room >= 0:
            self.cache = cache
        return _gather(parts, self.world_size, self.steps)

    def probe(self) -> tuple[dict[str, float], dict[str, float]]:
        """Measure how far each column of the first batch moves: predicted again, and among other rows.

        A move is the share of the column's largest value, of integers 0 or 1, and the largest that
        any rank measured in its first batch. Copies of the first row take the place of the other
        rows, so shapes and kernels stay the same, and what is steady does not move at all. Follows
        `predict`, by the same weights.
        """
        assert self.first is not None
        batch, before = self.first
        copies = {name: np.repeat(array[:1], len(array), axis=0) for name, array in batch.items()}
        again, among = self._columns(batch), self._columns(copies)
        moves = (
            {name: _gap(column, again[name]) for name, column in before.items()},
            {name: _gap(column[:1], among[name][:1]) for name, column in before.items()},
        )
        moves_by_rank: list[Any] = [moves]
        if self.world_size > 1:
            moves_by_rank *= self.world_size
            dist.all_gather_object(moves_by_rank, moves)
        first, second = zip(*moves_by_rank, strict=True)
        return _largest(first), _largest(second)

    def _columns(self, batch: Batch) -> dict[str, np.ndarray]:
        # not inference_mode: FSDP would train on with buffers that it made in here
        exact = whole_float32() if self.once else nullcontext()
        with torch.no_grad(), exact, autocast(self.precision, self.task.device):
            columns = self.task.predict(batch)
            if self.once:
                columns = columns | self.task.predict_once(batch)
            return {name: _array(column) for name, column in columns.items()}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a model runs in the precision of `TrainConfig.precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


@contextmanager
def whole_float32() -> Iterator[None]:
    """Let no convolution on a CUDA device round its inputs to 10 bits (TF32), as cuDNN does by default."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return array


def _gap(before: np.ndarray, after: np.ndarray) -> float:
    is_float = np.issubdtype(before.dtype, np.floating)
    if not is_float or not np.isfinite(before).all() or not np.isfinite(after).all():
        return float(not np.array_equal(before, after, equal_nan=is_float))
    tiny = float(np.finfo(before.dtype).tiny)
    return float(np.abs(before - after).max() / max(float(np.abs(before).max()), tiny))


def _largest(moves: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: max(gaps[name] for gaps in moves) for name in moves[0]}


def _gather(
    parts: list[dict[str, np.ndarray]], world_size: int, steps: Sequence[Step]
) -> dict[str, np.ndarray]:
    """Put all ranks' parts into the order of the steps."""
    if world_size > 1:
        parts_by_rank: list[Any] = [None] * world_size
        dist.all_gather_object(parts_by_rank, parts)
        turns = [iter(rank_parts) for rank_parts in parts_by_rank]
        parts = [next(turns[i % world_size]) for i in range(len(steps))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
