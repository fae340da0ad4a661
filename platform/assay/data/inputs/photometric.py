"""Changes of pixel values: what `augment` drew for patches of an image, and CLAHE of a whole image.

CLAHE is part of the input contract, not of the augmentation: it is the same in training and use.
"""

import cv2
import numpy as np

from assay.data.inputs.augment import Augment
from assay.shapes import UInt8

GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma


def photometric(
    patches: UInt8[np.ndarray, "n h w 3"], augment: Augment, mean: float, key: int
) -> UInt8[np.ndarray, "n h w 3"]:
    """Apply what was drawn to patches of one image, before normalisation.

    In this order: brightness, contrast, gamma (one table), saturation, resampling, noise. Values
    are rounded once per table, not after every step. Patches come back themselves if nothing was
    drawn.

    Args:
        patches: Patches cut from the image.
        augment: What was drawn for the image.
        mean: Grey mean of the whole image in [0, 1], about which contrast changes.
        key: Number >= 0 of this cut, so that different cuts get different noise.
    """
    num, height, width, _ = patches.shape
    if not patches.size:
        return patches
    if not augment.brightness == augment.contrast == augment.gamma == 1:
        patches = cv2.LUT(patches.reshape(num * height, -1), tone_table(augment, mean))
    if augment.saturation != 1:
        keep = augment.saturation * np.eye(3) + (1 - augment.saturation) * GREY
        patches = cv2.transform(patches.reshape(num * height, width, 3), keep)
    patches = patches.reshape(num, height, width, 3)
    if augment.resample < 1:
        patches = _resample(patches, augment.resample)
    if augment.noise != "none":
        rng = np.random.default_rng((augment.noise_seed, key))
        patches = _NOISE[augment.noise](patches, augment.noise_strength, rng)
    return patches


def tone_table(augment: Augment, mean: float) -> UInt8[np.ndarray, "256"]:
    """Return what brightness, contrast and gamma make of each value; contrast changes about the grey mean."""
    values = np.clip(np.arange(256) / 255 * augment.brightness, 0, 1)
    pivot = min(mean * augment.brightness, 1.0)
    values = np.clip(pivot + augment.contrast * (values - pivot), 0, 1)
    return np.rint(255 * values**augment.gamma).astype(np.uint8)


def _resample(patches: UInt8[np.ndarray, "n h w 3"], factor: float) -> UInt8[np.ndarray, "n h w 3"]:
    height, width = patches.shape[1:3]
    small = max(1, round(width * factor)), max(1, round(height * factor))
    return np.stack([cv2.resize(cv2.resize(patch, small), (width, height)) for patch in patches])


def _gaussian(
    patches: UInt8[np.ndarray, "n h w 3"], strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "n h w 3"]:
    noise = rng.standard_normal(patches.shape, np.float32)
    noise *= 255 * strength
    rows = patches.shape[0] * patches.shape[1], -1
    noisy = cv2.add(patches.reshape(rows), noise.reshape(rows), dtype=cv2.CV_8U)
    return noisy.reshape(patches.shape)


def _salt_pepper(
    patches: UInt8[np.ndarray, "n h w 3"], strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "n h w 3"]:
    draws = rng.random(patches.shape[:3], np.float32)
    noisy = patches.copy()
    noisy[draws < strength / 2] = 255
    noisy[draws >= 1 - strength / 2] = 0
    return noisy


_NOISE = {"gaussian": _gaussian, "salt_pepper": _salt_pepper}
