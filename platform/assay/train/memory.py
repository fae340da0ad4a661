"""What is said where memory ends: what was done then, and what fits."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from assay.errors import ResourceError

BUILDING = "as the network was put there", "give a smaller network, or a device with more memory"
"""When, and what to do."""
HOLDING = "as images were put there", "give --tier disk, which cuts the same patches on the host"
"""When, and what to do."""


@contextmanager
def memory_faults(device: torch.device, when: str, remedy: str) -> Iterator[None]:
    """Say in a sentence that the device has too little memory for what is done in this block.

    Args:
        device: Where it is done.
        when: What is done.
        remedy: What to do.

    Raises:
        ResourceError: in the place of what torch raises.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        raise ResourceError(
            f"The memory of {device}{_size(device)} ended {when}; {remedy}."
        ) from error


def learning(batch_size: int, workers: int, accumulate: int, recomputes: bool) -> tuple[str, str]:
    """Say when, and what to do, of updates.

    Args:
        batch_size: Images per update over all workers.
        workers: Their number.
        accumulate: Parts that a worker's share is learnt from in turn.
        recomputes: Blocks keep their input alone.
    """
    images = math.ceil(batch_size / workers / accumulate)
    ways = []
    if images > 1:
        ways.append(f"--accumulate {2 * accumulate}, which learns the same from half as many")
    if not recomputes:
        ways.append("--recompute, which keeps less of each")
    ways.append("more workers with --strategy fsdp, a smaller network, or fewer or smaller patches")
    return f"in an update, at {_count(images)}", f"give {', or '.join(ways)}"


def judging(images: int) -> tuple[str, str]:
    """Say when, and what to do, of predictions for so many images at a time."""
    less = (
        f"--train.eval-batch-size {images // 2}, which predicts the same and goes on with this run"
    )
    other = "a smaller network, or fewer or smaller patches"
    return f"in judging, at {_count(images)}", f"give {less if images > 1 else other}"


def _count(images: int) -> str:
    return f"{images} image{'s' if images > 1 else ''} at a time"


def _is_of_memory(error: Exception) -> bool:
    """Tell an allocation that failed: on a CPU torch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _size(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return f" ({torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB)"
