"""Near-duplicates: planted copies that are found, by kind, and originals that are falsely joined.

python tests/benchmarks/near_duplicates.py [FOLDER of images ...]
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from bench import table

from assay.data.images import decode
from assay.data.images.pyramid import ImagePyramid
from assay.data.near.pairs import near_pairs
from assay.data.near.register import LIMIT
from assay.data.near.sketch import sketch, thumbnail
from assay.data.synthetic.parts import PartsConfig, draw_parts
from assay.data.walk import find_files

NUM = 160
"""Originals of a set; every second one has a copy, of each kind in turn."""


def rotate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate by any angle; what comes from outside is black, the edge repeated, or mirrored."""
    height, width = image.shape[:2]
    centre = (width - 1) / 2, (height - 1) / 2
    matrix = cv2.getRotationMatrix2D(centre, rng.uniform(0, 360), 1)
    borders = cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT
    return cv2.warpAffine(image, matrix, (width, height), borderMode=int(rng.choice(borders)))


def crop_side(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut up to 15 % off one side."""
    turn = int(rng.integers(4))
    turned = np.rot90(image, turn)
    return np.ascontiguousarray(
        np.rot90(turned[round(len(turned) * rng.uniform(0, 0.15)) :], -turn)
    )


def stretch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut one side and bring the rest back to size."""
    return cv2.resize(crop_side(image, rng), image.shape[1::-1])


def crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut up to 7.5 % off each side."""
    y, x = (round(side * rng.uniform(0, 0.075)) for side in image.shape[:2])
    return np.ascontiguousarray(image[y : image.shape[0] - y, x : image.shape[1] - x])


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip or not, and turn by quarters."""
    side = image[:, ::-1] if rng.integers(2) else image
    return np.ascontiguousarray(np.rot90(side, int(rng.integers(4))))


def recompress(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Encode as JPEG of quality 50 to 95."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 96))]
    decoded = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change contrast by up to 40 % and brightness by up to 40 values, cut off at 0 and 255."""
    values = image * rng.uniform(0.6, 1.4) + rng.uniform(-40, 40)
    return np.clip(values, 0, 255).astype(np.uint8)


def every(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a side, flip, rotate, relight and recompress."""
    for change in (crop_side, flip, rotate, light, recompress):
        image = change(image, rng)
    return image


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "JPEG": recompress,
    "light": light,
    "flips": flip,
    "any angle": rotate,
    "one side cut": crop_side,
    "cut, resized": stretch,
    "all sides cut": crop,
    "all at once": every,
}


def parts(num: int) -> Iterator[np.ndarray]:
    """Draw parts in one jig: one outline, the grain of each its own."""
    y, x = np.mgrid[-1:1:300j, -1:1:300j]
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    outline = 90.0 * (radius < 0.9) - 60 * (radius < 0.5) + 50 * (radius < 0.2)
    outline += 30 * ((np.cos(6 * angle) > 0.6) & (radius > 0.25) & (radius < 0.45))
    for seed in range(num):
        noise = np.random.default_rng(seed).standard_normal((300, 300))
        grey = outline + 60 + 30 * cv2.GaussianBlur(noise, (0, 0), 2)
        yield np.dstack([np.clip(grey, 0, 255).astype(np.uint8)] * 3)


def embedded_parts(num: int) -> list[np.ndarray]:
    """Draw the synthetic parts of one design, whose grain is faint: different parts, as alike as parts can be."""
    with tempfile.TemporaryDirectory() as place:
        draw_parts(
            Path(place), PartsConfig(parts_per_seen=num // 6, parts_per_unseen=1, num_views=1)
        )
        files = sorted(Path(place).glob("*/Connector/*.png"))
        return [decode.read(file) for file in files]


def folder(path: Path) -> list[np.ndarray]:
    """Read a seeded draw of a folder's images, without masks."""
    files = [
        file for file in find_files(path, (".jpg", ".jpeg", ".png")) if "test" not in file.parts
    ]
    files = [
        file for file in files if file.suffix != ".png" or file.with_suffix(".jpg") not in files
    ]
    drawn = np.random.default_rng(0).permutation(len(files))[:NUM]
    return [decode.read(path / files[i]) for i in drawn]


def measure(name: str, originals: list[np.ndarray]) -> dict[str, str]:
    """Plant copies among the originals and look for them."""
    rng = np.random.default_rng(1)
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(len(originals) // 2)]
    images = originals + [KINDS[kind](originals[2 * i], rng) for i, kind in enumerate(kinds)]
    entries = [ImagePyramid.of(image) for image in images]
    signatures = np.stack([np.frombuffer(entry.signature, np.uint8) for entry in entries])
    began = time.perf_counter()
    names = [f"{i:05d}" for i in range(len(images))]
    pairs = near_pairs(names, signatures, [sketch(thumbnail(entry)) for entry in entries])
    spent = time.perf_counter() - began
    joined = {(int(pair.first), int(pair.second)) for pair in pairs}
    hits = [(2 * i, len(originals) + i) in joined for i in range(len(kinds))]
    row = {"images": name}
    for kind in KINDS:
        of_kind = [hit for hit, other in zip(hits, kinds, strict=True) if other == kind]
        row[kind] = f"{sum(of_kind)}/{len(of_kind)}"
    row["originals joined"] = f"{sum(second < len(originals) for _, second in joined)}"
    row["ms per image"] = f"{1000 * spent / len(images):.0f}"
    return row


if __name__ == "__main__":
    print(f"limit {LIMIT}")
    rows = [measure("parts in one jig, drawn", list(parts(NUM)))]
    rows += [measure("embedded parts of one design", embedded_parts(NUM))]
    rows += [measure(Path(path).name, folder(Path(path))) for path in sys.argv[1:]]
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
