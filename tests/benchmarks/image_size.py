"""Cost of a training step over the size of the images: 1.6, 6.5, 26 and 104 megapixels.

    python tests/benchmarks/image_size.py

One whole step of tasks/fingerprint.py: prepare (overviews), scores, draws, cutting, forward and
backward, from a warm store, with patches at the images' own resolution.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from bench import dataset, peak_mb, photo, seconds, table, write

from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.inputs.augment import AugmentConfig
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
SIDES = (1275, 2550, 5100, 10200)
BATCH = 4


def task_of(folder: str, side: int, clip: float, turn: bool) -> tuple[Any, Any]:
    """The task and its samples on images of one size."""
    task = load_task(TaskSource.read(SCRIPT))
    config: Any = task.presets()["demo"]
    model = replace(config.model, k=8, trunk="resnet18", warmup_k=8)
    sizes = replace(config.patches, image_px=side, overview_px=425, patch_px=224)
    sizes = replace(sizes, clahe_clip=clip, clahe_grid=max(1, side // 80))
    augment = AugmentConfig(hflip=0.5, vflip=0.5, rotation_deg=180.0, rotation_p=float(turn))
    config = replace(config, model=model, patches=sizes, augment=augment)
    contents = [f"{side}-{i}" for i in range(BATCH)]
    torch.manual_seed(0)
    images = dataset(Pixels(Store(folder), contents), ["a", "b", "a", "b"])
    keys = np.arange(BATCH, dtype=np.uint64)
    return task(config, images).train(), BatchRows(np.arange(BATCH), keys, train=True)


def step(task: Any, samples: Any) -> None:
    """Prepare, forward, backward."""
    batch = task.prepare(task.config, task.dataset, samples)
    task(batch, 0.9)["loss"].backward()


def measured(folder: str, side: int, clip: float, turn: bool) -> Iterator[None]:
    """One step for its peak memory."""
    task, samples = task_of(folder, side, clip, turn)
    yield
    step(task, samples)


def main() -> None:
    """Draw the images, then measure each setting over the sizes."""
    with tempfile.TemporaryDirectory() as folder:
        for side in SIDES:
            for i in range(BATCH):
                path = Path(folder) / "image.bmp"
                cv2.imwrite(str(path), photo(side, seed=i))
                Store(folder).build(f"{side}-{i}", path)
        rows = [
            *rows_of(folder, "flips", 0.0, turn=False),
            *rows_of(folder, "flips and rotation", 0.0, turn=True),
            *rows_of(folder, "flips, equalised in tiles of 80 px", 3.0, turn=False),
        ]
    header = ["augmentation", "part", *(f"{side}x{side}" for side in SIDES), "largest / smallest"]
    write(
        __file__,
        f"A training step of `tasks/fingerprint.py` on {BATCH} images, 4 draws of 8 patches of 224 px at full resolution, overviews of 425 px, small backbone, warm store. Goal: the largest at most 1.3 times the smallest.",
        table(header, rows),
    )


def rows_of(folder: str, name: str, clip: float, turn: bool) -> list[list[str]]:
    """Whole step, its preparation, and memory."""
    tasks = {str(side): task_of(folder, side, clip, turn) for side in SIDES}
    steps = {side: partial(step, *pair) for side, pair in tasks.items()}
    prepares = {
        side: partial(task.prepare, task.config, task.dataset, samples)
        for side, (task, samples) in tasks.items()
    }
    whole, prepare = seconds(steps, 5), seconds(prepares, 5)
    memory = {str(side): peak_mb(measured, folder, side, clip, turn) for side in SIDES}
    parts = {"whole step": (whole, 1000, "ms"), "of it overviews": (prepare, 1000, "ms")}
    parts["peak memory"] = (memory, 1, "MB")
    rows = []
    for part, (by_side, scale, unit) in parts.items():
        smallest, *_, largest = by_side.values()
        cells = [f"{scale * cost:.0f} {unit}" for cost in by_side.values()]
        rows.append([name, part, *cells, f"{largest / smallest:.2f}"])
    return rows


if __name__ == "__main__":
    main()
