"""Changes of whole images, crops and masks while training; this and `corrupt` alone import albumentations.

What acts on patches that are cut lazily from huge images is in `augment` and `photometric`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import albumentations
import cv2
import numpy as np
from annotated_types import Interval

from assay.config import Settings, Share
from assay.shapes import Float, UInt8

NOISY = 0.5
"""Share of the samples that get noise."""


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
    translate: Share = 0.0
    """Shift by up to this share of the frame's sides either way."""
    affine: Share = 0.5
    """Probability of rotation, scaling and shift."""
    brightness: Annotated[float, Interval(ge=0, le=5)] = 0.2
    """Change of brightness by up to this either way (standard deviations of the image)."""
    contrast: Share = 0.2
    """Change of contrast about the image's mean by up to this share either way."""
    saturation: Share = 0.0
    """Change of saturation by up to this share either way."""
    hue: Annotated[float, Interval(ge=0, le=0.5)] = 0.0
    """Turn of the hue by up to this either way (whole turns); grey stays as it is."""
    noise: Annotated[float, Interval(ge=0, le=5)] = 0.0
    """Largest deviation of the noise that half of the samples get (standard deviations of the image)."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        section = self._section
        if not self.affine:
            return dict.fromkeys(("degrees", "scale", "translate"), f"{section}.affine is 0")
        if not (self.degrees or self.scale or self.translate):
            return {"affine": f"{section}.degrees, {section}.scale and {section}.translate are 0"}
        return {}


def change(
    config: TransformConfig,
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    seed: int,
    mean: Float[np.ndarray, "3"],
    std: Float[np.ndarray, "3"],
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Change an image and its mask alike, a function of the seed (below 2**31) alone.

    Light changes by amounts that are measured in the image's own contrast: what is little in a
    photograph drowns a faint defect on grey steel.

    Args:
        config: what may be changed.
        image: all of an image, or a crop.
        mask: of the same size.
        seed: of what is drawn.
        mean: of the whole image (0 to 1).
        std: of the whole image (0 to 1).
    """
    compose = _transforms(config)
    compose.set_random_seed(seed)
    changed = compose(image=np.ascontiguousarray(image), mask=np.ascontiguousarray(mask))
    lit = _expose(config, changed["image"], np.random.default_rng(seed), mean.mean(), std.mean())
    return lit, changed["mask"]


def _expose(
    config: TransformConfig,
    image: UInt8[np.ndarray, "h w 3"],
    rng: np.random.Generator,
    mean: float,
    std: float,
) -> UInt8[np.ndarray, "h w 3"]:
    """Change contrast and brightness, then add noise; values are rounded once."""
    gain = 1 + config.contrast * rng.uniform(-1, 1)
    offset = 255 * (mean * (1 - gain) + config.brightness * std * rng.uniform(-1, 1))
    is_noisy, strength = rng.random() < NOISY, 255 * std * config.noise * rng.random()
    if not (is_noisy and strength):
        table = np.rint(np.arange(256) * gain + offset).clip(0, 255).astype(np.uint8)
        return cv2.LUT(image, table)
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(strength)
    lit = image * np.float32(gain) + np.float32(offset) + noise
    return np.rint(lit).clip(0, 255).astype(np.uint8)


def change_colours(
    image: UInt8[np.ndarray, "h w 3"],
    jitter: float,
    grey: float,
    blur: float,
    solarise: float,
    seed: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """Jitter, grey, blur and solarise an image with these probabilities, as DINOv2 does."""
    compose = _colours(jitter, grey, blur, solarise)
    compose.set_random_seed(seed)
    changed: np.ndarray = compose(image=image)["image"]
    return changed


@lru_cache(maxsize=4)
def _transforms(config: TransformConfig) -> albumentations.Compose:
    limit, shift = config.degrees, config.translate
    transforms = [
        albumentations.HorizontalFlip(p=config.hflip),
        albumentations.VerticalFlip(p=config.vflip),
        albumentations.Affine(
            scale=(1 - config.scale, 1 + config.scale),
            translate_percent=(-shift, shift) if shift else None,
            rotate=(-limit, limit),
            border_mode=cv2.BORDER_REFLECT_101,
            p=config.affine,
        ),
    ]
    if config.saturation or config.hue:
        saturation = (1 - config.saturation, 1 + config.saturation)
        same = (1.0, 1.0)
        colours = albumentations.ColorJitter(
            brightness=same, contrast=same, saturation=saturation, hue=config.hue, p=1.0
        )
        transforms.append(colours)
    return albumentations.Compose(transforms)


@lru_cache(maxsize=8)
def _colours(jitter: float, grey: float, blur: float, solarise: float) -> albumentations.Compose:
    return albumentations.Compose(
        [
            albumentations.ColorJitter(
                brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=jitter
            ),
            albumentations.ToGray(p=grey),
            albumentations.GaussianBlur(sigma_limit=(0.1, 2.0), blur_limit=0, p=blur),
            albumentations.Solarize(threshold_range=(0.5, 0.5), p=solarise),
        ]
    )
