"""What an image is compared by: a small grey thumbnail of fixed contrast, and keypoints on it."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from assay.data.images.pyramid import ImagePyramid
from assay.shapes import Float32, Shaped, UInt8

SIDE_PX = 128
"""Longer side of a thumbnail."""


NUM_KEYPOINTS = 64
"""The strongest ones are kept, at about 8 kB an image."""


CONTRAST = 50.0
"""Standard deviation of a thumbnail's values, so that light and contrast do not count."""


_CELLS = (4, 4, 8)
"""Layout of a SIFT descriptor: cells of a square, and directions in each."""


_FINEST = 0.7
"""Standard deviation of a first blur, which takes away what no resampled copy keeps (pixels)."""


_BLURS = (2.0, 4.0, 8.0)
"""Standard deviations of the blur that detail stands out from (pixels)."""


_DETAIL = 3.0
"""The first blur is taken from which a thumbnail differs by so much (root mean square): smooth images have detail at coarser scales alone."""


@dataclass(frozen=True)
class Sketch:
    """A thumbnail and its keypoints."""

    thumbnail: UInt8[np.ndarray, "h w"]
    points: Float32[np.ndarray, "n 2"]
    """x and y in the thumbnail (pixels)."""
    descriptors: UInt8[np.ndarray, "n 128"]
    """RootSIFT (Arandjelovic & Zisserman 2012), in steps of 1/512."""

    @cached_property
    def blur(self) -> float:
        """The least blur that takes something away from the thumbnail, or the greatest."""
        for blur in _BLURS[:-1]:
            if np.sqrt(np.mean(detail(self.thumbnail, blur, np.inf) ** 2)) >= _DETAIL:
                return blur
        return _BLURS[-1]

    @property
    def units(self) -> Float32[np.ndarray, "n 128"]:
        """Descriptors of length 1."""
        return to_units(self.descriptors)


def thumbnail(entry: ImagePyramid) -> UInt8[np.ndarray, "h w"]:
    """Show an image in grey at `SIDE_PX`, its mean at 128 and its contrast fixed.

    Reads the coarsest level that is large enough; images of any depth look alike.
    """
    *_, pixels = (x for x in entry.levels if x is entry.levels[0] or max(x.shape[:2]) >= SIDE_PX)
    return standardise(np.asarray(pixels))


def standardise(pixels: Shaped[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "side _"]:
    """Turn pixels into a thumbnail."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    scale = SIDE_PX / max(grey.shape)
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    small = (small - small.mean()) * (CONTRAST / max(float(small.std()), 1e-6))
    return np.clip(small + 128, 0, 255).astype(np.uint8)


def sketch(thumb: UInt8[np.ndarray, "h w"]) -> Sketch:
    """Find the keypoints of a thumbnail and describe them (SIFT: Lowe 2004)."""
    sift = cv2.SIFT.create(nfeatures=NUM_KEYPOINTS, contrastThreshold=0.015, edgeThreshold=15)
    keypoints, raw = sift.detectAndCompute(thumb, None)
    if raw is None:
        return Sketch(thumb, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    raw = raw[:NUM_KEYPOINTS]
    root = np.sqrt(raw / np.maximum(raw.sum(1, keepdims=True), 1e-6))
    points = np.array([keypoint.pt for keypoint in keypoints[:NUM_KEYPOINTS]], np.float32)
    return Sketch(thumb, points, np.clip(root * 512, 0, 255).astype(np.uint8))


def to_units(descriptors: UInt8[np.ndarray, "n 128"]) -> Float32[np.ndarray, "n 128"]:
    """Give descriptors the length 1, so that a product of two is their cosine."""
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1)


def mirrored(descriptors: Shaped[np.ndarray, "n 128"]) -> Shaped[np.ndarray, "n 128"]:
    """Return what the descriptors would be on the mirrored image: rows of cells and directions reversed."""
    cells = descriptors.reshape(-1, *_CELLS)[:, ::-1]
    return cells[..., -np.arange(_CELLS[2]) % _CELLS[2]].reshape(-1, 128)


def detail(thumb: UInt8[np.ndarray, "h w"], blur: float, most: float) -> Float32[np.ndarray, "h w"]:
    """Take a thumbnail less its own blur, cut off at `most` either way."""
    fine = cv2.GaussianBlur(thumb.astype(np.float32), (0, 0), _FINEST)
    return np.clip(fine - cv2.GaussianBlur(fine, (0, 0), blur), -most, most)
