"""From a tiled TIFF to its patches: tiles that are looked at against decoding the whole file.

python tests/benchmarks/tiled.py
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from bench import peak_mb, photo, seconds, table, write

from assay.data.images import decode
from assay.data.images.pyramid import ImagePyramid, pyramid
from assay.data.images.tiff import TiledPage
from assay.data.inputs.normalise import normalise
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners

SIZE, GRID, PATCHES, TILE = 5100, 52, 8, 256
CELLS = np.sort(np.random.default_rng(2).choice(GRID * GRID, PATCHES, replace=False))
SIZES = PatchConfig(image_px=SIZE, overview_px=224, patch_px=224)
CODECS: dict[str, dict[str, Any]] = {
    "none": {},
    "LZW": {"compression": "lzw"},
    "deflate, predicted": {"compression": "deflate", "predictor": 2},
    "zstd": {"compression": "zstd"},
}


def whole(file: Path) -> ImagePyramid:
    """Everything decoded."""
    return ImagePyramid.of(decode.read(file))


WAYS: dict[str, Callable[[Path], ImagePyramid]] = {"whole": whole, "in part": ImagePyramid.read}


def looked(way: str, file: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """The overview and patches as a bundle gets them, and the share of the tiles that were decoded."""
    entry = WAYS[way](file)
    canvas = Canvas(entry, SIZES)
    overview, mean, std = canvas.overview()
    patches = canvas.patches(cell_corners(CELLS, GRID, SIZES))
    normalise(patches, mean, std)
    full = entry.levels[0]
    return (
        overview,
        patches,
        len(full.tiles) / math.prod(full.grid) if isinstance(full, TiledPage) else 1.0,
    )


def measured(way: str, file: str) -> Iterator[None]:
    """One image for its peak memory."""
    yield
    looked(way, Path(file))


def row(codec: str, file: Path) -> list[str]:
    """One line of the table."""
    taken = seconds({way: partial(looked, way, file) for way in WAYS}, 5)
    memory = {way: peak_mb(measured, way, str(file)) for way in WAYS}
    (seen, patches, _), (expected, others, _) = looked("in part", file), looked("whole", file)
    np.testing.assert_array_equal(patches, others)
    gap = np.abs(seen.astype(int) - expected).max()
    return [
        codec,
        f"{file.stat().st_size / 1e6:.0f} MB",
        f"{1000 * taken['whole']:.0f} ms",
        f"{1000 * taken['in part']:.0f} ms",
        f"{taken['whole'] / taken['in part']:.1f}x",
        f"{looked('in part', file)[2]:.2f}",
        f"{memory['whole']:.0f} MB",
        f"{memory['in part']:.0f} MB",
        str(gap),
    ]


def main() -> None:
    """Measure each codec."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        levels = pyramid(photo(SIZE))
        for name, options in CODECS.items():
            file = Path(folder) / "part.tif"
            with tifffile.TiffWriter(file) as out:
                for level in levels:
                    out.write(
                        level,
                        tile=(TILE, TILE),
                        photometric="rgb",
                        subfiletype=int(level is not levels[0]),
                        **options,
                    )
            rows.append(row(name, file))
    header = [
        "compression",
        "file",
        "whole",
        "in part",
        "faster",
        "tiles decoded",
        "peak, whole",
        "peak, in part",
        "largest difference of the overview (grey levels)",
    ]
    write(
        __file__,
        f"Overview (224 px) and {PATCHES} patches of 224 px, normalised, of a TIFF of {SIZE}x{SIZE} in tiles of {TILE} that holds its own overviews: decoded whole, and where it is looked at. The patches are equal, byte for byte.",
        table(header, rows),
        "Of the tiles some are decoded to see whether the overviews are what the store would compute. A file without overviews, or with others (nearest neighbours, lossy ones), is decoded whole: the overview needs every pixel.",
    )


if __name__ == "__main__":
    main()
