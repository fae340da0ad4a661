"""From an image to its patches: the lazy cut from a warm store against decoding and equalising it all.

python tests/benchmarks/lazy.py
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from bench import imread, peak_mb, photo, seconds, table, write

from assay.data.images.store import Store
from assay.data.inputs.normalise import EPS, normalise
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners

SIZE, GRID, CLIP, TILES = 5100, 52, 3.0, 64
CELLS = np.random.default_rng(2).choice(GRID * GRID, 8, replace=False)


def sizes(clip: float) -> PatchConfig:
    """Patches at the image's own resolution."""
    return PatchConfig(
        image_px=SIZE, overview_px=850, patch_px=448, clahe_clip=clip, clahe_grid=TILES
    )


def whole(file: Path, store: Store, clip: float) -> Callable[[], np.ndarray]:
    """Decode, equalise and normalise everything, then slice; written without Assay's cut."""
    corners = cell_corners(np.sort(CELLS), GRID, sizes(clip))

    def step() -> np.ndarray:
        pixels = imread(file, cv2.IMREAD_COLOR_RGB)
        if clip:
            lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
            lab[..., 0] = cv2.createCLAHE(clip, (TILES, TILES)).apply(
                np.ascontiguousarray(lab[..., 0])
            )
            pixels = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
        scaled = pixels.astype(np.float32) / 255
        mean, std = cv2.meanStdDev(scaled)
        scaled = (scaled - mean[:, 0].astype(np.float32)) / (
            std[:, 0].astype(np.float32) + np.float32(EPS)
        )
        padded = np.pad(scaled, ((448, 448), (448, 448), (0, 0)))
        return np.stack([padded[y + 448 : y + 896, x + 448 : x + 896] for x, y in corners.tolist()])

    return step


def lazy(file: Path, store: Store, clip: float) -> Callable[[], np.ndarray]:
    """Assay's cut from the store's entry, and normalisation of the patches alone."""
    config = sizes(clip)
    corners = cell_corners(np.sort(CELLS), GRID, config)

    def step() -> np.ndarray:
        entry = store.open("image")
        return normalise(Canvas(entry, config).patches(corners), entry.mean, entry.std)

    return step


WAYS = {"all of it": whole, "lazy": lazy}


def measured(way: str, folder: str, clip: float) -> Iterator[None]:
    """One step for its peak memory."""
    step = WAYS[way](Path(folder) / "image.jpg", Store(folder), clip)
    yield
    step()


def main() -> None:
    """Measure with and without equalisation."""
    with tempfile.TemporaryDirectory() as folder:
        file, store = Path(folder) / "image.jpg", Store(folder)
        cv2.imwrite(str(file), photo(SIZE)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        store.build("image", file)
        rows = [row(file, store, clip) for clip in (0.0, CLIP)]
    header = [
        "equalised",
        "all of it",
        "lazy",
        "faster",
        "peak, all",
        "peak, lazy",
        "largest difference (grey levels)",
    ]
    write(
        __file__,
        f"Eight patches of 448 px of a JPEG of {SIZE}x{SIZE}, normalised by the image's statistics: decoding, equalising (CLAHE, {TILES}x{TILES} tiles) and normalising everything, then slicing, against the cut from a warm store. Goal: 20 times faster.",
        table(header, rows),
        "Equalised pixels are kept tile by tile once they were looked at, which the first of the turns does.",
        "Statistics of the two differ a little (the store's are of an overview, before equalisation), so differences are of pixels before normalisation.",
    )


def row(file: Path, store: Store, clip: float) -> list[str]:
    """One line of the table."""
    steps = {name: make(file, store, clip) for name, make in WAYS.items()}
    taken = seconds(steps, 3)
    memory = {name: peak_mb(measured, name, store.address, clip) for name in steps}
    corners = cell_corners(np.sort(CELLS), GRID, sizes(clip))
    pixels = imread(file, cv2.IMREAD_COLOR_RGB)
    if clip:
        lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
        lab[..., 0] = cv2.createCLAHE(clip, (TILES, TILES)).apply(np.ascontiguousarray(lab[..., 0]))
        pixels = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    padded = np.pad(pixels, ((448, 448), (448, 448), (0, 0)))
    expected = np.stack([padded[y + 448 : y + 896, x + 448 : x + 896] for x, y in corners.tolist()])
    found = Canvas(store.open("image"), sizes(clip)).patches(corners)
    gap = int(cv2.absdiff(found, expected).max())
    return [
        "yes" if clip else "no",
        f"{taken['all of it']:.2f} s",
        f"{1000 * taken['lazy']:.1f} ms",
        f"{taken['all of it'] / taken['lazy']:.0f}x",
        f"{memory['all of it']:.0f} MB",
        f"{memory['lazy']:.0f} MB",
        str(gap),
    ]


if __name__ == "__main__":
    main()
