"""Images of any size through a network: overlapping tiles whose logits are blended.

Tiles fit the image: one where its pixels may go through the network at once, else as few pixels in
all as the overlap allows. A network that takes one size alone is shown squares of that size.

What comes out are levels, one small integer per pixel and class: logits from -8 to 8 in steps of a
quarter, and what lies beyond at the ends. A threshold is a level; a mask is what reaches it. Tiles
are worked off in strips, so that beside the levels memory holds one strip of logits, whatever the
height of the image.
"""

import itertools
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

TILES_PER_RUN = 6
"""Squares of `tile_px` that have as many pixels as go through the network together."""


STRIDE_PX = 32
"""What the sides of a tile are multiples of, since networks halve them five times."""


LEAST_PX = 64
"""Shortest side of a tile that fits its image."""


Network = Callable[[np.ndarray], np.ndarray]
"""Logits (n classes h w) of normalised tiles (n 3 h w), both float32."""


@dataclass(frozen=True, kw_only=True)
class TileConfig(NormaliseConfig, section="tiles"):
    """How an image is cut into tiles; part of a bundle's input contract."""

    tile_px: Annotated[int, Interval(ge=32, le=8192), MultipleOf(STRIDE_PX)] = 512
    """Side of a tile (pixels), a multiple of 32; of tiles that fit their image the least side, and a sixth of the most pixels."""
    size: Literal["fit", "fixed"] = "fit"
    """Tiles fit their image, which goes through the network whole where it is small; or all are squares of tile-px, as some encoders need."""
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
    height, width = entry.size
    side = high, wide = tile_size(height, width, config)
    ys, xs = _starts(height, high, config.overlap_px), _starts(width, wide, config.overlap_px)
    per_run = max(1, TILES_PER_RUN * config.tile_px**2 // (high * wide))
    window = np.outer(*(_ramp(length, config.overlap_px) for length in side))
    levels = np.empty((num_classes, height, width), dtype=np.uint8)
    reach = max(width, wide)
    total, weight = (
        np.zeros((num_classes, high, reach), np.float32),
        np.zeros((high, reach), np.float32),
    )
    for number, y in enumerate(ys):
        for start in range(0, len(xs), per_run):
            run = xs[start : start + per_run]
            for x, logits in zip(run, _logits(entry, network, y, run, side, config), strict=True):
                total[:, :, x : x + wide] += logits * window
                weight[:, x : x + wide] += window
        done = (ys[number + 1] if number + 1 < len(ys) else y + high) - y
        shown = min(y + done, height) - y
        levels[:, y : y + shown] = to_levels(total[:, :shown, :width] / weight[:shown, :width])
        for strip in (total, weight):
            strip[..., : high - done, :] = strip[..., done:, :].copy()
            strip[..., high - done :, :] = 0
    return levels


def tile_size(height: int, width: int, config: TileConfig) -> tuple[int, int]:
    """Choose height and width of the tiles of an image: those that show a network the fewest pixels."""
    if config.size == "fixed":
        return config.tile_px, config.tile_px
    most = TILES_PER_RUN * config.tile_px**2
    sizes = itertools.product(_sides(height, config), _sides(width, config))

    def pixels(size: tuple[int, int]) -> int:
        rows, columns = (
            side * len(_starts(length, side, config.overlap_px))
            for length, side in zip((height, width), size, strict=True)
        )
        return rows * columns

    return min((size for size in sizes if size[0] * size[1] <= most), key=pixels)


def _sides(length: int, config: TileConfig) -> list[int]:
    """List sides that divide an edge into one tile, two, and so on, the last one `tile_px` or less."""
    sides: list[int] = []
    while not sides or sides[-1] > config.tile_px:
        num = len(sides) + 1
        side = math.ceil((length + (num - 1) * config.overlap_px) / num / STRIDE_PX) * STRIDE_PX
        sides.append(max(side, config.tile_px if num > 1 else LEAST_PX))
    return sides


def _logits(
    entry: ImagePyramid,
    network: Network,
    y: int,
    xs: Sequence[int],
    size: tuple[int, int],
    config: TileConfig,
) -> Float[np.ndarray, "n classes h w"]:
    tiles = np.stack([entry.uint8(cut_inside(entry.levels[0], x, y, size)) for x in xs])
    return network(normalise(tiles, *config.statistics(entry.mean, entry.std)))


def cut_inside(
    pixels: Level | Shaped[np.ndarray, "h w *c"], x: int, y: int, size: tuple[int, int]
) -> Shaped[np.ndarray, "height width *c"]:
    """Cut a height and width of an image or mask, or all of it mirrored at its edges where it is smaller."""
    height, width = size
    cut = np.asarray(pixels[y : y + height, x : x + width])
    below, right = height - cut.shape[0], width - cut.shape[1]
    if below or right:
        cut = cv2.copyMakeBorder(cut, 0, below, 0, right, cv2.BORDER_REFLECT)
    return cut


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Return where tiles begin along an edge, evenly, the last at its end."""
    room = length - side
    if room <= 0:
        return [0]
    num = 1 + math.ceil(room / (side - overlap))
    return [int(start) for start in np.rint(np.linspace(0, room, num))]


def _ramp(side: int, overlap: int) -> Float[np.ndarray, " side"]:
    """Return weights that rise and fall linearly over the overlap, and are nowhere 0."""
    rise = (np.arange(side) + 0.5) / max(overlap, 1)
    return np.minimum(np.minimum(rise, rise[::-1]), 1).astype(np.float32)
