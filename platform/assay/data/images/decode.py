"""Read one image file right: colours, bit depth, orientation, and a refusal when it is damaged.

The header is read first: its magic bytes choose the format, its tags the decoder, by the tables in
`formats`, and its size is checked against a limit. Only then are pixels decoded. What is not in a
table is refused by its name.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np

from assay.data.images.formats import bmp, jpeg, png, tiff, webp
from assay.data.images.formats.directory import File
from assay.data.images.formats.samples import FormatError, Header, Samples, Traits
from assay.errors import ImageError
from assay.files import open_file, write_whole
from assay.shapes import Float32, Shaped, UInt8, UInt16

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


MAX_PIXELS = 400_000_000


FORMATS = (jpeg, png, bmp, tiff, webp)


Source: TypeAlias = str | os.PathLike[str] | bytes


Rgb: TypeAlias = (
    UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"]
)


Plane: TypeAlias = UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]


def read(
    source: Source,
    *,
    max_pixels: int = MAX_PIXELS,
    called: str = "",
    page: int | None = None,
) -> Rgb:
    """Decode an image to RGB, upright by its EXIF orientation.

    Grey is repeated in the three channels; an alpha channel or a transparent palette entry is
    ignored (the colours under it are kept, and divided by alpha where they are multiplied by it);
    inks are converted without a colour profile. Pixels are uint16 exactly when the file holds more
    than 8 bits per channel; those of 10, 12 and 14 bits keep their values.

    Args:
        source: Path of the file, or its bytes.
        max_pixels: Height times width above which the file is refused before decoding.
        called: What an error calls it, instead of its path.
        page: Which image of a file that holds several, from 0; none: such a file is refused.

    Raises:
        ImageError: The file is missing, truncated, damaged or too large, or of a kind that is not
            read.
    """
    with _open(source, page, max_pixels, called) as header:
        return _upright(header.decode(Samples.rgb), header.orientation)


def read_plane(
    source: Source,
    plane: Literal["level", "index", "alpha"],
    *,
    page: int | None = None,
) -> Plane:
    """Decode one upright plane of a file that is a mask and not a picture.

    Args:
        source: Path of the file, or its bytes.
        plane: "level": the grey value, or the largest of the colours; "index": the number stored in
            a grey or palette file, or in equal colours; "alpha": the alpha channel, of 8 bits.
        page: As for `read`.

    Raises:
        ImageError: As `read`; or the file has no such plane.
    """
    with _open(source, page, MAX_PIXELS) as header:
        pixels = header.decode(lambda samples: samples.plane(plane))
        return _upright(pixels, header.orientation)


def probe(source: Source, *, page: int | None = None) -> tuple[int, int]:
    """Read height and width of the upright image in pixels from the header alone.

    Raises:
        ImageError: The file is missing, its header is damaged, or it is of a kind that is not read.
    """
    with _open(source, page, None) as header:
        size = header.height, header.width
        return size[::-1] if header.orientation >= 5 else size


def orientation(source: Source, *, page: int | None = None) -> int:
    """Read the EXIF orientation (1 to 8) that `read` undoes; 1: the image is stored upright.

    Raises:
        ImageError: As `probe`.
    """
    with _open(source, page, None) as header:
        return header.orientation


def traits(source: Source, *, page: int | None = None) -> Traits:
    """Read from the header what the samples are.

    Raises:
        ImageError: As `probe`.
    """
    with _open(source, page, None) as header:
        return header.traits


def write_png(path: Path, pixels: Shaped[np.ndarray, "h w"] | Shaped[np.ndarray, "h w 3"]) -> None:
    """Write grey or RGB pixels of 8 or 16 bits without loss; an OSError comes through."""
    ordered = pixels if pixels.ndim == 2 else pixels[:, :, ::-1]
    write_whole(path, cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes())


def name(source: Source) -> str:
    """Return what errors call an image."""
    return "<bytes>" if isinstance(source, bytes) else os.fspath(source)


def stream(source: Source) -> File:
    """Open the bytes of an image; an OSError comes through."""
    return io.BytesIO(source) if isinstance(source, bytes) else open_file(os.fspath(source))


@contextmanager
def _open(
    source: Source, page: int | None, max_pixels: int | None, called: str = ""
) -> Iterator[Header]:
    """Open a file and read its header; whatever goes wrong until the end names the file."""
    try:
        with stream(source) as file:
            header = _parse(file, page)
            num = header.height * header.width
            if max_pixels is not None and num > max_pixels:
                raise FormatError(
                    f"it has {header.width} x {header.height} = {num} pixels, the limit is "
                    f"{max_pixels}; raise the limit if the file is to be trusted"
                )
            yield header
    except ModuleNotFoundError:  # no fault of the file
        raise
    except Exception as error:  # each decoder has errors of its own
        raise ImageError(
            f"Image {called or name(source)} cannot be read: {_reason(error)}."
        ) from error


def _parse(file: File, page: int | None) -> Header:
    """Read the header by the format that the first bytes name."""
    magic = file.read(12)
    if not magic:
        raise FormatError("it is empty")
    for form in FORMATS:
        if magic.startswith(form.MAGIC) and (form is not webp or magic[8:] == b"WEBP"):
            return form.parse(file, page)
    raise FormatError(
        f"it begins with {magic[:8]!r}, and only JPEG, PNG, BMP, TIFF and WebP files are read"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FormatError):
        return str(error)
    if isinstance(error, MemoryError):
        return "its pixels do not fit in memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"its data are truncated or damaged ({str(error) or type(error).__name__})"


def _upright(
    pixels: Shaped[np.ndarray, "h w *channels"], orientation: int
) -> Shaped[np.ndarray, "rows columns *channels"]:
    """Undo an EXIF orientation (Exif 2.32, tag 0x0112: where row 0 and column 0 are seen)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.require(pixels, requirements=["C", "W"])
