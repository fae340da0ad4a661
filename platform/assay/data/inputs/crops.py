"""Crops of an image and its mask to train on: where they are cut, and how they are changed."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval, MultipleOf

from assay.config import Share
from assay.data.images.pixels import Pixels
from assay.data.inputs.tiles import cut_inside
from assay.data.inputs.transforms import TransformConfig, change
from assay.levels import VOID
from assay.shapes import Int, UInt8

MOST_PIXELS = 4096
"""Pixels inside a mask that are remembered to cut around."""


@dataclass(frozen=True, kw_only=True)
class CropConfig(TransformConfig, section="crops"):
    """How crops are drawn from an image; everything is drawn anew for each sample."""

    crop_px: Annotated[int, Interval(ge=32, le=8192), MultipleOf(32)] = 256
    """Side of a crop (pixels), a multiple of 32."""
    affine: Share = 0.2
    """Probability of rotation and scaling."""
    around: Share = 0.5
    """Share of crops cut around a pixel of the mask, where it has any; others fall anywhere."""


def draw_crop(
    pixels: Pixels, row: int, config: CropConfig, key: int
) -> tuple[UInt8[np.ndarray, "side side 3"], UInt8[np.ndarray, "side side"]]:
    """Draw one crop of a row's image and of its mask of kind label, a function of row and key alone."""
    rng = np.random.default_rng(key)
    mask, side = pixels.mask(row, "label"), config.crop_px
    height, width = mask.shape
    centre = rng.uniform(0, (height, width))
    inside = _inside(pixels.masks["label"][row], pixels.store.address, mask)
    if rng.random() < config.around and len(inside):
        centre = inside[rng.integers(len(inside))] + rng.uniform(-side / 4, side / 4, 2)
    most = np.maximum((height - side, width - side), 0)
    y, x = np.clip(centre - side / 2, 0, most).astype(int).tolist()
    pyramid = pixels[row]
    image = pyramid.uint8(cut_inside(pyramid.levels[0], x, y, (side, side)))
    marks = cut_inside(mask, x, y, (side, side))
    return change(config, image, marks, int(rng.integers(1 << 31)), pyramid.mean, pyramid.std)


_remembered: dict[tuple[str, str], Int[np.ndarray, "n 2"]] = {}


def _inside(content: str, store: str, mask: UInt8[np.ndarray, "h w"]) -> Int[np.ndarray, "n 2"]:
    """Return some of the pixels (row, column) inside a mask, spread evenly; counted once per process."""
    pixels = _remembered.get((store, content))
    if pixels is None:
        flat = np.flatnonzero((mask > 0) & (mask != VOID))
        flat = flat[:: max(1, len(flat) // MOST_PIXELS)]
        pixels = np.stack(np.divmod(flat, mask.shape[1]), axis=1)
        _remembered[store, content] = pixels
    return pixels
