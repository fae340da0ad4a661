"""A batch learnt from in parts, of which only one is in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from assay.train.task import Batch


class Part(NamedTuple):
    """Some rows of a batch."""

    batch: Batch
    share: float
    """Of the batch's rows; 0 of a part that only keeps step with other workers."""


def parts_of(batch: Batch, num: int) -> list[Part]:
    """Split a batch into so many parts, as equal as can be.

    Every worker goes through as many, as sharded weights are gathered together: in the place of an
    empty one stands the first row, with share 0.
    """
    if num == 1:
        return [Part(batch, 1.0)]
    size = len(next(iter(batch.values())))
    parts = []
    for rows in np.array_split(np.arange(size), num):
        chosen = rows if len(rows) else np.zeros(1, int)
        some = {name: array[chosen] for name, array in batch.items()}
        parts.append(Part(some, len(rows) / size))
    return parts


@contextmanager
def gradients_wait(module: nn.Module, wait: bool) -> Iterator[None]:
    """Keep gradients on each worker in this block, if so asked, to be reduced with those of the last part."""
    if isinstance(module, DistributedDataParallel) and wait:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not wait)
    yield
