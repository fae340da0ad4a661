"""Prediction of a set of rows on all workers, in batches that do not depend on their number."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from assay.data.order import Step, fixed_order, steps_of
from assay.train.batches import Stream
from assay.train.task import Batch, Task


def world() -> tuple[int, int]:
    """This worker's rank and the number of workers."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Predictor:
    """Predicts one set of rows, on each worker a part of its batches.

    Args:
        task: the module, bare or sharded.
        stream: where batches come from.
        rows: row numbers of the set, at least one.
        cache_bytes: prepared batches are kept for the next time up to this size per worker.
        examine: add the columns of the task's `predict_once`.
    """

    def __init__(
        self,
        task: Task,
        stream: Stream,
        rows: np.ndarray,
        cache_bytes: int = 0,
        once: bool = False,
    ) -> None:
        self.task, self.stream, self.cache_bytes, self.predict_once = (
            task,
            stream,
            cache_bytes,
            once,
        )
        self.rank, self.world_size = world()
        self.steps = steps_of(fixed_order(rows, task.config.train.eval_batch_size), 0)
        self.kept: list[Batch] | None = None
        self.first: tuple[Batch, dict[str, np.ndarray]] | None = None

    def predict(self) -> dict[str, np.ndarray]:
        """Columns for the rows on every rank, in the order of the rows, by the present weights."""
        # FSDP gathers parameters in every forward, so all ranks must run equally many
        rounds = math.ceil(len(self.steps) / self.world_size)
        last = len(self.steps) - 1
        own = [self.steps[min(i * self.world_size + self.rank, last)] for i in range(rounds)]
        prepared = iter(self.kept) if self.kept else self.stream(own, train=False)
        kept: list[Batch] = []
        room = self.cache_bytes
        self.task.eval()
        parts: list[dict[str, np.ndarray]] = []
        for step, batch in zip(own, prepared, strict=True):
            room -= sum(array.nbytes for array in batch.values())
            if room >= 0:
                kept.append(batch)
            made = self._columns(batch)
            self.first = (batch, made) if not parts else self.first
            parts.append(made | {"row": step.rows})
        if room >= 0:
            self.kept = kept
        return _gather(parts, self.world_size, self.steps)

    def probe(self) -> tuple[dict[str, float], dict[str, float]]:
        """How far each column of the first batch moves: predicted again, and among other rows.

        A move is the share of the column's largest value, of integers 0 or 1, and the largest that
        any rank found in its own first batch. Copies of the first row take the place of the other
        rows, so shapes and kernels stay the same, and what is steady does not move at all. Follows
        `predict`, by the same weights.
        """
        assert self.first is not None
        batch, before = self.first
        copies = {name: np.repeat(v[:1], len(v), axis=0) for name, v in batch.items()}
        again, among = self._columns(batch), self._columns(copies)
        everyone: list[Any] = [None] * self.world_size
        moved = (
            {name: _gap(v, again[name]) for name, v in before.items()},
            {name: _gap(v[:1], among[name][:1]) for name, v in before.items()},
        )
        if self.world_size > 1:
            dist.all_gather_object(everyone, moved)
        else:
            everyone = [moved]
        first, second = zip(*everyone, strict=True)
        return _largest(first), _largest(second)

    def _columns(self, batch: Batch) -> dict[str, np.ndarray]:
        # not inference_mode: FSDP would train on with buffers that it made in here
        with torch.no_grad(), autocast(self.task.config.train.precision, self.task.device):
            made = self.task.predict(batch) | (
                self.task.predict_once(batch) if self.predict_once else {}
            )
            return {name: _array(v) for name, v in made.items()}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context in which a model runs in the precision of `TrainConfig.precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return array


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    numbers = np.issubdtype(one.dtype, np.floating)
    if not numbers or not np.isfinite(one).all() or not np.isfinite(other).all():
        return float(not np.array_equal(one, other, equal_nan=numbers))
    tiny = float(np.finfo(one.dtype).tiny)
    return float(np.abs(one - other).max() / max(float(np.abs(one).max()), tiny))


def _largest(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: max(gaps[name] for gaps in found) for name in found[0]}


def _gather(
    parts: list[dict[str, np.ndarray]], world_size: int, steps: Sequence[Step]
) -> dict[str, np.ndarray]:
    """All ranks' parts in the order of the steps."""
    if world_size > 1:
        everyone: list[Any] = [None] * world_size
        dist.all_gather_object(everyone, parts)
        turns = [iter(theirs) for theirs in everyone]
        parts = [next(turns[i % world_size]) for i in range(len(steps))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
