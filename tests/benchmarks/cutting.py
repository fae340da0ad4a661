"""What equalisation costs a patch, and what the time of a training step goes to.

python tests/benchmarks/cutting.py
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from bench import photo, seconds, table, write

from assay.data.images.store import Store
from assay.data.inputs.augment import IDENTITY, Augment, draw_augment
from assay.data.inputs.normalise import normalise
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners
from assay.train.cutting import Cut, PatchCutter
from assay.train.recipes import reference_recipes

SIZE, GRID, CLIP, TILES, IMAGES = 5100, 52, 3.0, 64, 8
CELLS = np.sort(np.random.default_rng(2).choice(GRID * GRID, 8, replace=False))
CPU = torch.device("cpu")


def before(canvas: Canvas, corners: np.ndarray) -> np.ndarray:
    """Cut as until November 2026: each patch with the tiles around it, equalised by OpenCV anew."""
    side, clahe = canvas.config.patch_px, canvas.config.clahe
    assert clahe is not None
    patches = []
    for x, y in corners.tolist():
        grid = canvas.entry.size[0] // clahe.grid
        low = np.clip(np.array([x, y]) // grid - 1, 0, clahe.grid) * grid
        high = np.clip((np.array([x, y]) + side) // grid + 2, 0, clahe.grid) * grid
        num = ((high - low) // grid).tolist()
        raw = np.ascontiguousarray(canvas.entry.levels[0][low[1] : high[1], low[0] : high[0]])
        lab = cv2.cvtColor(raw, cv2.COLOR_RGB2LAB)
        equal = cv2.createCLAHE(clahe.clip_limit, num).apply(cv2.extractChannel(lab, 0))
        at = slice(y - low[1], y - low[1] + side), slice(x - low[0], x - low[0] + side)
        part = cv2.insertChannel(equal[at], np.ascontiguousarray(lab[at]), 0)
        patches.append(cv2.cvtColor(part, cv2.COLOR_LAB2RGB))
    return np.stack(patches)


def cut(store: Store, config: PatchConfig, change: Augment = IDENTITY) -> Callable[[], np.ndarray]:
    """Eight patches of one warm image."""
    canvas, corners = Canvas(store.open("0"), config, change), cell_corners(CELLS, GRID, config)
    return lambda: canvas.patches(corners)


def at_first(step: Callable[[], np.ndarray], folder: str) -> Callable[[], np.ndarray]:
    """The same where no tile was looked at before."""

    def forgetful() -> np.ndarray:
        for kept in Path(folder).glob("*/*.tiles"):
            kept.unlink()
        return step()

    return forgetful


def looked_up(canvas: Canvas, corners: np.ndarray) -> np.ndarray:
    """Cut by the tables of the image, kept pixels left aside."""
    side, clahe = canvas.config.patch_px, canvas.config.clahe
    assert clahe is not None
    tables, read = canvas.entry.tables(0, clahe), canvas.entry.reader(0)
    return np.stack([tables.region(read, x, y, x + side, y + side) for x, y in corners.tolist()])


def shown(step: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """The same, normalised."""
    mean, std = np.full(3, 0.5), np.full(3, 0.2)
    return lambda: normalise(step(), mean, std)


def batch(store: Store, config: PatchConfig) -> Callable[[], torch.Tensor]:
    """Eight patches of each of several images, by threads."""
    corners = np.stack([cell_corners(CELLS, GRID, config)] * IMAGES)
    canvases = [Canvas(store.open(str(i)), config) for i in range(IMAGES)]
    asked = Cut(np.arange(IMAGES), canvases, corners, np.ones(corners.shape[:2], bool))
    cutter = PatchCutter()
    return lambda: cutter.finish(cutter.begin(asked, CPU), CPU)


def in_turn(store: Store, config: PatchConfig) -> Callable[[], np.ndarray]:
    """The same by one thread."""
    corners = cell_corners(CELLS, GRID, config)
    canvases = [Canvas(store.open(str(i)), config) for i in range(IMAGES)]
    return lambda: np.stack([canvas.patches(corners) for canvas in canvases])


def main() -> None:
    """Measure by turns."""
    rng = np.random.default_rng(0)
    turned = draw_augment(reference_recipes()["main"].augment, 2550, rng)
    plain = PatchConfig(image_px=SIZE, overview_px=850, clahe_clip=0.0)
    equal = PatchConfig(image_px=SIZE, overview_px=850, clahe_clip=CLIP, clahe_grid=TILES)
    small, small_equal = (
        PatchConfig(image_px=2550, clahe_clip=clip, clahe_grid=TILES) for clip in (0.0, CLIP)
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for i in range(IMAGES):
            file = Path(folder) / f"{i}.png"
            cv2.imwrite(str(file), photo(SIZE, i)[..., ::-1])
            store.build(str(i), file)
        canvas, corners = Canvas(store.open("0"), equal), cell_corners(CELLS, GRID, equal)
        ways: dict[str, Callable[[], object]] = {
            "plain": cut(store, plain),
            "equalised": cut(store, equal),
            "equalised, as until November 2026": lambda: before(canvas, corners),
            "equalised, by tables alone": lambda: looked_up(canvas, corners),
            "plain, normalised": shown(cut(store, plain)),
            "equalised, normalised": shown(cut(store, equal)),
            "scaled to 2550": cut(store, small),
            "scaled, equalised": cut(store, small_equal),
            "main recipe's augmentation": cut(store, small, turned),
            "main recipe's, equalised": cut(store, small_equal, turned),
            f"{IMAGES} images, equalised, one thread": in_turn(store, equal),
            f"{IMAGES} images, equalised, {torch.get_num_threads()} threads": batch(store, equal),
        }
        cold = {
            "equalised, at first": at_first(cut(store, equal), folder),
            "tables of a level": lambda: tables(store),
        }
        first = seconds(cold, 3)
        taken = seconds(ways, 7)
    rows = [[name, f"{1000 * value:.1f} ms"] for name, value in (taken | first).items()]
    write(
        __file__,
        f"Eight patches of 448 px of a warm image of {SIZE}x{SIZE}, CLAHE of {TILES}x{TILES} tiles; medians of 7 turns. Goal: equalised at most 3 times plain.",
        table(["what", "time"], rows),
        "Tables are made once per image and level, equalised pixels when they are first looked at (in tiles of 128 px); both are kept beside the stored image. "
        "'As until November 2026' equalises whole tiles around each patch anew.",
    )


def tables(store: Store) -> None:
    """Make the tables of the largest level of an image anew."""
    for kept in Path(store.address).glob("*/*.clahe*-0-*"):
        kept.unlink()
    store.open("0").cut((0, 0, 8, 8), 0, PatchConfig(clahe_grid=TILES).clahe)


if __name__ == "__main__":
    main()
