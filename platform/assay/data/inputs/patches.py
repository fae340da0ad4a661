"""Patches of an image on a square canvas: the input that patch selection sees.

An image of any size is laid on a canvas of fixed side, on which a grid of candidate cells stands.
Nothing is ever drawn on the canvas: an overview of it and the patches of chosen cells are cut
straight from the image's pyramid, through one matrix that holds fit and augmentation together, so
the cost does not depend on the image's size. Training, judging and serving all come through here.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Interval

from assay.config import Share
from assay.data.images.affine import compose, crop_matrix, fit
from assay.data.images.clahe import Clahe
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.augment import IDENTITY, Augment
from assay.data.inputs.normalise import EPS, NormaliseConfig
from assay.data.inputs.photometric import photometric
from assay.errors import ConfigError
from assay.shapes import Bool, Float32, Float64, Int, Real, UInt8


@dataclass(frozen=True, kw_only=True)
class PatchConfig(NormaliseConfig, section="patches"):
    """How an image becomes an overview and patches; part of a bundle's input contract."""

    image_px: Annotated[int, Interval(ge=8, le=32_768)] = 2550
    """Side of the square canvas (pixels)."""
    fit: Literal["scale", "pad"] = "scale"
    """Scale an image's longer side to the canvas, or keep its pixels and pad (or cut) to it."""
    overview_px: Annotated[int, Interval(ge=8, le=32_768)] = 850
    """Side of the overview that the scorer sees (pixels)."""
    patch_px: Annotated[int, Interval(ge=8, le=8192)] = 448
    """Side of a patch (canvas pixels)."""
    clahe_clip: Annotated[float, Interval(ge=0, le=256)] = 3.0
    """Clip limit of local histogram equalisation, before everything else; 0: none."""
    clahe_grid: Annotated[int, Interval(ge=1, le=256)] = 64
    """Tiles of that equalisation along each side of the image."""

    bright: Share = 0.1
    """Least mean brightness of a random patch, so that it shows the part and not the table."""

    def __post_init__(self) -> None:
        """Refuse sizes that contradict each other."""
        super().__post_init__()
        if max(self.patch_px, self.overview_px) > self.image_px:
            raise ConfigError(
                f"patches.patch-px is {self.patch_px} and patches.overview-px {self.overview_px}; give at most patches.image-px, which is {self.image_px}."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        names = super().idle()
        if not self.clahe_clip:
            names["clahe_grid"] = "patches.clahe-clip is 0"
        return names

    @property
    def clahe(self) -> Clahe | None:
        """The equalisation, if there is one."""
        return Clahe(self.clahe_clip, self.clahe_grid) if self.clahe_clip else None


def cell_corners(
    cells: Int[np.ndarray, "n"], grid: int, config: PatchConfig
) -> Int[np.ndarray, "n 2"]:
    """Return the left and top canvas pixel of the patch around each cell of a grid x grid canvas.

    Cells stand image_px // grid pixels apart; a patch is centred on its cell and may reach past
    the canvas.
    """
    stride = config.image_px // grid
    margin = (config.patch_px - stride) // 2
    rows, columns = np.divmod(cells, grid)
    return np.stack([columns, rows], axis=-1) * stride - margin


def blank_mask(
    corners: Real[np.ndarray, "batch n m 2"], patch_px: int, ratio: float, side: int
) -> Bool[np.ndarray, "batch n side side"]:
    """Mark the pixels of pictures that lie in any of m patches.

    Args:
        corners: Where the patches begin (left, top) in canvas pixels, from the picture's own corner.
        patch_px: Side of a patch (canvas pixels).
        ratio: Picture pixels per canvas pixel.
        side: Side of the square pictures (pixels).
    """
    centres = (np.arange(side) + 0.5) / ratio
    inside = (centres >= corners[..., None]) & (centres < corners[..., None] + patch_px)
    columns, rows = inside[..., 0, :], inside[..., 1, :]
    return np.asarray((rows[..., :, None] & columns[..., None, :]).any(axis=2))


class Canvas:
    """One image on its canvas.

    Args:
        entry: the image, stored or decoded just now.
        config: sizes and equalisation.
        augment: what to change; nothing by default.
    """

    def __init__(
        self, entry: ImagePyramid, config: PatchConfig, augment: Augment = IDENTITY
    ) -> None:
        self.entry, self.config, self.augment = entry, config, augment
        placed = fit(*entry.size, config.image_px, config.fit)
        self.matrix = compose(placed, augment.matrix)
        self.grey = float(entry.mean @ np.array([0.299, 0.587, 0.114]))

    def overview(
        self,
    ) -> tuple[UInt8[np.ndarray, "s s 3"], Float32[np.ndarray, "3"], Float32[np.ndarray, "3"]]:
        """Return the whole canvas in small, and the mean and deviation (0 to 1) that it and its patches are normalised by.

        Those of the image are taken from the overview's pixels that lie wholly in the image, or of
        the stored image if none does.
        """
        side = self.config.overview_px
        window = crop_matrix(self.matrix, 0, 0, self.config.image_px / side)
        pixels = self.entry.view(window, side, side, self.config.clahe)
        pixels = self._photometric(pixels[None], key=1)[0]
        inside = self._inside(window, side)
        if not inside.any():
            return pixels, *self.config.statistics(self.entry.mean, self.entry.std)
        mean, std = cv2.meanStdDev(pixels, mask=inside)
        return pixels, *self.config.statistics(mean[:, 0] / 255, std[:, 0] / 255)

    def patches(self, corners: Int[np.ndarray, "n 2"]) -> UInt8[np.ndarray, "n p p 3"]:
        """Cut patches that begin at these canvas pixels (left, top)."""
        if len(corners) == 0:
            return np.zeros((0, self.config.patch_px, self.config.patch_px, 3), dtype=np.uint8)
        return self._photometric(self._cut(np.asarray(corners)), key=0)

    def _cut(self, corners: np.ndarray) -> np.ndarray:
        side = self.config.patch_px
        low, high = corners.min(0), corners.max(0) + side
        area = int(np.prod(high - low))
        if len(corners) > 1 and area <= len(corners) * side * side:
            # dense choice: one warp of the box around all of them costs less than one each
            height, width = int(high[1] - low[1]), int(high[0] - low[0])
            box = self.entry.view(
                crop_matrix(self.matrix, int(low[0]), int(low[1])), height, width, self.config.clahe
            )
            windows = np.lib.stride_tricks.sliding_window_view(box, (side, side), axis=(0, 1))
            x, y = (corners - low).T
            return np.ascontiguousarray(windows[y, x].transpose(0, 2, 3, 1))
        cut = [
            self.entry.view(crop_matrix(self.matrix, x, y), side, side, self.config.clahe)
            for x, y in corners.tolist()
        ]
        return np.stack(cut)

    def _photometric(self, pixels: np.ndarray, key: int) -> np.ndarray:
        if self.augment is IDENTITY:
            return pixels
        return photometric(pixels, self.augment, self.grey, key)

    def _inside(self, window: np.ndarray, side: int) -> np.ndarray:
        """Mark the overview pixels that lie wholly in the image, into which no padding blends."""
        height, width = self.entry.size
        half = np.sqrt(abs(np.linalg.det(window[:, :2]))) / 2
        xs, ys = np.arange(side), np.arange(side)[:, None]
        inside = np.ones((side, side), dtype=bool)
        for (a, b, c), edge in zip(window, (width, height), strict=True):
            at = a * xs + b * ys + c
            inside &= (at >= half - 0.5 - EPS) & (at <= edge - half - 0.5 + EPS)
        return inside.astype(np.uint8)

    def source_boxes(self, corners: Int[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 4"]:
        """Return boxes (x0, y0, x1, y1) in the image's own pixels that patches at these corners cover."""
        side = self.config.patch_px
        ends = np.array([[0, 0], [side, 0], [0, side], [side, side]]) - 0.5
        points = (corners[:, None] + ends) @ self.matrix[:, :2].T + self.matrix[:, 2] + 0.5
        return np.concatenate([points.min(1), points.max(1)], axis=1)
