"""The price of checksums: entries of the store written and read with and without them.

python tests/benchmarks/checksums.py
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
from bench import photo, seconds, table, write
from image_size import BATCH, step, task_of

from assay.data.images import stored_level
from assay.data.images.store import Store
from assay.data.images.stored_level import TILE, StoredLevel
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners

SIDE, GRID = 5100, 52
CORNERS = cell_corners(
    np.sort(np.random.default_rng(2).choice(GRID * GRID, 8, replace=False)),
    GRID,
    PatchConfig(image_px=SIDE, overview_px=850, patch_px=448, clahe_clip=0.0),
)


@contextmanager
def unchecked() -> Iterator[None]:
    """No digest of a tile is computed and none compared."""
    with (
        patch.object(StoredLevel, "_check", lambda *_: None),
        patch.object(stored_level, "_tile", lambda *_: b""),
    ):
        yield


def without(work: Callable[[], object]) -> Callable[[], object]:
    """The same work without checksums."""

    def bare() -> object:
        with unchecked():
            return work()

    return bare


def cut(store: Store) -> object:
    """Eight patches of an entry that was never looked at."""
    config = PatchConfig(image_px=SIDE, overview_px=850, patch_px=448, clahe_clip=0.0)
    return Canvas(store.open(f"{SIDE}-0"), config).patches(CORNERS)


def build(folder: str) -> None:
    """Decode and write an entry anew."""
    store = Store(folder)
    store.path("again").unlink(missing_ok=True)
    store.build("again", Path(folder) / "image.jpg")


def train(folder: str, forget: bool) -> Callable[[], None]:
    """A training step, on images that this process looks at for the first time, or again."""
    task, samples = task_of(folder, SIDE, 0.0, turn=False)

    def once() -> None:
        if forget:
            task.dataset.pixels._open.clear()
            task.dataset.pixels._checked.clear()
        step(task, samples)

    return once


def main() -> None:
    """Measure by turns."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(BATCH):
            cv2.imwrite(f"{folder}/image.jpg", photo(SIDE, seed=i)[..., ::-1])
            Store(folder).build(f"{SIDE}-{i}", Path(folder) / "image.jpg")
        works: dict[str, Callable[[], object]] = {
            "a JPEG decoded into the store": partial(build, folder),
            "eight patches of 448 px, first look": partial(cut, Store(folder)),
            f"training step of {BATCH} images, first look": train(folder, forget=True),
            f"training step of {BATCH} images, later": train(folder, forget=False),
        }
        rows = []
        for name, work in works.items():
            taken = seconds({"with": work, "without": without(work)}, 7)
            share = 100 * (taken["with"] / taken["without"] - 1)
            cells = [f"{1000 * taken[way]:.1f} ms" for way in ("with", "without")]
            rows.append([name, *cells, f"{share:+.1f} %"])
    write(
        __file__,
        f"Entries of {SIDE}x{SIDE} pixels, a checksum (XXH3, 64 bits) to each tile of {TILE}x{TILE} pixels, compared when a process first looks at the tile. The training step is that of `image_size.py`. Medians of 7 turns. Goal: at most 3 % of a step.",
        table(["work", "with checksums", "without", "price"], rows),
    )


if __name__ == "__main__":
    main()
