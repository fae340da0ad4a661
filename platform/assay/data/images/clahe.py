"""Contrast-limited local equalisation (CLAHE): tables made once per image, applied to any region of it.

Each tile of an image has a table of where its lightness goes, and a pixel is interpolated between
the tables of the four tiles whose centres surround it. Tables depend on nothing but the image, so
they are kept (in memory, or in a file beside the stored image), and a patch costs a look-up.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from assay.files import write_whole
from assay.shapes import Bool, Float32, Int, UInt8, UInt32

Read = Callable[[int, int, int, int], UInt8[np.ndarray, "rows columns 3"]]
"""Gives the raw pixels of a box (x0, y0, x1, y1) inside an image."""

STRIP = 64
"""Rows that are looked up at a time, so that what is between stays in a core's cache."""


@dataclass(frozen=True)
class Clahe:
    """What is equalised by: clip limit (of a bin relative to a flat histogram; 0: none), and tiles along each side."""

    clip_limit: float
    grid: int


class Axis(NamedTuple):
    """Between which tiles each pixel of one axis lies, and how far."""

    low: Int[np.ndarray, "n"]
    """The tile at or before it; -1 before the first centre."""
    share: Float32[np.ndarray, "n"]
    """Weight of the tile after `low`; the rest is that of `low`."""


