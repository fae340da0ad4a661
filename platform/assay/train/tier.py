"""Where a run's pixels are: three tiers that serve the same batches.

disk     the store where it lies, or each node's copies of it; what was read stays in the
         operating system's cache as long as there is room
memory   each node's copies in its shared memory, one for all processes
device   the levels that patches are cut from in the accelerator's memory too, equalised, and cut,
         turned and rescaled there (equal but for the rounding of sampled values, see `device_images`)
"""

import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from assay.data.images.pixels import Pixels
from assay.data.images.store import SPARE_DISK
from assay.errors import ResourceError

Tier = Literal["auto", "disk", "memory", "device"]

SHARED_MEMORY = Path("/dev/shm")


def choose_tier(
    tier: Tier, pixels: Pixels, rows: Sequence[int], device: torch.device
) -> tuple[Tier, Pixels]:
    """Choose the tier on this node; return also the handle that reads from it.

    Args:
        tier: What was asked for.
        pixels: The handle on the store.
        rows: Rows to be trained on.
        device: Where they are trained on.

    Raises:
        ResourceError: the tier asked for does not exist here, or has too little room.
        StoreError: the store cannot be reached.
    """
    store = pixels.store
    near = replace(store, cache=str(SHARED_MEMORY))
    free = _free_bytes(device)
    if tier == "auto" and (store.cache or "://" not in store.address):
        free.pop("memory", None)  # entries are near already
    if tier == "disk" or (tier == "auto" and not free):
        return "disk", pixels
    absent = [content for content in pixels.contents if not near.path(content).exists()]
    need = {
        "memory": store.num_bytes(absent),
        "device": store.num_bytes([pixels.contents[row] for row in rows]),
    }
    chosen = fit_tier(tier, need, free)
    if chosen == "memory":
        pixels = replace(pixels, store=near, _open=OrderedDict(), _checked={})
    return chosen, pixels


def fit_tier(tier: Tier, need: Mapping[str, int], free: Mapping[str, int]) -> Tier:
    """Return the tier asked for if it fits; auto: the fastest of which half would do.

    Args:
        tier: What was asked for.
        need: Bytes that "memory" and "device" would have to take up.
        free: Bytes that are free there; a tier that is not named does not exist, but any device
            may be asked for.

    Raises:
        ResourceError: the tier asked for does not exist here, or has too little room.
    """
    if tier == "auto":
        fastest: list[Tier] = ["device", "memory"]
        return next((t for t in fastest if t in free and need[t] <= free[t] / 2), "disk")
    if tier == "memory" and "memory" not in free:
        raise ResourceError(
            f"--tier memory was asked for and this machine has no {SHARED_MEMORY}; use --tier disk."
        )
    if tier in free and need[tier] > free[tier]:
        raise ResourceError(
            f"--tier {tier} needs {need[tier] / 1e9:.1f} GB and {free[tier] / 1e9:.1f} GB are free; use --tier disk."
        )
    return tier


def _free_bytes(device: torch.device) -> dict[str, int]:
    free = {}
    if device.type == "cuda":
        free["device"] = torch.cuda.mem_get_info(device)[0]
    if SHARED_MEMORY.is_dir():
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        room = min(shutil.disk_usage(SHARED_MEMORY).free, 1024 * kilobytes)
        free["memory"] = max(room - SPARE_DISK, 0)
    return free
