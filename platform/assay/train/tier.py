"""Where a run's pixels are: three tiers that serve the same batches, byte for byte.

disk     the store where it lies, or each node's copies of it; what was read stays in the
         operating system's cache as long as there is room
memory   each node's copies in its shared memory, one for all processes
device   pixels at full resolution in the accelerator's memory too, and patches cut there
"""

import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from assay.data.images.affine import crop_matrix
from assay.data.images.pixels import Pixels
from assay.data.images.pyramid import whole_pixels
from assay.data.images.store import SPARE_DISK
from assay.data.inputs.patches import Canvas
from assay.errors import ResourceError
from assay.shapes import Bool, Int, UInt8

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


class DeviceCache:
    """Images whose pixels stay on the accelerator from the first time that patches are copied there.

    Args:
        rows: Rows of the images that may; by default none.
    """

    def __init__(self, rows: Iterable[int] = ()) -> None:
        self.rows = frozenset(int(row) for row in rows)
        self.images: dict[int, Tensor] = {}
        """Pixels (h w 3) on the device, by row."""

    def cut(
        self,
        rows: Int[np.ndarray, "b"],
        canvases: Sequence[Canvas],
        corners: Int[np.ndarray, "b n 2"],
        is_cell: Bool[np.ndarray, "b n"],
        device: torch.device,
    ) -> UInt8[Tensor, "b n p p 3"]:
        """Cut on the device what `Canvas.patches` gives for each row; zeros where there is no cell.

        Copies of whole pixels are made there. What is equalised, sampled or changed in value is cut
        by the host, as is everything of other rows.
        """
        row_corners = [corners[i, mask] for i, mask in enumerate(is_cell)]
        copies = [
            self._copies(row, canvas, xy, device)
            for row, canvas, xy in zip(rows.tolist(), canvases, row_corners, strict=True)
        ]
        side = canvases[0].config.patch_px
        shape = (is_cell.shape[1], side, side, 3)
        by_host = [i for i, patches in enumerate(copies) if patches is None]
        pixels = np.zeros((len(by_host), *shape), dtype=np.uint8)
        for slot, i in enumerate(by_host):
            pixels[slot, is_cell[i]] = canvases[i].patches(row_corners[i])
        from_host = torch.from_numpy(pixels).to(device)
        if len(by_host) == len(rows):
            return from_host
        batch = from_host.new_zeros(len(rows), *shape)
        batch[by_host] = from_host
        for i, patches in enumerate(copies):
            if patches is not None:
                batch[i, torch.from_numpy(is_cell[i]).to(device)] = patches
        return batch

    def _copies(
        self, row: int, canvas: Canvas, corners: np.ndarray, device: torch.device
    ) -> Tensor | None:
        """Copy patches on the device; None where they are no copies, or there are none."""
        if row not in self.rows or canvas.config.clahe or not canvas.augment.is_geometric:
            return None
        side = canvas.config.patch_px
        windows = [
            whole_pixels(crop_matrix(canvas.matrix, x, y), side, side) for x, y in corners.tolist()
        ]
        if not windows or None in windows:
            return None
        if row not in self.images:
            pixels = np.array(canvas.entry.uint8(canvas.entry.pixels))
            self.images[row] = torch.from_numpy(pixels).to(device)
        image = self.images[row]
        return torch.stack([_window(image, *window, side) for window in windows if window])


def _window(image: Tensor, start: tuple[int, int], flips: tuple[int, int], side: int) -> Tensor:
    """Copy a square of an image (h w 3), zero outside it, flipped where a step is -1."""
    (x, y), (height, width, _) = start, image.shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    window = image.new_zeros(side, side, 3)
    if x0 < x1 and y0 < y1:
        window[y0 - y : y1 - y, x0 - x : x1 - x] = image[y0:y1, x0:x1]
    return window.flip([axis for axis, step in enumerate(flips[::-1]) if step < 0])
