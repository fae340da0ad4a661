"""Crops of an image and its mask to train on: where they are cut, and how they are changed.

This file alone imports albumentations.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Interval, MultipleOf

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it asks no network
import albumentations

from assay.config import Settings, Share
from assay.data.images.decode import to_uint8
from assay.data.images.pixels import Pixels
from assay.data.inputs.tiles import cut_inside
from assay.shapes import Int, UInt8

KNOWN_PIXELS = 4096
"""Pixels inside a mask that are remembered to cut around."""


@dataclass(frozen=True, kw_only=True)
class CropConfig(Settings, section="crops"):
    """How crops are drawn from an image; everything is drawn anew for each sample."""

    crop_px: Annotated[int, Ge(32), MultipleOf(32)] = 256
    """Side of a crop (pixels), a multiple of 32."""
    around: Share = 0.5
    """Share of crops cut around a pixel of the mask, where it has any; others fall anywhere (1)."""
    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    vflip: Share = 0.5
    """Probability of a vertical flip."""
    degrees: Annotated[float, Ge(0)] = 15.0
    """Rotation by up to this either way (degrees)."""
    scale: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Scaling by up to this either way (1)."""
    affine: Share = 0.5
    """Probability of rotation and scaling."""
    brightness: Share = 0.2
    """Change of brightness by up to this either way, of full scale (1)."""
    contrast: Share = 0.2
    """Change of contrast by up to this either way (1)."""
    noise: Share = 0.0
    """Largest standard deviation of added noise, of full scale (1)."""


def draw_crop(
    pixels: Pixels, row: int, config: CropConfig, key: int
) -> tuple[UInt8[np.ndarray, "side side 3"], UInt8[np.ndarray, "side side"]]:
    """One crop of a row's image and of its mask of kind label, a function of row and key alone."""
    rng = np.random.default_rng(key)
    mask, side = pixels.mask(row, "label"), config.crop_px
    height, width = mask.shape
    centre = rng.uniform(0, (height, width))
    inside = _inside(pixels.masks["label"][row], pixels.store.place, mask)
    if rng.random() < config.around and len(inside):
        centre = inside[rng.integers(len(inside))] + rng.uniform(-side / 4, side / 4, 2)
    most = np.maximum((height - side, width - side), 0)
    top, left = np.clip(centre - side / 2, 0, most).astype(int).tolist()
    image = to_uint8(cut_inside(pixels[row].pixels, left, top, side))
    own = cut_inside(mask, left, top, side)
    change = _changes(config)
    change.set_random_seed(int(rng.integers(1 << 31)))
    made = change(image=np.ascontiguousarray(image), mask=np.ascontiguousarray(own))
    return made["image"], made["mask"]


_remembered: dict[tuple[str, str], Int[np.ndarray, "n 2"]] = {}


def _inside(content: str, place: str, mask: UInt8[np.ndarray, "h w"]) -> Int[np.ndarray, "n 2"]:
    """Some of the pixels (row, column) inside a mask, spread evenly; found once per process."""
    known = _remembered.get((place, content))
    if known is None:
        flat = np.flatnonzero(mask)
        flat = flat[:: max(1, len(flat) // KNOWN_PIXELS)]
        known = np.stack(np.divmod(flat, mask.shape[1]), axis=1)
        _remembered[place, content] = known
    return known


@lru_cache(maxsize=4)
def _changes(config: CropConfig) -> albumentations.Compose:
    return albumentations.Compose([
        albumentations.HorizontalFlip(p=config.hflip),
        albumentations.VerticalFlip(p=config.vflip),
        albumentations.Affine(
            scale=(1 - config.scale, 1 + config.scale), rotate=(-config.degrees, config.degrees),
            border_mode=cv2.BORDER_REFLECT_101, p=config.affine,
        ),
        albumentations.RandomBrightnessContrast(
            brightness_limit=config.brightness, contrast_limit=config.contrast, p=1.0
        ),
        albumentations.GaussNoise(std_range=(0.0, config.noise), p=0.5 if config.noise else 0.0),
    ])  # fmt: skip