@dataclass
class Tables:
    """The tables of one image's lightness, each filled in when a region first needs it.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        clahe: Clip limit and tiles.
    """

    height: int
    width: int
    clahe: Clahe
    levels: UInt8[np.ndarray, "grid grid 256"] = field(init=False)
    """The lightness that each lightness (CIELAB L, 0 to 255) becomes, by row and column of the tile."""
    known: Bool[np.ndarray, "grid grid"] = field(init=False)

    def __post_init__(self) -> None:
        """Begin without any."""
        grid = self.clahe.grid
        self.levels = np.zeros((grid, grid, 256), np.uint8)
        self.known = np.zeros((grid, grid), bool)

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a tile in pixels."""
        # if either side is not divisible OpenCV pads both, a divisible one by one pixel per tile
        grid = self.clahe.grid
        is_padded = bool(self.height % grid or self.width % grid)
        return self.height // grid + is_padded, self.width // grid + is_padded

    @classmethod
    def kept(cls, path: Path, read: Read, height: int, width: int, clahe: Clahe) -> "Tables":
        """Read all tables from their file; make them and write it where there is none, or a damaged one.

        Where it cannot be written they stay in this process.
        """
        tables = cls(height, width, clahe)
        try:
            tables._load(path)
        except (OSError, ValueError):
            tables.fill(read, 0, clahe.grid, 0, clahe.grid)
            with suppress(OSError):  # of a full disk, or a store that may only be read
                write_whole(path, _digest(tables.levels, path) + tables.levels.tobytes())
        return tables

    def _load(self, path: Path) -> None:
        flat = np.memmap(path, np.uint8, "r")
        if flat.size != 8 + self.levels.size or _digest(flat[8:], path) != flat[:8].tobytes():
            raise ValueError(f"{path} is not what was written")
        self.levels = flat[8:].reshape(self.levels.shape)
        self.known[:] = True

    def region(
        self, read: Read, x0: int, y0: int, x1: int, y1: int
    ) -> UInt8[np.ndarray, "rows columns 3"]:
        """Compute pixels [y0, y1) x [x0, x1) of the equalised image.

        Where a table is not known yet, less than a tile and a half is read on each side besides (at
        a padded edge also what the padding mirrors).

        Args:
            read: Gives raw pixels of the image.
            x0: First column, inside the image.
            y0: First row, inside the image.
            x1: Column after the last, at most the width.
            y1: Row after the last, at most the height.
        """
        rows, columns = self.axis(y0, y1, 0), self.axis(x0, x1, 1)
        self.fill(read, *self._reach(rows), *self._reach(columns))
        lab = cv2.cvtColor(np.ascontiguousarray(read(x0, y0, x1, y1)), cv2.COLOR_RGB2LAB)
        lightness = self._look_up(cv2.extractChannel(lab, 0), rows, columns)
        return cv2.cvtColor(cv2.insertChannel(lightness, lab, 0), cv2.COLOR_LAB2RGB)

    def axis(self, start: int, stop: int, side: int) -> Axis:
        """Place the pixels [start, stop) between tile centres; side 0 is of rows, 1 of columns.

        Computed in float32 as OpenCV does, so that pixels are equal bit for bit.
        """
        per_pixel = np.float32(1) / np.float32(self.tile[side])
        at = np.arange(start, stop, dtype=np.float32) * per_pixel - np.float32(0.5)
        low = np.floor(at)
        return Axis(low.astype(np.intp), at - low)

    def _reach(self, axis: Axis) -> tuple[int, int]:
        """Return the tiles [first, stop) whose tables are needed."""
        return max(int(axis.low[0]), 0), min(int(axis.low[-1]) + 2, self.clahe.grid)

    def corners(self, rows: Axis, columns: Axis) -> UInt32[np.ndarray, "cells_y cells_x 256"]:
        """Pack the four tables around each cell between tile centres, the upper left in the lowest byte."""
        last = self.clahe.grid - 1
        low_y, low_x = (np.arange(axis.low[0], axis.low[-1] + 1) for axis in (rows, columns))
        four = [
            self.levels[np.clip(low_y + y, 0, last)[:, None], np.clip(low_x + x, 0, last)]
            for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))
        ]
        return np.stack(four, axis=-1).view("<u4")[..., 0]

    def _look_up(
        self, lightness: UInt8[np.ndarray, "h w"], rows: Axis, columns: Axis
    ) -> UInt8[np.ndarray, "h w"]:
        corners = self.corners(rows, columns)
        across = 256 * (columns.low - columns.low[0])
        down = 256 * corners.shape[1] * (rows.low - rows.low[0])[:, None]
        right, lower = columns.share, rows.share[:, None]
        left, upper = 1 - right, 1 - lower
        equalised = np.empty_like(lightness)
        for begin in range(0, len(lightness), STRIP):
            part = slice(begin, begin + STRIP)
            index = down[part] + across + lightness[part]
            packed = np.take(corners, index, mode="clip")  # never clips: this mode is the fastest
            bytes_ = cv2.split(packed.view(np.uint8).reshape(*packed.shape, 4))
            top = bytes_[0] * left + bytes_[1] * right
            bottom = bytes_[2] * left + bytes_[3] * right
            equalised[part] = np.rint(top * upper[part] + bottom * lower[part])
        return equalised

    def fill(self, read: Read, first_y: int, stop_y: int, first_x: int, stop_x: int) -> None:
        """Make the tables of these tiles that are not known yet."""
        for row in range(first_y, stop_y):
            due = np.flatnonzero(~self.known[row, first_x:stop_x]) + first_x
            if len(due):
                part = slice(int(due[0]), int(due[-1]) + 1)
                histograms = self._histograms(read, row, part)
                self.levels[row, part] = _tables(histograms, self.tile, self.clahe.clip_limit)
                self.known[row, part] = True

    def _histograms(self, read: Read, row: int, part: slice) -> Int[np.ndarray, "tiles 256"]:
        """Count the lightness of tiles in a row of them."""
        tile_y, tile_x = self.tile
        rows = _mirror(np.arange(row * tile_y, (row + 1) * tile_y), self.height)
        columns = _mirror(np.arange(part.start * tile_x, part.stop * tile_x), self.width)
        x, y = int(columns.min()), int(rows.min())
        raw = read(x, y, int(columns.max()) + 1, int(rows.max()) + 1)
        lab = cv2.cvtColor(np.ascontiguousarray(raw), cv2.COLOR_RGB2LAB)
        lightness = cv2.extractChannel(lab, 0)
        if lightness.shape != (len(rows), len(columns)):  # else nothing is mirrored
            lightness = lightness.take(rows - y, 0).take(columns - x, 1)
        num = part.stop - part.start
        place = 256 * np.repeat(np.arange(num), tile_x) + lightness
        return np.bincount(place.ravel(), minlength=256 * num).reshape(num, 256)


def _tables(
    histograms: Int[np.ndarray, "tiles 256"], tile: tuple[int, int], clip_limit: float
) -> UInt8[np.ndarray, "tiles 256"]:
    """Clip histograms, spread over all bins what was cut off, and sum up (Zuiderveld 1994, as OpenCV rounds it)."""
    area = tile[0] * tile[1]
    if clip_limit > 0:
        limit = max(int(clip_limit * area / 256), 1)
        excess = np.maximum(histograms - limit, 0).sum(1)
        each, rest = np.divmod(excess, 256)
        step = np.maximum(256 // np.maximum(rest, 1), 1)[:, None]
        bins = np.arange(256)
        is_more = (bins % step == 0) & (bins // step < rest[:, None])
        histograms = np.minimum(histograms, limit) + each[:, None] + is_more
    scale = np.float32(255) / np.float32(area)
    sums = histograms.cumsum(1).astype(np.float32) * scale
    return np.clip(np.rint(sums), 0, 255).astype(np.uint8)


def _mirror(positions: Int[np.ndarray, "n"], side: int) -> Int[np.ndarray, "n"]:
    """Fold positions beyond the last pixel back without repeating it (reflect-101)."""
    period = max(2 * (side - 1), 1)
    folded = positions % period
    mirrored: np.ndarray = np.minimum(folded, period - folded)
    return mirrored


def _digest(content: np.ndarray, path: Path) -> bytes:
    """Digest what a file of this name holds: under another entry's name it is damaged."""
    import xxhash  # a bundle answers for images without it

    seed = xxhash.xxh3_64_intdigest(path.name.encode())
    digest: bytes = xxhash.xxh3_64_digest(np.ascontiguousarray(content).data, seed)
    return digest
