"""Layouts of the pixel store for a 26-megapixel image: size, time to write, time to read patches.

python tests/benchmarks/formats.py
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench import photo, seconds, table, write

from assay.data.images.entry import open_entry, write_entry
from assay.data.images.pyramid import ImagePyramid

SIZE, TILE, PATCH, NUM_PATCHES = 5100, 512, 448, 8
GRID = -(-SIZE // TILE)
Tiles = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Layout:
    """How tiles are encoded, and in what kind of file they lie."""

    container: str
    codec: str

    def encode(self, tile: np.ndarray) -> bytes:
        """One tile's bytes."""
        if self.codec == "jpeg":
            return bytes(cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
        return (
            tile.tobytes()
            if self.codec == "raw"
            else pa.compress(tile.tobytes(), self.codec, asbytes=True)
        )

    def decode(self, content: bytes | memoryview) -> np.ndarray:
        """One tile's pixels."""
        if self.codec == "jpeg":
            tile = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            assert tile is not None
            return tile
        if self.codec != "raw":
            content = pa.decompress(content, TILE * TILE * 3, self.codec, asbytes=True)
        return np.frombuffer(content, np.uint8).reshape(TILE, TILE, 3)


def tiles_of(pixels: np.ndarray) -> list[np.ndarray]:
    """Square tiles, row by row, the last ones padded with zeros."""
    padded = np.zeros((GRID * TILE, GRID * TILE, 3), np.uint8)
    padded[:SIZE, :SIZE] = pixels
    return [
        padded[y : y + TILE, x : x + TILE]
        for y in range(0, GRID * TILE, TILE)
        for x in range(0, GRID * TILE, TILE)
    ]


def save(path: Path, layout: Layout, pixels: np.ndarray) -> None:
    """Write one image."""
    if layout.container == "rows":
        write_entry(path, ImagePyramid.of(pixels))
        return
    encoded = [layout.encode(np.ascontiguousarray(tile)) for tile in tiles_of(pixels)]
    if layout.container == "file":
        sizes = np.array([len(e) for e in encoded], np.int64)
        path.write_bytes(sizes.tobytes() + b"".join(encoded))
        return
    rows = pa.table({"tile": pa.array(encoded, pa.large_binary())})
    if layout.container == "parquet":
        pq.write_table(
            rows,
            path,
            row_group_size=1,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )
        return
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as sink:
        sink.write_table(rows, max_chunksize=1)


def read(path: Path, layout: Layout, corners: np.ndarray) -> list[np.ndarray]:
    """Patches at corners (x, y)."""
    if layout.container == "rows":
        entry = open_entry(path)
        return [entry.cut((x, y, x + PATCH, y + PATCH)) for x, y in corners.tolist()]
    fetch = opened(path, layout)
    return [assemble(fetch, x, y) for x, y in corners.tolist()]


def opened(path: Path, layout: Layout) -> Tiles:
    """Access to the tiles of one file."""
    if layout.container == "parquet":
        parquet = pq.ParquetFile(path)
        return lambda i: layout.decode(parquet.read_row_group(i)["tile"][0].as_py())
    if layout.container == "ipc":
        batches = pa.ipc.open_file(pa.memory_map(str(path)))
        return lambda i: layout.decode(batches.get_batch(i)["tile"][0].as_buffer())
    content = np.memmap(path, np.uint8, "r")
    sizes = content[: 8 * GRID * GRID].view(np.int64)
    ends = 8 * GRID * GRID + np.cumsum(sizes)
    return lambda i: layout.decode(content[ends[i] - sizes[i] : ends[i]].data)


def assemble(fetch: Tiles, x: int, y: int) -> np.ndarray:
    """A patch from the tiles it touches."""
    patch = np.empty((PATCH, PATCH, 3), np.uint8)
    for row in range(y // TILE, (y + PATCH - 1) // TILE + 1):
        for column in range(x // TILE, (x + PATCH - 1) // TILE + 1):
            top, left = max(y, row * TILE), max(x, column * TILE)
            bottom, right = min(y + PATCH, (row + 1) * TILE), min(x + PATCH, (column + 1) * TILE)
            tile = fetch(row * GRID + column)
            patch[top - y : bottom - y, left - x : right - x] = tile[
                top - row * TILE : bottom - row * TILE, left - column * TILE : right - column * TILE
            ]
    return patch


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


LAYOUTS = {
    "raw rows, memory-mapped (the store's)": Layout("rows", "raw"),
    "raw tiles": Layout("file", "raw"),
    "lz4 tiles": Layout("file", "lz4_raw"),
    "zstd tiles": Layout("file", "zstd"),
    "JPEG tiles, quality 95 (lossy)": Layout("file", "jpeg"),
    "Parquet, zstd tiles": Layout("parquet", "zstd"),
    "Arrow IPC, raw tiles": Layout("ipc", "raw"),
    "Arrow IPC, zstd tiles": Layout("ipc", "zstd"),
}


def main() -> None:
    """Write the image in each layout, then read warm and cold in turns."""
    pixels = photo(SIZE)
    rng = np.random.default_rng(1)
    corners = rng.integers(0, SIZE - PATCH, (NUM_PATCHES, 2))
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[str, Path] = {}
        taken: dict[str, float] = {}
        for name, layout in LAYOUTS.items():
            paths[name] = Path(folder) / str(len(paths))
            began = time.perf_counter()
            save(paths[name], layout, pixels)
            taken[name] = time.perf_counter() - began
        warm = seconds({n: partial(read, paths[n], LAYOUTS[n], corners) for n in LAYOUTS}, 7)
        cold = {n: cold_seconds(paths[n], LAYOUTS[n], corners) for n in LAYOUTS}
        rows = []
        for name, layout in LAYOUTS.items():
            found = read(paths[name], layout, corners)
            wrong = max(
                int(cv2.absdiff(patch, pixels[y : y + PATCH, x : x + PATCH]).max())
                for patch, (x, y) in zip(found, corners.tolist(), strict=True)
            )
            share = paths[name].stat().st_size / pixels.nbytes
            cells = [
                name,
                f"{share:.2f}",
                f"{taken[name]:.2f} s",
                f"{1000 * warm[name]:.1f} ms",
                f"{1000 * cold[name]:.0f} ms",
                str(wrong),
            ]
            rows.append(cells)
    write(
        __file__,
        f"One image of {SIZE}x{SIZE} (smooth shapes and grain); {NUM_PATCHES} patches of {PATCH} at random places; tiles of {TILE}; cold: after the file was dropped from the page cache, on the disk of this machine.",
        table(
            [
                "layout",
                "bytes per raw byte",
                "write",
                "patches, warm",
                "patches, cold",
                "largest error",
            ],
            rows,
        ),
        "The store's size includes its pyramid (a third), and its time to write the making of it; the other layouts would need one besides. Raw rows are read fastest, warm by far, and are what the store has; on object storage, where bytes cost, an entry is fetched once per node and mapped from the node's own copy then.",
    )


def cold_seconds(path: Path, layout: Layout, corners: np.ndarray) -> float:
    """Median of five reads from the disk."""
    taken = []
    for _ in range(5):
        forget(path)
        began = time.perf_counter()
        read(path, layout, corners)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


if __name__ == "__main__":
    main()
