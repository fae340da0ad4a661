"""What a file's header says of how its pixels are to be seen: its orientation, and whether they are numbers of colours."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from assay.data.images import decode
from assay.data.images.formats import webp
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


@dataclass(frozen=True)
class Header:
    """An image file's format, Pillow's mode of its pixels, and its EXIF orientation (1: stored upright)."""

    format: str
    mode: str
    orientation: int
    is_lossy: bool = False
    """Its compression changes values: JPEG, and WebP but for its lossless form."""


def read_header(path: Path) -> Header:
    """Read a file's header.

    Raises:
        MaskError: it is no image.
    """
    reason = "its format is not known"
    try:
        turned = decode.orientation(path, page=0)
        with path.open("rb") as file:
            if file.read(2) in (b"II", b"MM"):
                return Header("TIFF", _tiff_mode(path), turned)
    except ImageError as error:
        raise MaskError(f"{error} Mend the file, or leave it out.") from None
    except Exception as error:  # tifffile raises what its parts raise
        raise MaskError(f"The header of {path} cannot be read ({error}); mend the file.") from None
    for plugin in (JpegImageFile, PngImageFile, BmpImageFile, WebPImageFile):
        try:
            with plugin(path) as image:
                return Header(str(image.format), image.mode, turned, _is_lossy(path))
        except SyntaxError:  # of another format
            continue
        except (OSError, ValueError, TypeError, struct.error) as error:
            reason = str(error)
    raise MaskError(f"The header of {path} cannot be read ({reason}); mend the file.")


def _is_lossy(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(12)
        is_webp = start.startswith(webp.MAGIC) and start.endswith(b"WEBP")
        return start.startswith(b"\xff\xd8") or (is_webp and webp.is_lossy(file))


def _tiff_mode(path: Path) -> str:
    """Name the mode of a TIFF's first directory: Pillow does not open all that is read as an image."""
    from tifffile import PHOTOMETRIC, TiffFile  # a file of another format is read without it

    with TiffFile(path) as file:
        page = file.pages.first
        is_palette = page.photometric == PHOTOMETRIC.PALETTE
        modes = {1: "P" if is_palette else "L", 2: "LA", 3: "RGB", 4: "RGBA"}
        return modes.get(page.samplesperpixel, "RGBA")


def turn(mask: UInt8[np.ndarray, "h w"], orientation: int) -> UInt8[np.ndarray, "rows columns"]:
    """Bring a mask that was drawn on stored pixels upright."""
    if orientation == 1:
        return mask
    return np.array(Image.fromarray(mask).transpose(_TURNS[orientation]))


def as_stored(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return height and width of the stored pixels of an upright image."""
    return size[::-1] if orientation >= 5 else size
