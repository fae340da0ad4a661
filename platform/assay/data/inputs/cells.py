"""Which cells of a canvas are looked at: drawn, tiled, spread, best, or found by attention."""

import hashlib
from collections.abc import Callable

import cv2
import numpy as np

from assay.data.inputs.patches import PatchConfig, cell_corners
from assay.shapes import Int, Real, UInt8


def informative_cells(
    overview: UInt8[np.ndarray, "s s 3"],
    grid: int,
    config: PatchConfig,
    k: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "k"]:
    """Draw k different cells whose patch is bright enough to show the part, in ascending order.

    The rule of the random-region baseline (RRFM): a crop counts if its mean exceeds a bar, there
    0.1 of full scale; the bar falls to a half, a third... until enough cells pass it. Means are
    taken on the overview, so that no full-resolution pixel is read.
    """
    scale = config.overview_px / config.image_px
    size = max(1, round(config.patch_px * scale))
    means = cv2.blur(overview, (size, size), borderType=cv2.BORDER_CONSTANT).mean(axis=2) / 255
    centres = cell_corners(np.arange(grid * grid), grid, config) + config.patch_px / 2
    x, y = np.clip((centres * scale).astype(int), 0, config.overview_px - 1).T
    brightness = means[y, x]
    bars = (config.bright / part for part in range(1, 100))
    eligible = next(
        (e for bar in bars if len(e := np.flatnonzero(brightness > bar)) >= k),
        np.arange(grid * grid),
    )
    return np.sort(rng.choice(eligible, k, replace=False))


def tile_cells(grid: int, config: PatchConfig) -> Int[np.ndarray, "n"]:
    """Return the cells whose patches cover the canvas with as little overlap as the grid allows, ascending.

    Patches smaller than a cell's share of the canvas cover what they can: every cell is taken.
    """
    stride = config.image_px // grid
    margin, side = (config.patch_px - stride) // 2, max(1, config.patch_px // stride)
    first = max(0, margin // stride)
    last = min(grid - 1, -(-(config.image_px - config.patch_px + margin) // stride))
    num = -(-(last - first) // side) + 1
    at = np.rint(np.linspace(first, last, num)).astype(int)
    return (at[:, None] * grid + at).ravel()


def lattice_cells(grid: int, k: int) -> Int[np.ndarray, "k"]:
    """Spread k cells evenly over the canvas in floor(sqrt(k)) rows, ascending."""
    num_rows = int(np.sqrt(k))
    lengths = [k // num_rows + (row < k % num_rows) for row in range(num_rows)]
    rows = np.repeat((np.arange(num_rows) + 0.5) / num_rows, lengths)
    columns = np.concatenate([(np.arange(n) + 0.5) / n for n in lengths])
    return (rows * grid).astype(int) * grid + (columns * grid).astype(int)


def best_cells(
    scores: Real[np.ndarray, "d"], k: int, grid: int, apart: int
) -> Int[np.ndarray, "k"]:
    """Do what `nn.topk.hard_topk` does, for one image, where there is no torch."""
    rows, columns = np.divmod(np.arange(len(scores)), grid)
    order = np.argsort(-scores, kind="stable")
    is_near = np.zeros(len(scores), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < k:
        free = order[~np.isin(order, chosen)]
        far = free[~is_near[free]]
        best = int(far[0] if len(far) else free[0])
        chosen.append(best)
        gap = np.maximum(abs(rows - rows[best]), abs(columns - columns[best]))
        is_near |= gap < apart
    return np.sort(chosen)


def iterative_cells(
    cells: Int[np.ndarray, "n"],
    num_images: int,
    k: int,
    chunk: int,
    embed: Callable[[np.ndarray], np.ndarray],
    attend: Callable[[np.ndarray], np.ndarray],
) -> Int[np.ndarray, "num_images k"]:
    """Select patches iteratively: of all cells the k that get most attention, a few at a time.

    A memory of k cells and their features is held beside `chunk` new ones, and the k of them that
    get most attention are kept, so that memory does not depend on the size of the image.

    Source: Bergner, Lippert and Mahendran, Iterative Patch Selection for High-Resolution Image
    Recognition, 2023 (there M and I).

    Args:
        cells: Candidates, at least k.
        num_images: Images in the batch.
        k: Cells to keep.
        chunk: New cells looked at together.
        embed: Features (num_images, m, width) of cells (num_images, m).
        attend: Attention (num_images, m) among features (num_images, m, width).
    """
    memory = np.tile(cells[:k], (num_images, 1))
    features = embed(memory)
    for start in range(k, len(cells), chunk):
        new = np.tile(cells[start : start + chunk], (num_images, 1))
        candidates = np.concatenate([memory, new], axis=1)
        features = np.concatenate([features, embed(new)], axis=1)
        best = np.sort(np.argsort(-attend(features), axis=1, kind="stable")[:, :k], axis=1)
        memory = np.take_along_axis(candidates, best, axis=1)
        features = np.take_along_axis(features, best[..., None], axis=1)
    return memory


def overview_seed(overview: UInt8[np.ndarray, "s s 3"]) -> int:
    """Return the seed of what is drawn for a judged image: a function of what it shows, wherever it is judged."""
    return int.from_bytes(hashlib.blake2b(overview.tobytes(), digest_size=8).digest(), "little")
