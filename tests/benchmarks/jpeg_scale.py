"""JPEGs decoded at a half, a fourth and an eighth of their size, beside area means of the whole: how far apart, how much faster.

python tests/benchmarks/jpeg_scale.py
"""

import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from bench import photo, seconds, table, write

SIDE, QUALITY, TURNS = 2048, 95, 15
FLAGS = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def shrunk(content: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area means of an image that is decoded whole."""
    whole = cv2.imdecode(content, cv2.IMREAD_COLOR)
    return cv2.resize(whole, size, interpolation=cv2.INTER_AREA)


def main() -> None:
    cv2.setNumThreads(1)
    content = cv2.imencode(".jpg", photo(SIDE), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    rows = []
    for ratio, flag in FLAGS.items():
        size = (SIDE // ratio, SIDE // ratio)
        apart = np.abs(cv2.imdecode(content, flag) - shrunk(content, size).astype(int))
        ways: dict[str, Callable[[], object]] = {
            "whole": partial(shrunk, content, size),
            "scaled": partial(cv2.imdecode, content, flag),
        }
        taken = seconds(ways, TURNS, time.process_time)
        ms = {name: 1000 * value for name, value in taken.items()}
        rows.append(
            [
                f"1/{ratio}",
                f"{ms['whole']:.1f}",
                f"{ms['scaled']:.1f}",
                f"{ms['whole'] / ms['scaled']:.2f}x",
                str(apart.max()),
                f"{(apart > 0).mean():.0%}",
            ]
        )
    header = ["scale", "decoded whole, then area means (CPU ms)", "decoded at the scale (CPU ms)"]
    write(
        __file__,
        f"A JPEG of {SIDE}x{SIDE} (quality {QUALITY}) decoded by OpenCV (libjpeg-turbo) whole and at a smaller scale, medians of {TURNS} turns of both after one to warm up.",
        table([*header, "faster", "largest difference (grey levels)", "values that differ"], rows),
        "So an overview decoded at its scale is not the one that training saw and golden outputs state: blocks are cut off in frequency and colours are scaled up otherwise. Entropy decoding, which no scale saves, is most of the time; and patches need the whole image at full scale anyway, as a baseline JPEG is read from its beginning. Assay decodes whole.",
    )


if __name__ == "__main__":
    main()
