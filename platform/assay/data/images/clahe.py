"""Contrast-limited local equalisation, of an image or of a region alone."""

from collections.abc import Callable

import cv2
import numpy as np

from assay.shapes import Int, UInt8


def clahe(
    image: UInt8[np.ndarray, "h w 3"], clip_limit: float, grid: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Equalise the lightness (CIELAB L) by contrast-limited adaptive histograms.

    Args:
        image: RGB image.
        clip_limit: Largest histogram bin relative to a flat histogram; 0 is no limit.
        grid: Tiles along each side.
    """
    whole = slice(None), slice(None)
    return _equalise(image, clip_limit, grid, grid, whole)


def _equalise(
    image: UInt8[np.ndarray, "h w 3"],
    clip_limit: float,
    num_x: int,
    num_y: int,
    part: tuple[slice, slice],
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Equalise an image and make a part (rows, columns) of it RGB again."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lightness = cv2.createCLAHE(clip_limit, (num_x, num_y)).apply(cv2.extractChannel(lab, 0))
    equalised = cv2.insertChannel(lightness[part], np.ascontiguousarray(lab[part]), 0)
    return cv2.cvtColor(equalised, cv2.COLOR_LAB2RGB)


def clahe_region(
    read: Callable[[int, int, int, int], UInt8[np.ndarray, "rows columns 3"]],
    height: int,
    width: int,
    x0: int,
    y0: int,
    x1: int,
    y1: int,
    clip_limit: float,
    grid: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """Compute pixels [y0, y1) x [x0, x1) of the whole image's `clahe` from the tiles that decide them.

    A pixel is interpolated between the tables of the four tiles whose centres surround it, so that
    less than a tile and a half is read on each side (at a padded edge also what the padding
    mirrors). The lightness differs by 1 of 255 at most, where OpenCV's float32 positions round
    otherwise; in a saturated colour that can be 3 grey levels of one channel.

    Args:
        read: Gives the raw pixels of a box (x0, y0, x1, y1) inside the image.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        x0: First column, inside the image.
        y0: First row, inside the image.
        x1: Column after the last, at most width.
        y1: Row after the last, at most height.
        clip_limit: As for `clahe`.
        grid: As for `clahe`.
    """
    # If either side is not divisible OpenCV pads both, a divisible one by one pixel per tile.
    is_padded = bool(height % grid or width % grid)
    tile_x, tile_y = width // grid + is_padded, height // grid + is_padded
    first_x, stop_x = _tiles(x0, x1, tile_x, grid)
    first_y, stop_y = _tiles(y0, y1, tile_y, grid)
    columns = _mirror(np.arange(first_x * tile_x, stop_x * tile_x), width)
    rows = _mirror(np.arange(first_y * tile_y, stop_y * tile_y), height)
    first_column, first_row = int(columns.min()), int(rows.min())
    raw = read(first_column, first_row, int(columns.max()) + 1, int(rows.max()) + 1)
    if raw.shape[:2] != (len(rows), len(columns)):  # else nothing is mirrored
        raw = raw.take(rows - first_row, 0).take(columns - first_column, 1)
    x, y = x0 - first_x * tile_x, y0 - first_y * tile_y
    part = slice(y, y + y1 - y0), slice(x, x + x1 - x0)
    return _equalise(raw, clip_limit, stop_x - first_x, stop_y - first_y, part)


def _tiles(start: int, stop: int, tile: int, grid: int) -> tuple[int, int]:
    """Return the tiles [first, stop) whose tables reach the pixels [start, stop) of one axis."""
    first = (2 * start - tile) // (2 * tile)
    last = (2 * (stop - 1) - tile) // (2 * tile) + 1
    return max(first, 0), min(last + 1, grid)


def _mirror(positions: Int[np.ndarray, "n"], side: int) -> Int[np.ndarray, "n"]:
    """Fold positions beyond the last pixel back without repeating it (reflect-101)."""
    period = max(2 * (side - 1), 1)
    folded = positions % period
    mirrored: np.ndarray = np.minimum(folded, period - folded)
    return mirrored
