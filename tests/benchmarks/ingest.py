"""Patches of JPEG files, an epoch at a time: through the store, cold and warm, against torch's DataLoader.

python tests/benchmarks/ingest.py
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import cv2
import numpy as np
import pyarrow as pa
import torch
from bench import imread, local_ray, photo, table, write
from torch.utils.data import DataLoader, Dataset

from assay.cluster.heap import IMAGE_BYTES, keep_freed_memory
from assay.data.hashes import content_hashes
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.inputs.patches import Canvas, PatchConfig
from assay.data.manifest import Manifest
from assay.experiment.fill import fill

SIZE, NUM_IMAGES, PATCH, NUM_PATCHES, TURNS = 5100, 60, 448, 8, 4
SIZES = PatchConfig(image_px=SIZE, overview_px=850, patch_px=PATCH, clahe_clip=0.0)
CORNERS = np.random.default_rng(1).integers(0, SIZE - PATCH, (NUM_IMAGES, NUM_PATCHES, 2))


class Files(Dataset[torch.Tensor]):
    """Patches of an image, by decoding all of it."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        pixels = imread(self.paths[i], cv2.IMREAD_COLOR_RGB)
        cut = [pixels[y : y + PATCH, x : x + PATCH] for x, y in CORNERS[i].tolist()]
        return torch.from_numpy(np.stack(cut))


def drawn(folder: Path) -> list[Path]:
    """JPEG files of quality 95, no two alike."""
    paths, pictures = [], [photo(SIZE, seed) for seed in range(3)]
    for i in range(NUM_IMAGES):
        paths.append(folder / f"{i}.jpg")
        moved = np.roll(pictures[i % len(pictures)], 200 * i, axis=0)
        cv2.imwrite(str(paths[-1]), moved, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return paths


def manifest_of(paths: list[Path]) -> Manifest:
    """The columns that filling a store needs."""
    contents = content_hashes(paths, paths[0].with_name("hashes.sqlite"))
    return Manifest(pa.table({"content": contents, "image": [str(path) for path in paths]}))


def from_store(pixels: Pixels) -> Iterator[torch.Tensor]:
    """The same patches, cut in this process as a training step does."""
    for i in range(NUM_IMAGES):
        yield torch.from_numpy(Canvas(pixels[i], SIZES).patches(CORNERS[i]))


def cold(paths: list[Path], place: Path) -> tuple[float, Pixels, list[torch.Tensor]]:
    """Fill a new store and cut every patch from it; seconds, the store's pixels, the patches."""
    store, manifest = Store(str(place)), manifest_of(paths)
    began = time.perf_counter()
    fill(manifest, store, "stop", parallel=True)
    pixels = Pixels(store, manifest.column("content"))
    found = list(from_store(pixels))
    return time.perf_counter() - began, pixels, found


def cpu_seconds(path: Path, folder: Path) -> dict[str, float]:
    """Processor time of one image on one thread: decoded, and brought into a store."""
    cv2.setNumThreads(1)
    keep_freed_memory(IMAGE_BYTES)
    steps: dict[str, Callable[[], Any]] = {
        "decode": lambda: cv2.imread(str(path), cv2.IMREAD_COLOR_RGB),
        "build": lambda: Store(str(folder / uuid4().hex)).build("0" * 32, path),
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(5):
        for name, step in steps.items():
            began = time.process_time()
            step()
            taken[name].append(time.process_time() - began)
    return {name: min(each) for name, each in taken.items()}


def main() -> None:
    """Measure in turns."""
    torch.set_num_threads(1)
    local_ray()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = drawn(folder)
        fill(manifest_of(paths).take(range(4)), Store(name + "/first"), "stop", parallel=True)
        loader = DataLoader(
            Files(paths), batch_size=None, num_workers=2, persistent_workers=True, prefetch_factor=2
        )
        expected = [patches.clone() for patches in loader]  # starts the workers
        taken: dict[str, list[float]] = {
            name: [] for name in ("DataLoader", "cold", "memory", "warm")
        }
        for _ in range(TURNS):
            shutil.rmtree(folder / "store", ignore_errors=True)
            began = time.perf_counter()
            for _ in loader:
                pass
            taken["DataLoader"].append(time.perf_counter() - began)
            with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
                seconds, _, _ = cold(paths, Path(memory))
                taken["memory"].append(seconds)
            seconds, pixels, found = cold(paths, folder / "store")
            taken["cold"].append(seconds)
            began = time.perf_counter()
            for _ in from_store(pixels):
                pass
            taken["warm"].append(time.perf_counter() - began)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        alone = cpu_seconds(paths[0], folder)
    rate = {way: NUM_IMAGES / min(seconds) for way, seconds in taken.items()}
    names = {
        "DataLoader": "torch DataLoader, 2 workers: decode and slice, every epoch",
        "cold": "Assay, first epoch: fill the store (Ray's tasks, 2 CPUs), then cut",
        "memory": "the same, the store in /dev/shm",
        "warm": "Assay, later epochs: cut from the store",
    }
    rows = [[names[w], f"{r:.1f}", f"{r / rate['DataLoader']:.2f}x"] for w, r in rate.items()]
    write(
        __file__,
        f"{NUM_IMAGES} JPEG files of {SIZE}x{SIZE} (quality 95, in the page cache), {NUM_PATCHES} patches of {PATCH} of each, the same pixels every way; the better of {TURNS} turns, Ray and the DataLoader's workers running before. Goal: .9 times the DataLoader cold, 10 times warm.",
        table(["way", "images/s", "of the DataLoader's"], rows),
        f"Cold includes what the store adds to decoding: pyramid, statistics, signature and the write of 4 bytes a pixel. One image takes {alone['decode']:.2f} s of processor time to decode and {alone['build']:.2f} s to bring into the store, "
        "by a process that keeps the memory of one image for the next, as those that fill the store do. Most of what storing adds is the write, by a profile of it.",
    )


if __name__ == "__main__":
    main()
