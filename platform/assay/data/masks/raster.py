"""Pixels of a mark: polygons filled, run lengths decoded.

Both take untrusted numbers: what is no mask raises a ValueError before memory is asked for.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from assay.shapes import Bool

_MOST_BITS = 45
"""A run length of more bits is longer than any image."""


def decode_runs(counts: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Decode run lengths: of 0 and 1 in turn, beginning with 0, down the columns.

    Args:
        counts: a list of lengths, or COCO's text of them.
        height: of the mask.
        width: of the mask.

    Raises:
        ValueError: the lengths are no such text, no whole numbers, negative, or not height times
            width in all.
    """
    runs = _lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int for run in runs):
        raise ValueError("run lengths are a list of whole numbers, or COCO's text")
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"run lengths of {sum(runs)} pixels in all, of {height * width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _lengths(text: str) -> list[int]:
    """Read COCO's text of run lengths (pycocotools, maskApi.c, rleFrString).

    A character holds 5 bits, the lowest first; from the fourth length on the text gives the
    difference to the last but one.
    """
    lengths: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the character {char!r} is no part of run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if shift > _MOST_BITS:
            raise ValueError(f"a run length of more than {_MOST_BITS} bits")
        if bits & 32:  # more characters follow
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the text of run lengths is cut short")
    return lengths


def fill_polygons(
    polygons: Sequence[np.ndarray], height: int, width: int
) -> tuple[Bool[np.ndarray, "h w"], int, int]:
    """Mark pixels inside any of the polygons; return the part of the mask that holds them, its top and its left.

    Raises:
        ValueError: as `fill_polygon`.
    """
    for points in polygons:
        _check(points)
    corners = np.concatenate(polygons)
    left, top = np.clip(np.floor(corners.min(0)), 0, (width, height)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(0)), 0, (width, height)).astype(int).tolist()
    window = np.zeros((bottom - top, right - left), dtype=bool)
    for points in polygons:
        window |= fill_polygon(points - (left, top), *window.shape)
    return window, top, left


def _check(points: np.ndarray) -> None:
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError(f"a polygon of {len(points)} points, or one that is not finite")


def fill_polygon(points: np.ndarray, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Mark pixels whose centres lie inside the polygon (x, y of its corners), by the even-odd rule.

    Raises:
        ValueError: there are fewer than three corners, or a coordinate is not finite.
    """
    _check(points)
    crossed = np.zeros((height, width + 1), dtype=bool)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        (x0, y0), (x1, y1) = sorted((start, end), key=lambda point: point[1])
        rows = np.arange(max(math.ceil(y0 - 0.5), 0), min(math.ceil(y1 - 0.5), height))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossed[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)] ^= True
    return np.logical_xor.accumulate(crossed[:, :width], axis=1)
