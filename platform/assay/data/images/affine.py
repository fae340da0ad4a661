"""Affine maps between canvas and image, and pixels sampled through them."""

from math import floor
from typing import Literal

import cv2
import numpy as np

from assay.shapes import Float64, UInt8, UInt16


def _about_centre(
    linear: Float64[np.ndarray, "2 2"], canvas: int, shift: Float64[np.ndarray, "2"]
) -> Float64[np.ndarray, "2 3"]:
    """Return the linear map about the canvas centre, after the content is moved by `shift`."""
    centre = np.full(2, (canvas - 1) / 2)
    return np.column_stack([linear, centre - linear @ (centre + shift)])


def fit(
    height: int, width: int, canvas: int, mode: Literal["scale", "pad"]
) -> Float64[np.ndarray, "2 3"]:
    """Return the matrix from a square canvas to the source image that stands centred in it.

    Args:
        height: Source height in pixels.
        width: Source width in pixels.
        canvas: Side of the canvas in pixels.
        mode: "scale": the longer side fills the canvas. "pad": pixels keep their size; what does
            not fit is cut off at both ends.
    """
    if mode == "pad":
        margin_x, margin_y = _margin(canvas, width), _margin(canvas, height)
        return np.array([[1.0, 0.0, -margin_x], [0.0, 1.0, -margin_y]])
    step = max(height, width) / canvas
    middle = (canvas - 1) / 2
    x, y = (width - 1) / 2 - step * middle, (height - 1) / 2 - step * middle
    return np.array([[step, 0.0, x], [0.0, step, y]])


def _margin(canvas: int, side: int) -> int:
    """Count the whole pixels before the image (negative: cut off), the smaller half when odd."""
    return (canvas - side) // 2 if canvas >= side else -((side - canvas) // 2)


def compose(
    outer: Float64[np.ndarray, "2 3"], inner: Float64[np.ndarray, "2 3"]
) -> Float64[np.ndarray, "2 3"]:
    """Return the matrix that applies `inner` to a pixel first, then `outer`."""
    composed: np.ndarray = outer @ np.vstack([inner, [0.0, 0.0, 1.0]])
    return composed


def crop_matrix(
    matrix: Float64[np.ndarray, "2 3"], x: float | int, y: float | int, step: float | int = 1.0
) -> Float64[np.ndarray, "2 3"]:
    """Return the matrix of the patch that begins at canvas pixel (x, y).

    Each patch pixel stands for a square of `step` canvas pixels, the first of which begins at the
    outer edge of canvas pixel (x, y): an overview is `crop_matrix(matrix, 0, 0, canvas / side)`.
    """
    half = (step - 1) / 2
    return compose(matrix, np.array([[step, 0.0, x + half], [0.0, step, y + half]]))


def warp(
    image: UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"],
    matrix: Float64[np.ndarray, "2 3"],
    height: int,
    width: int,
    repeat_edge: bool = False,
) -> UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]:
    """Sample a (height, width) patch of the image, bilinear, outside zero or as at the image's edge.

    Whole-pixel shifts and flips copy pixels unchanged. Nothing is averaged: for steps well above 1
    (an overview) pass an image that was reduced before.
    """
    (xx, xy, x), (yx, yy, y) = matrix.tolist()
    right, bottom = width - 1, height - 1
    first_x, stop_x = _reach(xx * right, xy * bottom, x, image.shape[1])
    first_y, stop_y = _reach(yx * right, yy * bottom, y, image.shape[0])
    if first_x >= stop_x or first_y >= stop_y:
        return np.zeros((height, width, 3), image.dtype)
    # OpenCV computes coordinates in float32 and refuses sides of 32768: give it the window only.
    window = image[first_y:stop_y, first_x:stop_x]
    local = np.array([[xx, xy, x - first_x], [yx, yy, y - first_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REPLICATE if repeat_edge else cv2.BORDER_CONSTANT
    return cv2.warpAffine(window, local, (width, height), flags=flags, borderMode=border)


def _reach(along_x: float, along_y: float, start: float, side: int) -> tuple[int, int]:
    """Return the source pixels [first, stop) of one axis that bilinear sampling of a patch can touch."""
    low = start + min(along_x, 0.0) + min(along_y, 0.0)
    high = start + max(along_x, 0.0) + max(along_y, 0.0)
    return max(floor(low) - 1, 0), min(floor(high) + 3, side)
