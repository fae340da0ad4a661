"""Corruptions: what a line may do to the pictures of sound and defective parts alike, five strengths each."""

from functools import cache
from typing import Literal, get_args

import albumentations
import cv2
import numpy as np

from assay.shapes import UInt8

Kind = Literal["light", "blur", "rotation", "noise", "jpeg"]

KINDS: tuple[Kind, ...] = get_args(Kind)

AMOUNTS: dict[Kind, tuple[float, ...]] = {
    "light": (0.1, 0.2, 0.3, 0.4, 0.5),
    "blur": (0.5, 1.0, 1.5, 2.0, 3.0),
    "rotation": (5.0, 15.0, 30.0, 60.0, 90.0),
    "noise": (0.02, 0.04, 0.08, 0.12, 0.2),
    "jpeg": (80.0, 50.0, 25.0, 12.0, 6.0),
}
"""Amount at strengths 1 to 5, in the unit of `MEANINGS`."""

MEANINGS: dict[Kind, str] = {
    "light": "brighter or darker by this share of full scale, cut off beyond it",
    "blur": "deviation of a Gaussian (pixels of the frame)",
    "rotation": "angle to either side (degrees)",
    "noise": "deviation of Gaussian noise (share of full scale)",
    "jpeg": "quality of JPEG",
}


def corrupt(
    image: UInt8[np.ndarray, "h w 3"], kind: Kind, strength: int, seed: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Corrupt an image at a strength of 1 to 5, a function of the seed (below 2**31) alone.

    What is drawn (the sign of a change of light or of an angle, the noise) is the same at every strength.
    """
    amount = AMOUNTS[kind][strength - 1]
    is_signed = kind in ("light", "rotation") and seed % 2
    compose = _corruption(kind, -amount if is_signed else amount)
    compose.set_random_seed(seed)
    changed: np.ndarray = compose(image=np.ascontiguousarray(image))["image"]
    return changed


@cache
def _corruption(kind: Kind, amount: float) -> albumentations.Compose:
    limits = (amount, amount)
    if kind == "light":
        step = albumentations.RandomBrightnessContrast(limits, (0.0, 0.0), p=1)
    elif kind == "blur":
        step = albumentations.GaussianBlur(blur_limit=0, sigma_limit=limits, p=1)
    elif kind == "rotation":
        step = albumentations.Affine(rotate=limits, border_mode=cv2.BORDER_REPLICATE, p=1)
    elif kind == "noise":
        step = albumentations.GaussNoise(limits, p=1)
    else:
        step = albumentations.ImageCompression("jpeg", (int(amount), int(amount)), p=1)
    return albumentations.Compose([step])
