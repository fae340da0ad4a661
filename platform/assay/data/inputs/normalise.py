"""What is taken from pixel values, and what they are divided by, before a network sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Interval

from assay.config import Settings
from assay.shapes import Float, Float32, UInt8

EPS = 1e-6
"""Added to a standard deviation before it divides."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Constants that most published weights were trained with."""


Mean = Annotated[float, Interval(ge=0, le=1)]
Deviation = Annotated[float, Interval(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class NormaliseConfig(Settings):
    """What images are normalised by; part of a bundle's input contract."""

    normalise: Literal["image", "imagenet", "constants"] = "image"
    """Less the mean and over the deviation of the image itself (its light and contrast are gone), of ImageNet, or of `mean` and `std`."""
    mean: tuple[Mean, Mean, Mean] = (0.5, 0.5, 0.5)
    """Means of red, green and blue (0 to 1), for constants."""
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    """Deviations of red, green and blue (of values from 0 to 1), for constants."""

    def differs(self, mean: Sequence[float], std: Sequence[float]) -> str:
        """Say how to normalise by these constants, where others are taken; empty where they are taken, or the image's own."""
        ours = self.statistics(np.zeros(3), np.ones(3))
        if self.normalise == "image" or np.allclose(ours, (mean, std), atol=1e-3):
            return ""
        constants = " ".join(
            f"--{self._section}.{name} {' '.join(f'{v:g}' for v in values)}"
            for name, values in (("mean", mean), ("std", std))
        )
        return f"--{self._section}.normalise constants {constants}"

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        if self.normalise == "constants":
            return {}
        return dict.fromkeys(("mean", "std"), f"{self._section}.normalise is {self.normalise}")

    def statistics(
        self, mean: Float[np.ndarray, "3"], std: Float[np.ndarray, "3"]
    ) -> tuple[Float32[np.ndarray, "3"], Float32[np.ndarray, "3"]]:
        """Return what an image of this mean and deviation (0 to 1) is normalised by.

        The deviation of an image counts as one grey level at least, so that a blank one stays finite.
        """
        if self.normalise == "imagenet":
            mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
        elif self.normalise == "constants":
            mean, std = np.array(self.mean), np.array(self.std)
        else:
            std = np.maximum(std, 1 / 255)
        return mean.astype(np.float32), std.astype(np.float32)


def normalise(
    pixels: UInt8[np.ndarray, "n h w 3"],
    mean: Float[np.ndarray, "3"],
    std: Float[np.ndarray, "3"],
) -> Float32[np.ndarray, "n 3 h w"]:
    """Return pixels less the mean, over the deviation (both in [0, 1]), by a table of the 256 values."""
    values = ((np.arange(256)[:, None] / 255 - mean) / (std + EPS)).astype(np.float32)
    num, height, width, channels = pixels.shape
    planes = np.empty((num, channels, height, width), np.float32)
    for image, of_image in zip(pixels, planes, strict=True):
        for channel, table, plane in zip(cv2.split(image), values.T, of_image, strict=True):
            cv2.LUT(channel, np.ascontiguousarray(table), dst=plane)
    return planes
