"""Patches of a batch, cut by a pool of threads on the host, or on the device where their images are held there."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from assay.data.inputs.patches import Canvas
from assay.shapes import Bool, Int, UInt8
from assay.train.device_images import DeviceImages


class Cut(NamedTuple):
    """What is asked for: patches of each image of a batch."""

    rows: Int[np.ndarray, "b"]
    canvases: Sequence[Canvas]
    corners: Int[np.ndarray, "b n 2"]
    is_cell: Bool[np.ndarray, "b n"]


class Begun(NamedTuple):
    """A cut that threads are at work on."""

    cut: Cut
    by_host: list[int]
    """Images of the batch that the host cuts."""
    pixels: UInt8[Tensor, "host n p p 3"]
    """Theirs, in pinned memory where a CUDA device is to have them."""
    futures: list[Future[None]]


class PatchCutter:
    """Cuts patches; what it gives is the same whoever cuts, but for rounding where the device samples.

    Args:
        rows: Rows of the images that may be held on the device; by default none.
    """

    def __init__(self, rows: Iterable[int] = ()) -> None:
        self.device_images = DeviceImages(rows)

    def begin(self, cut: Cut, device: torch.device) -> Begun:
        """Let threads cut what the device does not."""
        pairs = zip(cut.rows.tolist(), cut.canvases, strict=True)
        by_host = [i for i, pair in enumerate(pairs) if not self.device_images.serves(*pair)]
        side = cut.canvases[0].config.patch_px
        shape = len(by_host), cut.is_cell.shape[1], side, side, 3
        pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        slots = zip(pixels.numpy(), by_host, strict=True)
        futures = [_threads().submit(_fill, slot, cut, i) for slot, i in slots]
        return Begun(cut, by_host, pixels, futures)

    def finish(self, begun: Begun, device: torch.device) -> UInt8[Tensor, "b n p p 3"]:
        """Return what `Canvas.patches` gives for each image, on the device; zeros where there is no cell."""
        for future in begun.futures:
            future.result()
        from_host = begun.pixels.to(device, non_blocking=True)
        cut = begun.cut
        if len(begun.by_host) == len(cut.rows):
            return from_host
        patches = from_host.new_zeros(len(cut.rows), *from_host.shape[1:])
        patches[begun.by_host] = from_host
        for i in sorted(set(range(len(cut.rows))) - set(begun.by_host)):
            mask = cut.is_cell[i]
            of_image = self.device_images.patches(
                int(cut.rows[i]), cut.canvases[i], cut.corners[i, mask], device
            )
            patches[i, torch.from_numpy(mask).to(device)] = of_image
        return patches


def _fill(slot: UInt8[np.ndarray, "n p p 3"], cut: Cut, i: int) -> None:
    mask = cut.is_cell[i]
    slot[mask] = cut.canvases[i].patches(cut.corners[i, mask])


@cache
def _threads() -> ThreadPoolExecutor:
    """Return this process's threads, as many as torch computes with."""
    return ThreadPoolExecutor(torch.get_num_threads(), "cut")
