"""How many images/s the processors of a worker feed a GPU, by task, and where a cluster of 1, 8 and 24 GPUs runs dry.

python tests/benchmarks/feeding.py
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from bench import photo, seconds, table, write
from sizes import PEAK, REACHED, recipe_task, recipe_update

from assay.data.dataset import Column, Dataset
from assay.data.images.entry import MASK
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.inputs import augment
from assay.data.inputs.patches import Canvas, cell_corners
from assay.nn.scorer import grid_side
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows

TASKS = Path(__file__).parents[2] / "tasks"
IMAGES, TURNS = 4, 5
GPUS, PER_NODE, CORES = (1, 8, 24), 8, 16
"""Nodes of eight GPUs, with so many cores for each GPU."""


@dataclass
class Case:
    """A recipe on images of a size, and the operations that an image takes on the GPU."""

    task: str
    preset: str
    height: int
    width: int
    network: str
    operations: float
    """Forward and backward, by image: published multiply-accumulates times six, or computed (`sizes`)."""


CASES = (
    Case("fingerprint", "main", 5100, 5100, "EVA02-L, 8 patches", 0.0),
    Case("segment", "files", 1024, 1280, "U-Net, MobileNetV2", 6 * 6.0e9),
    Case("casting", "source", 300, 300, "ResNet-18", 6 * 3.3e9),
    Case("extrusion", "competition", 720, 1280, "ResNet-18", 6 * 1.2e9),
    Case("pretrain", "official", 1024, 1024, "ViT-S/14, 2 + 8 crops", 6 * 14.0e9),
)


def stored(case: Case, folder: Path) -> Dataset:
    """Store some images, each with a mask, of two classes, groups and domains."""
    store = Store(str(folder / "store"))
    contents: list[str] = []
    masks: list[str] = []
    for i in range(IMAGES):
        image = photo(max(case.height, case.width), i)[: case.height, : case.width]
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[: case.height // 8, : case.width // 8] = 1
        for key, pixels, keys in ((f"{i}", image, contents), (f"{i}{MASK}", mask, masks)):
            file = folder / f"{key}.png"
            cv2.imwrite(str(file), pixels)
            store.build(key, file)
            keys.append(key)
    halves = Column.of([str(i % 2) for i in range(IMAGES)])
    truth, rows = halves.codes, np.arange(IMAGES)
    held = Pixels(store, contents, {"label": masks})
    domains = {"printer_id": halves}
    return Dataset(("0", "1"), truth, ("defect",), halves, domains, {}, rows, held)


def cpu_s(step: Callable[[int], Any]) -> float:
    """Median seconds of processor time that a step takes for an image."""
    all_rows = {"": lambda: [step(row) for row in range(IMAGES)]}
    return seconds(all_rows, TURNS, time.process_time)[""] / IMAGES


def feed(case: Case, dataset: Dataset) -> tuple[float, float, float]:
    """Seconds to prepare an image, seconds to cut its patches, and bytes of it that are read."""
    task_class: Any = load_task(TaskSource.read(TASKS / f"{case.task}.py"))
    config: Any = task_class.presets()[case.preset]
    keys = iter(range(10_000))

    def prepare(row: int) -> Any:
        samples = BatchRows(np.array([row]), np.array([next(keys)]), True)
        return task_class.prepare(config, dataset, samples)

    prepared = cpu_s(prepare)
    if case.task != "fingerprint":
        return prepared, 0.0, 3.0 * case.height * case.width
    patches, model = config.patches, config.model
    grid = grid_side(model.trunk, patches.overview_px)
    rng = np.random.default_rng(0)
    cells = np.array([rng.choice(grid**2, model.k, replace=False) for _ in range(IMAGES)])
    drawn = [augment.draw_augment(config.augment, patches.image_px, rng) for _ in range(IMAGES)]

    def cut(row: int) -> np.ndarray:
        canvas = Canvas(dataset.pixels[row], patches, drawn[row])
        return canvas.patches(cell_corners(cells[row], grid, patches))

    # an image scaled to half is cut from the level of half its side
    level = 3.0 * (patches.overview_px**2 + 2 * model.k * patches.patch_px**2)
    return prepared, cpu_s(cut), level


def row_of(case: Case) -> list[str]:
    """Measure a case, and work out what a GPU needs."""
    with tempfile.TemporaryDirectory() as folder:
        prepared, cut, read = feed(case, stored(case, Path(folder)))
    operations = case.operations
    if not operations:
        operations = recipe_update(recipe_task("eva02_large_patch14_448"), 6, False).operations / 6
    takes, core = PEAK * REACHED / operations, 1 / (prepared + cut)
    fed = min(takes, CORES * core)
    reads = [f"{min(num, PER_NODE) * fed * read / 1e9:.1f}" for num in GPUS]
    return [
        f"{case.task}, {case.preset}, {case.height}x{case.width}",
        case.network,
        f"{1000 * prepared:.1f} ms",
        f"{1000 * cut:.1f} ms" if cut else "-",
        f"{core:.0f}",
        f"{CORES * core:.0f}",
        f"{takes:.0f}",
        f"{takes / core:.1f}",
        f"{fed / takes:.0%}",
        " / ".join(reads),
    ]


def main() -> None:
    """Measure each task."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    header = ["recipe", "network", "prepare", "cut", "images/s of a core", f"of {CORES}"]
    header += [
        "a GPU takes at most",
        "cores for that",
        "of that fed",
        "GB/s a node reads, 1 / 8 / 24 GPUs",
    ]
    write(
        __file__,
        f"Processor time of one thread for an image of the training set, warm (stored, equalised tiles made), median of {TURNS} turns. What a GPU takes at most is the network's "
        f"arithmetic at {REACHED:.0%} of an H100's peak, an assumption that small networks do not come near; {CORES} cores a GPU and {PER_NODE} GPUs a node are assumed too.",
        table(header, [row_of(case) for case in CASES]),
        "GB/s are of the rate that is fed, from the disk only where the images of a node's share exceed its memory (whole images; of fingerprint what is looked at). "
        "Nodes share nothing but the first copy of each image, so that 24 GPUs on three nodes are fed as 8 on one.",
    )


if __name__ == "__main__":
    main()
