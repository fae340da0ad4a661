"""A contact sheet: images with the outlines of their masks side by side, to be looked at."""

from collections.abc import Sequence

import cv2
import numpy as np

from assay.data.images.decode import Rgb
from assay.shapes import Bool, UInt8

NUM_TILES = 24


_COLUMNS, _TILE, _LINE, _GAP = 4, 400, 22, 6  # pixels; two lines of text stand below a tile


_OUTLINE, _TEXT, _PAPER = (255, 32, 32), (20, 20, 20), (244, 244, 240)


_MAX_CHARS = 44


def choose_layers(agreements: Sequence[float]) -> list[int]:
    """Choose up to 24 layers by position: half of them of the lowest agreement, then evenly spaced ones."""
    order = sorted(range(len(agreements)), key=lambda i: (agreements[i], i))
    lowest = order[: NUM_TILES // 2]
    others = sorted(order[NUM_TILES // 2 :])
    num = min(NUM_TILES - len(lowest), len(others))
    steps = np.linspace(0, len(others) - 1, num).round().astype(int)
    return lowest + [others[step] for step in steps]


def draw_tile(
    pixels: Rgb, mask: Bool[np.ndarray, "h w"], lines: tuple[str, str]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw an image in small, min-max normalised, with the mask's outline and two lines of text."""
    height, width = mask.shape
    scale = _TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    small = cv2.normalize(small, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    # the least mark stays visible: any part of a pixel counts
    share = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    edges = cv2.findContours((share > 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(small, edges, -1, _OUTLINE, 1)
    framed = np.full((size[1] + 2 * _LINE, _TILE, 3), _PAPER, dtype=np.uint8)
    framed[: size[1], : size[0]] = small
    for number, line in enumerate(lines):
        text = line if len(line) <= _MAX_CHARS else "..." + line[3 - _MAX_CHARS :]
        text = text.encode("ascii", "replace").decode()  # the font has no other letters
        corner = (4, size[1] + _LINE * number + 16)
        cv2.putText(framed, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _TEXT, 1, cv2.LINE_AA)
    return framed


def draw_sheet(tiles: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "h w 3"]:
    """Lay tiles out in rows of four."""
    high, wide = max(tile.shape[0] for tile in tiles) + _GAP, _TILE + _GAP
    rows = -(-len(tiles) // _COLUMNS)
    paper = np.full((rows * high, _COLUMNS * wide, 3), _PAPER, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        y, x = number // _COLUMNS * high, number % _COLUMNS * wide
        paper[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return paper
