"""The EXIF orientation of a file, and masks brought upright by it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from assay.data.images import decode
from assay.errors import ImageError, MaskError
from assay.shapes import UInt8

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings stored pixels upright (Exif 2.32, tag 0x0112)."""


class Stand(NamedTuple):
    """An image's size when it stands upright, and the EXIF orientation (1: stored so) that it is turned by."""

    size: tuple[int, int]
    orientation: int

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width of the stored pixels."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def read_stand(path: Path, page: int | None) -> Stand:
    """Read how the page of an image stands.

    Raises:
        ImageError: it is no image.
    """
    return Stand(decode.probe(path, page=page), decode.orientation(path, page=page))


def read_orientation(path: Path) -> int:
    """Read the EXIF orientation of a mask.

    Raises:
        MaskError: it is no image.
    """
    try:
        return decode.orientation(path)
    except ImageError as error:
        raise MaskError(f"{error} Mend the file, or leave it out.") from None


def turn(mask: UInt8[np.ndarray, "h w"], orientation: int) -> UInt8[np.ndarray, "rows columns"]:
    """Bring a mask that was drawn on stored pixels upright."""
    if orientation == 1:
        return mask
    return np.array(Image.fromarray(mask).transpose(_TURNS[orientation]))
