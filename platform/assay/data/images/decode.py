"""Read one image file right: colours, bit depth, orientation, and a refusal when it is damaged.

The header is read first (its magic bytes choose the format, its size is checked against a limit),
and only then are pixels decoded, by OpenCV where it is faster or the only one to keep 16 bits,
else by Pillow. Pillow's plugins are opened directly, not through `Image.open`, so that its global
pixel limit neither applies nor has to be changed.
"""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from assay.errors import ImageError
from assay.files import write_whole
from assay.shapes import Shaped, UInt8, UInt16

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


MAX_PIXELS = 400_000_000


File: TypeAlias = io.BytesIO | io.BufferedReader


Source: TypeAlias = str | os.PathLike[str] | bytes


Rgb: TypeAlias = UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"]


Plane: TypeAlias = UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]


_PLUGINS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"RIFF": WebPImageFile,
}


DAMAGE = (
    OSError,
    SyntaxError,
    TypeError,  # a tag of another type than the decoder reckons with
    ValueError,
    EOFError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
    cv2.error,
)
"""What decoders raise at a damaged file."""


_ORIENTATION_TAG = 274


_BITS_PER_SAMPLE_TAG = 258


def read(source: Source, *, max_pixels: int = MAX_PIXELS, called: str = "") -> Rgb:
    """Decode an image to RGB, upright by its EXIF orientation.

    Grey is repeated in the three channels, an alpha channel or a transparent palette entry is
    ignored (the colours under it are kept), CMYK is converted without a colour profile, and of a
    file with several pages the first is read. Pixels are uint16 exactly when the file holds 16 bits
    per channel.

    Args:
        source: Path of the file, or its bytes.
        max_pixels: Height times width above which the file is refused before decoding.
        called: What an error calls it, instead of its path.

    Raises:
        ImageError: The file is missing, of another format, truncated, damaged or too large.
    """
    with _open(source, max_pixels, called) as (file, image):
        orientation = _orientation(image, file)
        return _upright(_decode(image, file), orientation)


def read_plane(source: Source, plane: Literal["level", "index", "alpha"]) -> Plane:
    """Decode one upright plane of a file that is a mask and not a picture.

    Args:
        source: Path of the file, or its bytes.
        plane: "level": the grey value, or the largest of the colours; "index": the number stored in
            a grey or palette file, or in equal colours; "alpha": the alpha channel.

    Raises:
        ImageError: As `read`; or the file has no such plane.
    """
    with _open(source, MAX_PIXELS) as (file, image):
        orientation = _orientation(image, file)
        return _upright(_plane(image, plane), orientation)


def probe(source: Source) -> tuple[int, int]:
    """Read height and width of the upright image in pixels from the header alone.

    Raises:
        ImageError: The file is missing, of another format, or its header is damaged.
    """
    with _open(source, None) as (file, image):
        width, height = image.size
        return (width, height) if _orientation(image, file) >= 5 else (height, width)


def write_png(path: Path, pixels: Shaped[np.ndarray, "h w"] | Shaped[np.ndarray, "h w 3"]) -> None:
    """Write grey or RGB pixels of 8 or 16 bits without loss; an OSError comes through."""
    ordered = pixels if pixels.ndim == 2 else pixels[:, :, ::-1]
    write_whole(path, cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes())


def name(source: Source) -> str:
    """Return what errors call an image."""
    return "<bytes>" if isinstance(source, bytes) else os.fspath(source)


def stream(source: Source) -> File:
    """Open the bytes of an image; an OSError comes through."""
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


@contextmanager
def _open(
    source: Source, max_pixels: int | None, called: str = ""
) -> Iterator[tuple[File, ImageFile]]:
    """Open a file behind its header; whatever goes wrong until the end names the file."""
    try:
        with stream(source) as file:
            image = _plugin(file)(file)
            width, height = image.size
            if max_pixels is not None and width * height > max_pixels:
                raise ValueError(
                    f"it has {width} x {height} = {width * height} pixels, the limit is "
                    f"{max_pixels}; raise the limit if the file is to be trusted"
                )
            yield file, image
    except DAMAGE as error:
        raise ImageError(
            f"Image {called or name(source)} cannot be read: {error or type(error).__name__}."
        ) from error


def _plugin(file: File) -> type[ImageFile]:
    magic = file.read(12)
    file.seek(0)
    for prefix, plugin in _PLUGINS.items():
        if magic.startswith(prefix) and (prefix != b"RIFF" or magic[8:] == b"WEBP"):
            return plugin
    raise ValueError(
        f"it begins with {magic[:8]!r}, and only JPEG, PNG, BMP, TIFF and WebP files are read"
    )


