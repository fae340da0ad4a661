"""Equalised pixels of a stored image, kept tile by tile beside it once they were looked at.

    <entry>.clahe-<clip>-<grid>-<level>-<white>.tiles
        8 bytes a tile   its checksum, by rows; 0: not kept yet
        tiles            by rows, each SIDE x SIDE x 3 bytes, 0 beyond the image's edge

A patch that was cut before, or lies in tiles that others looked into, costs a copy: what takes the
time of equalising is OpenCV's way to CIELAB and back, not the look-up. The file has holes until its
tiles are made. Processes may fill one file at once, as all write the same bytes; a tile that was
torn, or damaged, is not its checksum's and is made anew.
"""

import math
import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np

from assay.data.images.clahe import Read, Tables
from assay.shapes import Bool, UInt8, UInt64

SIDE = 128
"""Of a tile, in pixels: patches of 448 px touch 16 to 25, at most twice their own pixels."""

BYTES = SIDE * SIDE * 3

SPARE_SHARE = 0.1
"""Part of a disk that is left free: what is kept only saves time."""


class KeptTiles:
    """The equalised pixels of one level.

    Args:
        path: of the file; made when the first tiles are.
        tables: what the level is equalised by.
    """

    def __init__(self, path: Path, tables: Tables) -> None:
        self.path, self.tables = path, tables
        self.grid = math.ceil(tables.height / SIDE), math.ceil(tables.width / SIDE)

    def region(
        self, read: Read, x0: int, y0: int, x1: int, y1: int
    ) -> UInt8[np.ndarray, "rows columns 3"]:
        """Return pixels [y0, y1) x [x0, x1) of the equalised level.

        Args:
            read: gives raw pixels of the level.
            x0: first column, inside the level.
            y0: first row, inside the level.
            x1: column after the last, at most the width.
            y1: row after the last, at most the height.
        """
        rows, columns = (slice(a // SIDE, (b - 1) // SIDE + 1) for a, b in ((y0, y1), (x0, x1)))
        try:
            tiles = self._tiles(read, rows, columns)
        except OSError:  # of a disk that is full, or may only be read
            return self.tables.region(read, x0, y0, x1, y1)
        top, left = y0 - rows.start * SIDE, x0 - columns.start * SIDE
        return _joined(tiles)[top : top + y1 - y0, left : left + x1 - x0]

    def _tiles(
        self, read: Read, rows: slice, columns: slice
    ) -> UInt8[np.ndarray, "rows columns side side 3"]:
        """Read tiles; make, and keep, those that are not there.

        All are compared with their checksums each time (a tenth of a millisecond a patch): a file may be
        deleted to make room and begun again by others, so that what was there once says nothing.
        """
        size = math.prod(self.grid) * (8 + BYTES)
        if not self.path.exists() or self.path.stat().st_size != size:
            self._begin(size)
        with closing(_File(self.path, self.grid)) as file:
            tiles = file.tiles(rows, columns)
            due = file.checksums(rows, columns) != file.digests(tiles)
            if due.any():
                self._refuse_full_disk(int(due.sum()) * BYTES)
                self._make(read, rows, columns, due, tiles)
                file.keep(rows, columns, due, tiles)
        return tiles

    def _begin(self, size: int) -> None:
        """Make the file, all holes, or bring one that was cut short back to its size."""
        with self.path.open("ab") as file:  # another process may have begun it
            file.truncate(size)

    def _refuse_full_disk(self, need: int) -> None:
        usage = shutil.disk_usage(self.path.parent)
        if usage.free - need < SPARE_SHARE * usage.total:
            raise OSError(f"{usage.free} bytes are free, and that is to be left")

    def _make(
        self,
        read: Read,
        rows: slice,
        columns: slice,
        due: Bool[np.ndarray, "rows columns"],
        tiles: UInt8[np.ndarray, "rows columns side side 3"],
    ) -> None:
        """Equalise the box around the tiles that are due, and put them in place."""
        down, across = (np.flatnonzero(due.any(axis)) for axis in (1, 0))
        part = np.s_[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
        y, x = (rows.start + down[0]) * SIDE, (columns.start + across[0]) * SIDE
        stop_y, stop_x = (rows.start + down[-1] + 1) * SIDE, (columns.start + across[-1] + 1) * SIDE
        box = int(x), int(y), min(stop_x, self.tables.width), min(stop_y, self.tables.height)
        pixels = self.tables.region(read, *map(int, box))
        padded = np.zeros((stop_y - y, stop_x - x, 3), np.uint8)
        padded[: pixels.shape[0], : pixels.shape[1]] = pixels
        split = padded.reshape(len(tiles[part]), SIDE, -1, SIDE, 3).swapaxes(1, 2)
        tiles[part][due[part]] = split[due[part]]


class _File:
    """The open file of tiles; whatever it cannot do is an OSError."""

    def __init__(self, path: Path, grid: tuple[int, ...]) -> None:
        import xxhash  # a bundle answers for images without it

        self.grid, self.begin = grid, 8 * math.prod(grid)
        self.number = os.open(path, os.O_RDWR)
        self.seed = xxhash.xxh3_64_intdigest(path.name.encode())

    def close(self) -> None:
        os.close(self.number)

    def checksums(self, rows: slice, columns: slice) -> UInt64[np.ndarray, "rows columns"]:
        """Read the checksums of tiles."""
        content = os.pread(self.number, self.begin, 0)
        if len(content) < self.begin:
            raise OSError("the file of tiles is cut short")
        return np.frombuffer(content, np.uint64).reshape(self.grid)[rows, columns]

    def tiles(self, rows: slice, columns: slice) -> UInt8[np.ndarray, "rows columns side side 3"]:
        """Read tiles, a row of them at once."""
        num = columns.stop - columns.start
        tiles = np.empty((rows.stop - rows.start, num, SIDE, SIDE, 3), np.uint8)
        for line, row in zip(tiles, range(rows.start, rows.stop), strict=True):
            if os.preadv(self.number, [line.data], self._place(row, columns.start)) < line.nbytes:
                raise OSError("the file of tiles is cut short")
        return tiles

    def keep(
        self,
        rows: slice,
        columns: slice,
        due: Bool[np.ndarray, "rows columns"],
        tiles: UInt8[np.ndarray, "rows columns side side 3"],
    ) -> None:
        """Write the tiles that were due, each before its checksum."""
        for i, j in np.argwhere(due).tolist():
            row, column = rows.start + i, columns.start + j
            os.pwrite(self.number, tiles[i, j].data, self._place(row, column))
            place = 8 * (row * self.grid[1] + column)
            os.pwrite(self.number, self.digests(tiles[i : i + 1, j : j + 1]).tobytes(), place)

    def digests(
        self, tiles: UInt8[np.ndarray, "rows columns side side 3"]
    ) -> UInt64[np.ndarray, "rows columns"]:
        """Digest tiles of a file of this name: under another entry's name they are damaged."""
        import xxhash  # a bundle answers for images without it

        digests = [xxhash.xxh3_64_intdigest(t.data, self.seed) or 1 for line in tiles for t in line]
        return np.array(digests, np.uint64).reshape(tiles.shape[:2])

    def _place(self, row: int, column: int) -> int:
        return self.begin + (row * self.grid[1] + column) * BYTES


def _joined(
    tiles: UInt8[np.ndarray, "rows columns side side 3"],
) -> UInt8[np.ndarray, "height width 3"]:
    return tiles.swapaxes(1, 2).reshape(len(tiles) * SIDE, -1, 3)
