"""Where the time of an update goes, by the named parts of metrics.jsonl.

python tests/benchmarks/step.py
"""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from bench import dataset, photo, table, write

from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.runs.telemetry import Telemetry
from assay.train.batches import batches
from assay.train.loop import Loop
from assay.train.source import TaskSource, load_task

sys.path.append(str(Path(__file__).parents[1] / "gpu"))
from trial import BATCH, PARTS, Trained, Trial

TASKS = Path(__file__).parents[2] / "tasks"
SIZE, IMAGES = 2550, 8
SMALL = ("casting", "extrusion", "pretrain")


def timed(warmup: float, clip: float, folder: Path, pixels: Pixels) -> list[str]:
    """Train for some updates and read what metrics.jsonl says of them."""
    task_class = load_task(TaskSource.read(TASKS / "fingerprint.py"))
    parts: Any = task_class.presets()["parts"]
    config = replace(
        parts,
        patches=replace(parts.patches, clahe_clip=clip),
        model=replace(
            parts.model,
            weights="none",
            scorer_weights="none",
            trunk="small",
            backbone="texture_small",
            norm="group",
            warmup=warmup,
            warmup_k=8,
            num_noise=2,
        ),
        train=replace(parts.train, epochs=3, batch_size=2, eval_batch_size=2, val_every=3),
    )
    data = dataset(pixels, [str(i % 2) for i in range(IMAGES)])
    task = task_class(config, data)
    rows = {"train": np.arange(IMAGES), "val": np.arange(2)}
    folder.mkdir()
    lines: list[dict[str, float]] = []
    telemetry = Telemetry(folder)
    log = telemetry.log

    def note(kind: str, **fields: float) -> None:
        log(kind, **fields)
        if kind == "step":
            lines.append(fields)

    telemetry.log = note  # type: ignore[method-assign]
    stream = lambda steps, train: batches(task_class, config, data, steps, train)  # noqa: E731
    Loop(task, task, rows, stream, folder, telemetry).fit()
    telemetry.close()
    return figures(Trained(task, lines))


def figures(trained: Trained) -> list[str]:
    """Say what an update takes, its parts and what they explain; medians of all but the first, which make tables and threads."""
    warm, explained = trained.lines[2:], trained.shares()[-1]
    names = ("step", *PARTS)
    spent = [median(line.get(f"{name}_s", 0.0) for line in warm) for name in names]
    return [f"{seconds:.3f} s" for seconds in spent] + [f"{explained:.1%}"]


def small_rows() -> list[list[str]]:
    """Train the smallest settings of tasks whose updates are short."""
    with tempfile.TemporaryDirectory() as folder:
        trials = [Trial(name, Path(folder), 12) for name in SMALL]
        return [
            [name, *figures(trial.train(torch.device("cpu"), "fp32"))]
            for name, trial in zip(SMALL, trials, strict=True)
        ]


def main() -> None:
    """Measure with known cells and with chosen ones, plain and equalised."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contents = [f"{i:032x}" for i in range(IMAGES)]
        store = Store(str(folder / "store"))
        for i, content in enumerate(contents):
            cv2.imwrite(str(folder / "image.png"), photo(SIZE, i)[..., ::-1])
            store.build(content, folder / "image.png")
        rows = []
        for cells, warmup in (("random, begun ahead", 1.0), ("chosen by the scorer", 0.0)):
            for clip in (0.0, 3.0):
                run = folder / f"{warmup}-{clip}"
                equal = "yes" if clip else "no"
                rows.append([cells, equal, *timed(warmup, clip, run, Pixels(store, contents))])
    write(
        __file__,
        f"Updates of 2 images of {SIZE}x{SIZE}, preset parts with a small backbone, patches of 448 px, in this process on {torch.get_num_threads()} threads; medians.",
        table(["cells", "equalised", "update", *PARTS, "explained"], rows),
        f"The smallest settings (smoke) of other tasks, {BATCH} images; load average {os.getloadavg()[1]:.0f}, so that shares count and not times.",
        table(["task", "update", *PARTS, "explained"], small_rows()),
        "The parts are those of metrics.jsonl; wait holds the preparation of the next batch, since without Ray it is made in this process, and update all that is done for each besides.",
    )


if __name__ == "__main__":
    main()
