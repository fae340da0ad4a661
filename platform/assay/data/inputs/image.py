"""The input of whole images: fitted into a frame of any height and width, and normalised.

One object, made from its settings, serves training, judging and the bundle.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Interval

from assay.config import Share
from assay.data.images.clahe import Clahe
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.normalise import NormaliseConfig, normalise
from assay.errors import ConfigError
from assay.shapes import Float32, Float64, Int64, UInt8


@dataclass(frozen=True, kw_only=True)
class ImageConfig(NormaliseConfig, section="image"):
    """How a whole image becomes an array; part of a bundle's input contract."""

    height_px: Annotated[int, Interval(ge=1, le=32_768)] = 224
    """Height of the frame (pixels)."""
    width_px: Annotated[int, Interval(ge=1, le=32_768)] = 224
    """Width of the frame (pixels)."""
    fit: Literal["scale", "crop", "stretch", "pad"] = "scale"
    """Scale the image until it lies in the frame and pad the rest, until it fills the frame and cut the rest, each side apart, or keep its pixels and pad or cut."""
    box: tuple[Share, Share, Share, Share] = (0.0, 0.0, 1.0, 1.0)
    """Part of the image that is looked at, such as what lies round a nozzle: left, top, right and bottom as shares of its sides; the frame is fitted to it, and nothing beyond it is shown but for what pixels at its edge blend with."""
    clahe_clip: Annotated[float, Interval(ge=0, le=256)] = 0.0
    """Clip limit of local histogram equalisation, before everything else; 0: none."""
    clahe_grid: Annotated[int, Interval(ge=1, le=256)] = 64
    """Tiles of that equalisation along each side of the image."""

    def __post_init__(self) -> None:
        """Refuse a part of the image that is empty."""
        super().__post_init__()
        left, top, right, bottom = self.box
        if left >= right or top >= bottom:
            given = " ".join(f"{side:g}" for side in self.box)
            raise ConfigError(
                f"image.box is {given}, in which nothing lies; give left, top, right and bottom as shares of the image's sides, such as 0.25 0.4 0.75 0.9."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        names = super().idle()
        if not self.clahe_clip:
            names["clahe_grid"] = "image.clahe-clip is 0"
        return names

    @property
    def clahe(self) -> Clahe | None:
        """The equalisation, if there is one."""
        return Clahe(self.clahe_clip, self.clahe_grid) if self.clahe_clip else None


class ImageInput:
    """What a network is shown of a whole image.

    Args:
        config: frame, fit and normalisation.
    """

    def __init__(self, config: ImageConfig) -> None:
        self.config = config

    def show(self, pyramid: ImagePyramid) -> UInt8[np.ndarray, "h w 3"]:
        """Cut the frame from the image's pyramid; zero where the image does not reach.

        Where sides shrink by different factors, the frame is cut by the smaller factor and then
        averaged along the other side.
        """
        config, matrix = self.config, self._matrix(pyramid)
        size, steps = np.array([config.width_px, config.height_px]), np.diag(matrix)
        fine = np.rint(size * np.maximum(steps / max(steps.min(), 1), 1)).astype(int)
        fine_steps = steps * size / fine
        start = self.looked_at(pyramid)[:2] + matrix[:, 2] + (fine_steps - steps) / 2
        window = np.column_stack([np.diag(fine_steps), start])
        shown = pyramid.view(window, int(fine[1]), int(fine[0]), config.clahe, repeat_edge=True)
        if (fine != size).any():
            shown = cv2.resize(shown, size.tolist(), interpolation=cv2.INTER_AREA)
        return shown * self.covered(pyramid)[..., None]

    def covered(self, pyramid: ImagePyramid) -> UInt8[np.ndarray, "h w"]:
        """Mark with 1 the pixels of the frame that the image covers, or the part of it that is looked at."""
        config = self.config
        (step_x, _, x), (_, step_y, y) = self._matrix(pyramid)
        x0, y0, x1, y1 = self.looked_at(pyramid)
        across = x + step_x * np.arange(config.width_px)
        down = y + step_y * np.arange(config.height_px)
        inside_x = (across >= -0.5) & (across <= x1 - x0 - 0.5)
        inside_y = (down >= -0.5) & (down <= y1 - y0 - 0.5)
        return (inside_y[:, None] & inside_x).astype(np.uint8)

    def statistics(
        self, shown: UInt8[np.ndarray, "h w 3"], covered: UInt8[np.ndarray, "h w"]
    ) -> tuple[Float32[np.ndarray, "3"], Float32[np.ndarray, "3"]]:
        """Return the mean and deviation (0 to 1) that the frame is normalised by.

        Those of the image are taken where it covers the frame.
        """
        mean, std = cv2.meanStdDev(shown, mask=covered)
        return self.config.statistics(mean[:, 0] / 255, std[:, 0] / 255)

    def array(self, pyramid: ImagePyramid) -> Float32[np.ndarray, "3 h w"]:
        """Show and normalise an image, as judging and serving do."""
        shown = self.show(pyramid)
        return normalise(shown[None], *self.statistics(shown, self.covered(pyramid)))[0]

    def source_box(self, pyramid: ImagePyramid) -> Float64[np.ndarray, "4"]:
        """Return the part of the image that the frame shows: x0, y0, x1, y1 in its pixels."""
        corner = self.looked_at(pyramid)[:2]
        shown: np.ndarray = self._shown(pyramid) + np.concatenate([corner, corner])
        return shown

    def frame_box(self, pyramid: ImagePyramid) -> Float64[np.ndarray, "4"]:
        """Return the part of the frame where the image stands: x0, y0, x1, y1 as shares of its sides."""
        config, matrix = self.config, self._matrix(pyramid)
        corners = self._shown(pyramid).reshape(2, 2)
        pixels = (corners - 0.5 - matrix[:, 2]) / np.diag(matrix) + 0.5
        box: np.ndarray = (pixels / (config.width_px, config.height_px)).ravel()
        return box

    def _shown(self, pyramid: ImagePyramid) -> Float64[np.ndarray, "4"]:
        """Return which part of what is looked at the frame shows: x0, y0, x1, y1 in pixels."""
        config, matrix, box = self.config, self._matrix(pyramid), self.looked_at(pyramid)
        low = matrix @ np.array([-0.5, -0.5, 1]) + 0.5
        high = matrix @ np.array([config.width_px - 0.5, config.height_px - 0.5, 1]) + 0.5
        edge = box[2:] - box[:2]
        return np.concatenate([np.clip(low, 0, edge), np.clip(high, 0, edge)])

    def looked_at(self, pyramid: ImagePyramid) -> Int64[np.ndarray, "4"]:
        """Return the part of the image that is looked at, in whole pixels and at least one: x0, y0, x1, y1."""
        sides = np.array(pyramid.size[::-1])
        low, high = (
            np.rint(np.array(part) * sides).astype(np.int64)
            for part in (self.config.box[:2], self.config.box[2:])
        )
        low = np.minimum(low, sides - 1)
        return np.concatenate([low, np.maximum(high, low + 1)])

    def _matrix(self, pyramid: ImagePyramid) -> Float64[np.ndarray, "2 3"]:
        """Return the matrix from a pixel of the frame to the pixel of what is looked at, both about their centres."""
        box = self.looked_at(pyramid)
        image = (box[2:] - box[:2]).astype(np.float64)
        frame = np.array([self.config.width_px, self.config.height_px], dtype=np.float64)
        if self.config.fit == "pad":  # whole pixels, the smaller half before the image when odd
            start = np.where(frame >= image, -((frame - image) // 2), (image - frame) // 2)
            return np.column_stack([np.eye(2), start])
        steps = image / frame
        if self.config.fit == "scale":
            steps = np.minimum(steps.max(), image)  # a hair of an image is a pixel wide
        elif self.config.fit == "crop":
            steps = np.full(2, steps.min())
        return np.column_stack([np.diag(steps), (image - 1) / 2 - steps * (frame - 1) / 2])
