"""Images that stay on the accelerator, and patches cut, equalised, turned and rescaled there."""

from collections.abc import Iterable
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from assay.data.images.affine import crop_matrix
from assay.data.images.clahe import Clahe, Tables
from assay.data.images.pyramid import ImagePyramid, whole_pixels
from assay.data.inputs.patches import Canvas
from assay.data.inputs.photometric import GREY, tone_table
from assay.shapes import Float64, Int, UInt8

STRIP_PIXELS = 1 << 22
"""Pixels that are equalised at a time (about 200 MB)."""


class DeviceImages:
    """Levels of images, equalised where that is asked for, from the first time that patches are cut of them.

    Args:
        rows: Rows of the images that may be held.
    """

    def __init__(self, rows: Iterable[int] = ()) -> None:
        self.rows = frozenset(int(row) for row in rows)
        self.levels: dict[tuple[int, int], Tensor] = {}
        """Pixels (h w 3), uint8, by row and level."""

    def serves(self, row: int, canvas: Canvas) -> bool:
        """Tell whether an image is cut here: noise alone is drawn by the host."""
        return row in self.rows and canvas.augment.noise == "none"

    def patches(
        self, row: int, canvas: Canvas, corners: Int[np.ndarray, "n 2"], device: torch.device
    ) -> UInt8[Tensor, "n p p 3"]:
        """Cut what `Canvas.patches` gives.

        Whole pixels and equalisation are equal to the byte; what is sampled, resampled or changed
        in saturation is computed in float32 where the host has fixed-point numbers.
        """
        side = canvas.config.patch_px
        if not len(corners):
            return torch.zeros(0, side, side, 3, dtype=torch.uint8, device=device)
        matrices = [crop_matrix(canvas.matrix, x, y) for x, y in corners.tolist()]
        patches = torch.stack([self._window(row, canvas, m, device) for m in matrices])
        return _photometric(patches, canvas)

    def _window(
        self, row: int, canvas: Canvas, matrix: Float64[np.ndarray, "2 3"], device: torch.device
    ) -> UInt8[Tensor, "p p 3"]:
        side, entry, clahe = canvas.config.patch_px, canvas.entry, canvas.config.clahe
        copied = whole_pixels(matrix, side, side)
        if copied is not None:
            return _copy(self._level(row, entry, 0, clahe, device), *copied, side)
        index, scaled = entry.onto_level(matrix)
        return _sample(self._level(row, entry, index, clahe, device), scaled, side)

    def _level(
        self,
        row: int,
        entry: ImagePyramid,
        index: int,
        clahe: Clahe | None,
        device: torch.device,
    ) -> UInt8[Tensor, "h w 3"]:
        if (row, index) not in self.levels:
            pixels = np.array(entry.uint8(np.asarray(entry.levels[index])))
            level = torch.from_numpy(pixels).to(device)
            if clahe is not None:
                tables = entry.tables(index, clahe)
                tables.fill(entry.reader(index), 0, clahe.grid, 0, clahe.grid)
                level = equalise(level, tables)
            self.levels[row, index] = level
        return self.levels[row, index]