def _orientation(image: ImageFile, file: File) -> int:
    """Return the EXIF orientation still to be applied, 1..8; both decoders apply a TIFF's own."""
    if isinstance(image, TiffImageFile):
        return 1
    try:
        if isinstance(image, PngImageFile):
            # Pillow would decode the whole image to look for EXIF behind the pixels.
            contents = [file.read(n) for kind, n in _png_chunks(file) if kind == b"eXIf"]
            exif = Image.Exif()
            exif.load(b"".join(contents[:1]))
        else:
            exif = image.getexif()
        value = exif.get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, struct.error):  # unreadable EXIF is no reason to lose pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_chunks(file: File) -> Iterator[tuple[bytes, int]]:
    """Yield kind and length of each whole chunk, with the file at its content; go back at the end."""
    position = file.tell()
    start, size = 8, file.seek(0, os.SEEK_END)
    while start + 12 <= size:
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        start += length + 12
        if start <= size:
            yield kind, length
    file.seek(position)


def _decode(image: ImageFile, file: File) -> Rgb:
    bits = _bits(image)
    if bits not in {1, 2, 4, 8, 16} or image.mode in {"I", "F"}:
        raise ValueError(f"its channels have {bits} bits ({image.mode}); allowed: up to 8, or 16")
    is_simple = isinstance(image, JpegImageFile | PngImageFile)
    if is_simple:
        _check_end(image, file)
    deep = bits == 16 and (image.mode.startswith("I;16") or image.mode in {"RGB", "RGBA", "LA"})
    if deep or (is_simple and image.mode in {"L", "RGB"}):
        return _decode_cv2(image, file)
    image.load()
    image.info.pop("transparency", None)  # Pillow warns when it is dropped with a palette
    return np.array(image.convert("RGB"))


def _bits(image: ImageFile) -> int:
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE_TAG, (1,))))
    if isinstance(image, PngImageFile):
        return 16 if str(image.tile[0].args).endswith("16B") else 8
    return 8


def _check_end(image: ImageFile, file: File) -> None:
    """Refuse a file without an end marker after its header (a thumbnail's stands inside the header)."""
    if isinstance(image, JpegImageFile):
        start = file.tell()
        is_whole = b"\xff\xd9" in file.read()
        file.seek(start)
    else:
        is_whole = any(kind == b"IEND" for kind, _ in list(_png_chunks(file)))
    if not is_whole:
        raise ValueError("it is truncated, its end marker is missing")


def _plane(image: ImageFile, plane: Literal["level", "index", "alpha"]) -> Plane:
    deep = _bits(image) > 8
    image.load()
    if plane == "alpha":
        if not image.has_transparency_data:
            raise ValueError("it has no alpha channel")
        return np.array(image.convert("RGBA").getchannel("A"))
    if image.mode in {"I", "F"}:
        raise ValueError(f"its values are of mode {image.mode}; allowed: up to 16 bits, whole")
    if image.mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)
    if plane == "index" and image.mode in {"1", "L", "P"}:
        return np.array(image).astype(np.uint8)
    image.info.pop("transparency", None)  # Pillow warns when it is dropped with a palette
    colours = np.array(image.convert("RGB"))
    if plane == "index" and (deep or (colours != colours[:, :, :1]).any()):
        raise ValueError("it holds colours, which are no class numbers; save it as grey of 8 bits")
    return colours.max(2)


def _decode_cv2(image: ImageFile, file: File) -> Rgb:
    file.seek(0)
    content = np.frombuffer(file.read(), np.uint8)
    # OpenCV 5.0 mixes up the channels of a 16-bit TIFF when asked for RGB.
    is_tiff = isinstance(image, TiffImageFile)
    order = cv2.IMREAD_COLOR if is_tiff else cv2.IMREAD_COLOR_RGB
    flags = order | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(content, flags)
    if pixels is None:
        raise ValueError("its pixels are truncated or damaged")
    if is_tiff:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    if pixels.shape[1::-1] != image.size:
        raise ValueError(f"{pixels.shape[1::-1]} pixels decoded, {image.size} in the header")
    return pixels


def _upright(
    pixels: Shaped[np.ndarray, "h w *channels"], orientation: int
) -> Shaped[np.ndarray, "rows columns *channels"]:
    """Undo an EXIF orientation (Exif 2.32, tag 0x0112: where row 0 and column 0 are seen)."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
