"""Changes of whole images, crops and masks while training; the one file that imports albumentations.

What acts on patches that are cut lazily from huge images is in `augment` and `photometric`.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Interval

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it asks no network
import albumentations

from assay.config import Settings, Share
from assay.shapes import UInt8


@dataclass(frozen=True, kw_only=True)
class TransformConfig(Settings, section="transform"):
    """How an image and its mask are changed; everything is drawn anew for each sample."""

    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    vflip: Share = 0.5
    """Probability of a vertical flip."""
    degrees: Annotated[float, Interval(ge=0, le=180)] = 15.0
    """Rotation by up to this either way (degrees)."""
    scale: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Scaling by up to this share either way, of height and width apart."""
    affine: Share = 0.5
    """Probability of rotation and scaling."""
    brightness: Share = 0.2
    """Change of brightness by up to this either way, of full scale."""
    contrast: Share = 0.2
    """Change of contrast by up to this share either way."""
    noise: Share = 0.0
    """Largest standard deviation of the noise that half of the samples get, of full scale."""


def change(
    config: TransformConfig,
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    seed: int,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Change an image and its mask alike, a function of the seed (below 2**31) alone."""
    compose = _transforms(config)
    compose.set_random_seed(seed)
    changed = compose(image=np.ascontiguousarray(image), mask=np.ascontiguousarray(mask))
    return changed["image"], changed["mask"]


def change_colours(
    image: UInt8[np.ndarray, "h w 3"], jitter: float, grey: float, blur: float, seed: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Jitter, grey and blur an image with these probabilities, as DINOv2 does."""
    compose = _colours(jitter, grey, blur)
    compose.set_random_seed(seed)
    changed: np.ndarray = compose(image=image)["image"]
    return changed


@lru_cache(maxsize=4)
def _transforms(config: TransformConfig) -> albumentations.Compose:
    limit = config.degrees
    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=config.hflip),
            albumentations.VerticalFlip(p=config.vflip),
            albumentations.Affine(
                scale=(1 - config.scale, 1 + config.scale),
                rotate=(-limit, limit),
                border_mode=cv2.BORDER_REFLECT_101,
                p=config.affine,
            ),
            albumentations.RandomBrightnessContrast(
                brightness_limit=config.brightness, contrast_limit=config.contrast, p=1.0
            ),
            albumentations.GaussNoise(
                std_range=(0.0, config.noise), p=0.5 if config.noise else 0.0
            ),
        ]
    )


@lru_cache(maxsize=4)
def _colours(jitter: float, grey: float, blur: float) -> albumentations.Compose:
    return albumentations.Compose(
        [
            albumentations.ColorJitter(
                brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=jitter
            ),
            albumentations.ToGray(p=grey),
            albumentations.GaussianBlur(sigma_limit=(0.1, 2.0), blur_limit=0, p=blur),
        ]
    )