def equalise(level: UInt8[Tensor, "h w 3"], tables: Tables) -> UInt8[Tensor, "h w 3"]:
    """Equalise a whole level on its device, equal to `Tables.region` to the byte.

    Args:
        level: Raw pixels.
        tables: Its tables, all known.
    """
    device, (height, width, _) = level.device, level.shape
    to_lab, to_rgb = _colours(device)
    luts = torch.from_numpy(np.array(tables.levels)).to(device).flatten()
    grid = tables.clahe.grid
    (low_y, share_y), (low_x, share_x) = (
        (torch.from_numpy(axis.low).to(device), torch.from_numpy(axis.share).to(device))
        for axis in (tables.axis(0, height, 0), tables.axis(0, width, 1))
    )
    equalised = torch.empty_like(level)
    rows = max(STRIP_PIXELS // width, 1)
    for begin in range(0, height, rows):
        part = slice(begin, begin + rows)
        lab = to_lab[_packed(level[part])]
        lightness = lab & 255

        def reads(y: int, x: int, at: slice = part, values: Tensor = lightness) -> Tensor:
            row = (low_y[at] + y).clamp(0, grid - 1)[:, None]
            return luts[256 * (row * grid + (low_x + x).clamp(0, grid - 1)) + values].float()

        lower = share_y[part, None]
        # one operation at a time, so that nothing is rounded otherwise than on the host
        top = reads(0, 0) * (1 - share_x) + reads(0, 1) * share_x
        bottom = reads(1, 0) * (1 - share_x) + reads(1, 1) * share_x
        changed = (top * (1 - lower) + bottom * lower).round().int()
        rgb = to_rgb[(lab & ~255) | changed]
        equalised[part] = torch.stack([rgb >> shift & 255 for shift in (0, 8, 16)], -1)
    return equalised


def _packed(pixels: UInt8[Tensor, "h w 3"]) -> Int[Tensor, "h w"]:
    first, second, third = pixels.int().unbind(-1)
    return first | second << 8 | third << 16


@cache
def _colours(device: torch.device) -> tuple[Int[Tensor, "colours"], Int[Tensor, "colours"]]:
    """Return what OpenCV makes of each 8-bit colour: CIELAB of RGB, and RGB of CIELAB (64 MB each)."""
    numbers = np.arange(1 << 24, dtype=np.uint32)
    colours = numbers.view(np.uint8).reshape(1 << 12, 1 << 12, 4)[..., :3]
    tables = []
    for code in (cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB):
        converted = torch.from_numpy(cv2.cvtColor(np.ascontiguousarray(colours), code))
        tables.append(_packed(converted).flatten().to(device))
    return tables[0], tables[1]


def _copy(
    image: UInt8[Tensor, "h w 3"], start: tuple[int, int], flips: tuple[int, int], side: int
) -> UInt8[Tensor, "side side 3"]:
    """Copy a square of an image, zero outside it, flipped where a step is -1."""
    (x, y), (height, width, _) = start, image.shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    window = image.new_zeros(side, side, 3)
    if x0 < x1 and y0 < y1:
        window[y0 - y : y1 - y, x0 - x : x1 - x] = image[y0:y1, x0:x1]
    return window.flip([axis for axis, step in enumerate(flips[::-1]) if step < 0])


def _sample(
    level: UInt8[Tensor, "h w 3"], matrix: Float64[np.ndarray, "2 3"], side: int
) -> UInt8[Tensor, "side side 3"]:
    """Sample a square through a matrix (window pixel to level pixel), bilinear, fading to zero outside."""
    ends = np.array([[x, y, 1] for x in (0, side - 1) for y in (0, side - 1)]) @ matrix.T
    edge = np.array(level.shape[1::-1])
    low = np.clip(np.floor(ends.min(0)).astype(int) - 1, 0, edge)
    high = np.clip(np.ceil(ends.max(0)).astype(int) + 2, 0, edge)
    if (high <= low).any():
        return level.new_zeros(side, side, 3)
    (x0, y0), (x1, y1) = low.tolist(), high.tolist()
    window = level[y0:y1, x0:x1].permute(2, 0, 1)[None].float()
    steps = torch.arange(side, device=level.device, dtype=torch.float64)
    places = []
    for (along_x, along_y, start), first, stop in zip(
        matrix.tolist(), (x0, y0), (x1, y1), strict=True
    ):
        place = along_x * steps + along_y * steps[:, None] + (start - first)
        places.append((2 * place + 1) / (stop - first) - 1)
    grid = torch.stack(places, -1)[None].float()
    sampled = functional.grid_sample(window, grid, align_corners=False)
    return sampled[0].permute(1, 2, 0).round().to(torch.uint8)


def _photometric(patches: UInt8[Tensor, "n p p 3"], canvas: Canvas) -> UInt8[Tensor, "n p p 3"]:
    """Change values by what was drawn, as `photometric` does on the host."""
    change = canvas.augment
    if not change.brightness == change.contrast == change.gamma == 1:
        table = torch.from_numpy(tone_table(change, canvas.grey)).to(patches.device)
        patches = table[patches.int()]
    if change.saturation != 1:
        values = patches.float()
        grey = sum(share * values[..., i] for i, share in enumerate(GREY.tolist()))
        mixed = change.saturation * values + (1 - change.saturation) * grey[..., None]
        patches = mixed.round().clamp(0, 255).to(torch.uint8)
    if change.resample < 1:
        side = patches.shape[1]
        small = max(1, round(side * change.resample))
        patches = _resize(_resize(patches, small), side)
    return patches


def _resize(patches: UInt8[Tensor, "n h w 3"], side: int) -> UInt8[Tensor, "n side side 3"]:
    resized = functional.interpolate(
        patches.permute(0, 3, 1, 2).float(), (side, side), mode="bilinear", align_corners=False
    )
    return resized.permute(0, 2, 3, 1).round().to(torch.uint8)
