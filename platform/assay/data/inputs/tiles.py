"""Images of any size through a network of fixed input: overlapping tiles whose logits are blended.

What comes out are levels, one small integer per pixel and class: logits from -8 to 8 in steps of a
quarter, and what lies beyond at the ends. A threshold is a level; a mask is what reaches it. Tiles
are worked off in strips, so that beside the levels memory holds one strip of logits, whatever the
height of the image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Interval, MultipleOf

from assay.data.images.pyramid import ImagePyramid, Level
from assay.data.inputs.normalise import NormaliseConfig, normalise
from assay.errors import ConfigError
from assay.levels import to_levels
from assay.shapes import Float, Shaped, UInt8

TILES_PER_RUN = 4
"""Tiles that go through the network together."""


Network = Callable[[np.ndarray], np.ndarray]
"""Logits (n classes side side) of normalised tiles (n 3 side side), both float32."""


@dataclass(frozen=True, kw_only=True)
class TileConfig(NormaliseConfig, section="tiles"):
    """How an image is cut into tiles; part of a bundle's input contract."""

    tile_px: Annotated[int, Interval(ge=32, le=8192), MultipleOf(32)] = 512
    """Side of a tile (pixels), a multiple of 32."""
    overlap_px: Annotated[int, Interval(ge=0, le=8192)] = 64
    """Pixels that neighbouring tiles share, and over which their logits are blended."""
    normalise: Literal["image", "imagenet", "constants"] = "imagenet"
    """Less the mean and over the deviation of ImageNet, of the image itself (its light and contrast are gone), or of `mean` and `std`."""

    def __post_init__(self) -> None:
        """Refuse an overlap of more than half a tile."""
        super().__post_init__()
        if self.overlap_px > self.tile_px // 2:
            raise ConfigError(
                f"tiles.overlap-px is {self.overlap_px}; give 0 to half of tile-px, which is {self.tile_px // 2}."
            )


def level_map(
    entry: ImagePyramid, network: Network, num_classes: int, config: TileConfig
) -> UInt8[np.ndarray, "classes h w"]:
    """Compute levels of every pixel of an image, a strip of tiles at a time."""
    side, (height, width) = config.tile_px, entry.size
    ys, xs = (_starts(length, config) for length in (height, width))
    window = _window(config)
    levels = np.empty((num_classes, height, width), dtype=np.uint8)
    reach = max(width, side)
    total, weight = (
        np.zeros((num_classes, side, reach), np.float32),
        np.zeros((side, reach), np.float32),
    )
    for number, y in enumerate(ys):
        for start in range(0, len(xs), TILES_PER_RUN):
            run = xs[start : start + TILES_PER_RUN]
            for x, logits in zip(run, _logits(entry, network, y, run, config), strict=True):
                total[:, :, x : x + side] += logits * window
                weight[:, x : x + side] += window
        done = (ys[number + 1] if number + 1 < len(ys) else y + side) - y
        shown = min(y + done, height) - y
        levels[:, y : y + shown] = to_levels(total[:, :shown, :width] / weight[:shown, :width])
        for strip in (total, weight):
            strip[..., : side - done, :] = strip[..., done:, :].copy()
            strip[..., side - done :, :] = 0
    return levels


def _logits(
    entry: ImagePyramid, network: Network, y: int, xs: Sequence[int], config: TileConfig
) -> Float[np.ndarray, "n classes side side"]:
    tiles = np.stack([entry.uint8(cut_inside(entry.levels[0], x, y, config.tile_px)) for x in xs])
    return network(normalise(tiles, *config.statistics(entry.mean, entry.std)))


def cut_inside(
    pixels: Level | Shaped[np.ndarray, "h w *c"], x: int, y: int, side: int
) -> Shaped[np.ndarray, "side side *c"]:
    """Cut a square of an image or mask, or all of it mirrored at its edges where it is smaller."""
    cut = np.asarray(pixels[y : y + side, x : x + side])
    below, right = side - cut.shape[0], side - cut.shape[1]
    if below or right:
        cut = cv2.copyMakeBorder(cut, 0, below, 0, right, cv2.BORDER_REFLECT)
    return cut


def _starts(length: int, config: TileConfig) -> list[int]:
    """Return where tiles begin along an edge, evenly, the last at its end."""
    room = length - config.tile_px
    if room <= 0:
        return [0]
    num = 1 + math.ceil(room / (config.tile_px - config.overlap_px))
    return [int(start) for start in np.rint(np.linspace(0, room, num))]


def _window(config: TileConfig) -> Float[np.ndarray, "side side"]:
    """Return weights that fall linearly over the overlap, and are nowhere 0."""
    rise = (np.arange(config.tile_px) + 0.5) / max(config.overlap_px, 1)
    edge = np.minimum(np.minimum(rise, rise[::-1]), 1).astype(np.float32)
    return edge[:, None] * edge
