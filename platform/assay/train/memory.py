"""What is said where memory ends."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from assay.errors import ResourceError


@contextmanager
def memory_faults(
    device: torch.device, batch_size: int, workers: int, accumulate: int, recomputes: bool
) -> Iterator[None]:
    """Say in a sentence that the device has too little memory for what is learnt in this block.

    Args:
        device: Where it is learnt.
        batch_size: Images per update over all workers.
        workers: Their number.
        accumulate: Parts that a worker's share is learnt from in turn.
        recomputes: Blocks keep their input alone.

    Raises:
        ResourceError: in the place of what torch raises.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        images = math.ceil(batch_size / workers / accumulate)
        raise ResourceError(
            f"The memory of {device}{_size(device)} ended at {images} image{'s' if images > 1 else ''} at a time; {_remedy(images, accumulate, recomputes)}."
        ) from error


def _is_of_memory(error: Exception) -> bool:
    """Tell an allocation that failed: on a CPU torch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _size(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return f" ({torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB)"


def _remedy(images: int, accumulate: int, recomputes: bool) -> str:
    ways = []
    if images > 1:
        ways.append(f"--accumulate {2 * accumulate}, which learns the same from half as many")
    if not recomputes:
        ways.append("--recompute, which keeps less of each")
    ways.append("more workers with --strategy fsdp, a smaller network, or fewer or smaller patches")
    return f"give {', or '.join(ways)}"
