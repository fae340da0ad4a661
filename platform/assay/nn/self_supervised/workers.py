"""Sums and rows over all workers, so that a batch may be shared out in any way; of one worker, its own."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def sum_over_workers(values: Tensor) -> Tensor:
    """Return the sum of all workers' values, without a gradient."""
    total = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def max_over_workers(values: Tensor) -> Tensor:
    """Return the largest of all workers' values, without a gradient."""
    largest = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def gather_rows(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "all d"], int]:
    """Return all workers' rows in the order of the workers, and where this one's begin.

    A gradient goes back to the worker that a row came from, as the sum of what all of them send.
    """
    if not dist.is_initialized():
        return rows, 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    counts = sum_over_workers(counts)
    first = int(counts[: dist.get_rank()].sum())
    placed = rows.new_zeros(int(counts.sum()), rows.shape[1])
    placed = torch.cat([placed[:first], rows, placed[first + len(rows) :]])
    return _Sum.apply(placed), first


def standardise(rows: Float[Tensor, "n d"], eps: float = 1e-5) -> Float[Tensor, "n d"]:
    """Give each dimension the mean 0 and the deviation 1 over the rows of all workers (Ioffe & Szegedy 2015).

    The gradient goes through mean and deviation, to all workers.
    """
    num = sum_over_workers(torch.tensor(float(len(rows)), device=rows.device)).clamp_min(1)
    centred = rows - _Sum.apply(rows.sum(0)) / num
    variance = _Sum.apply((centred * centred).sum(0)) / num
    scaled: Tensor = centred * (variance + eps).rsqrt()
    return scaled


class _Sum(torch.autograd.Function):
    """A sum over workers whose gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_over_workers(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_workers(gradients[0])
