"""BMP files: which headers and compressions are read; pixels by Pillow."""

import os
import struct
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile

from assay.data.images.formats.directory import File, read_at
from assay.data.images.formats.samples import FormatError, Header, Pixels, Samples

MAGIC = (b"BM",)


HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Bytes of the headers that are read."""


DEPTHS = {0: (1, 4, 8, 16, 24, 32), 1: (8,), 2: (4,), 3: (16, 32)}
"""Compression (0: none, 1 and 2: run lengths, 3: bit fields): bits per pixel."""


MASKS = {
    16: ((0xF800, 0x7E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0)),
    32: (
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    ),
}
"""Bits per pixel: which bits of a pixel are red, green, blue and alpha, where the header says so."""


def parse(file: File, page: int | None) -> Header:
    """Read the header; a BMP file has one page.

    Raises:
        FormatError: it is damaged or of a kind that is not read.
    """
    start, size = struct.unpack("<II", read_at(file, 10, 8))
    if size not in HEADERS:
        raise FormatError(
            f"its BMP header has {size} bytes, allowed: {', '.join(map(str, HEADERS))}"
        )
    if size == 12:
        width, height, _, bits = struct.unpack("<HHHH", read_at(file, 18, 8))
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack("<iiHHI", read_at(file, 18, 16))
    if start < 14 + size:
        raise FormatError(
            f"its header is damaged: its pixels begin at byte {start} and its header ends at {14 + size}"
        )
    if bits not in DEPTHS.get(compression, ()):
        raise FormatError(
            f"its BMP has compression {compression} and {bits} bits, allowed: "
            + ", ".join(f"{key} with {'/'.join(map(str, bits))}" for key, bits in DEPTHS.items())
            + "; save it as PNG"
        )
    if compression == 3:
        _check_masks(file, size, bits)
    if page:
        raise FormatError(f"it holds 1 page, and --data.page {page} counts from 0")
    if width < 1 or not height:
        raise FormatError(f"its header says {width} x {height} pixels")
    return Header(abs(height), width, 1, partial(_decode, file))


def _check_masks(file: File, size: int, bits: int) -> None:
    num = 3 if size < 56 or bits == 16 else 4
    masks = *struct.unpack(f"<{num}I", read_at(file, 54, 4 * num)), *[0] * (4 - num)
    if masks not in MASKS[bits]:
        names = ", ".join(f"{mask:#x}" for mask in masks)
        raise FormatError(
            f"its BMP has {bits} bits in fields that are not read ({names}); save it as PNG"
        )


def _decode(file: File, convert: Callable[[Samples], Pixels]) -> Pixels:
    file.seek(0, os.SEEK_SET)
    image = BmpImageFile(file)
    image.load()
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return convert(Samples(np.array(image), "palette", palette=palette))
    pixels = np.array(image)
    if image.mode == "1":
        return convert(Samples(pixels.astype(np.uint8), "grey", bits=1))
    if image.mode == "L":
        return convert(Samples(pixels, "grey"))
    alpha = pixels[..., 3] if image.mode == "RGBA" else None
    return convert(Samples(pixels[..., :3], "rgb", alpha=alpha))
