"""Pixels of one level in a file of the store, whose tiles are compared with their checksums before they are first shown."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import StoreError
from assay.shapes import Shaped, UInt64

TILE = 256
"""Side of what has a checksum of its own (pixels)."""


class StoredLevel:
    """Pixels of one level: like an array, but a tile is checked before it is first shown.

    Args:
        path: the entry, for what an error says.
        pixels: memory-mapped.
        checksums: of the tiles, by rows.
    """

    def __init__(
        self,
        path: Path,
        pixels: Shaped[np.ndarray, "h w c"],
        checksums: UInt64[np.ndarray, "rows columns"],
    ) -> None:
        self.path, self.mapped, self.checksums = path, pixels, checksums
        self.checked = np.zeros(checksums.shape, bool)
        self.shape, self.dtype, self.nbytes = pixels.shape, pixels.dtype, pixels.nbytes

    def __getitem__(self, box: tuple[slice, slice]) -> Shaped[np.ndarray, "h w c"]:
        """Return rows and columns, each without a step.

        Raises:
            StoreError: they are not what was written.
        """
        pixels = self.mapped[box]
        if pixels.size:
            rows, columns = (
                slice(start // TILE, (stop - 1) // TILE + 1)
                for start, stop, _ in (
                    side.indices(length) for side, length in zip(box, self.shape, strict=False)
                )
            )
            self._check(rows, columns)
        return pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all of it."""
        self._check(slice(None), slice(None))
        return np.array(self.mapped, dtype=dtype, copy=copy)

    def _check(self, rows: slice, columns: slice) -> None:
        """Compare those tiles with their checksums that were not compared yet."""
        due = ~self.checked[rows, columns]
        if not due.any():
            return
        first = np.array([rows.start or 0, columns.start or 0])
        for row, column in (np.argwhere(due) + first).tolist():
            if digest_of(_tile(self.mapped, row, column)) != self.checksums[row, column]:
                raise StoreError(
                    f"The stored image {self.path} is damaged: pixels from row {row * TILE} and column {column * TILE} "
                    "are not what was written; delete it and run again, and check the disk."
                )
            self.checked[row, column] = True


def checksums(level: Shaped[np.ndarray, "h w c"]) -> UInt64[np.ndarray, "rows columns"]:
    """Return the checksum of each tile."""
    grid = math.ceil(level.shape[0] / TILE), math.ceil(level.shape[1] / TILE)
    digests = [digest_of(_tile(level, *place)) for place in np.ndindex(*grid)]
    return np.array(digests, np.uint64).reshape(grid)


def _tile(level: np.ndarray, row: int, column: int) -> memoryview:
    rows, columns = (slice(i * TILE, (i + 1) * TILE) for i in (row, column))
    return np.ascontiguousarray(level[rows, columns]).data


def digest_of(content: bytes | memoryview) -> int:
    """Return 64 bits of XXH3."""
    import xxhash  # a bundle answers for images without it

    return xxhash.xxh3_64_intdigest(content)
