"""BMP files: which headers and compressions are read, and their pixels.

Whatever a header says is taken as it stands: a palette of two greys is one, and runs that leave pixels
out are refused, since readers fill them as they like.

Source: Bitmap storage (Microsoft, Windows GDI); for OS/2 as Pillow and ImageMagick read it.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from assay.data.images.formats.directory import File, read_at
from assay.data.images.formats.samples import FormatError, Header, Pixels, Samples, Traits

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


PLAIN = {16: MASKS[16][1], 32: MASKS[32][0]}
"""The same, where it does not."""


@dataclass(frozen=True)
class Layout:
    """What the header says; rows stand from the last to the first unless `is_top_down`."""

    width: int
    height: int
    is_top_down: bool
    bits: int
    compression: int
    start: int
    """Where the pixels begin."""
    palette: tuple[int, int, int]
    """Where the palette begins, bytes of a colour, and the number of colours."""
    masks: tuple[int, ...] = ()


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
        compression = used = 0
    else:
        fields = struct.unpack("<iiHHI12xI", read_at(file, 18, 32))
        width, height, _, bits, compression, used = fields
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
    if page:
        raise FormatError(f"it holds 1 page, and --data.page {page} counts from 0")
    if width < 1 or not height or (height < 0 and compression in (1, 2)):
        raise FormatError(f"its header says {width} x {height} pixels, compression {compression}")
    masks = _read_masks(file, size, bits) if compression == 3 else PLAIN.get(bits, ())
    palette = _place_palette(start, size, bits, used)
    layout = Layout(width, abs(height), height < 0, bits, compression, start, palette, masks)
    colour: Any = "palette" if bits <= 8 else "rgb"
    traits = Traits("BMP", colour, has_alpha=any(masks[3:]))
    return Header(layout.height, width, 1, traits, partial(_decode, file, layout))


def _read_masks(file: File, size: int, bits: int) -> tuple[int, ...]:
    num = 3 if size < 56 or bits == 16 else 4
    masks = *struct.unpack(f"<{num}I", read_at(file, 54, 4 * num)), *[0] * (4 - num)
    if masks not in MASKS[bits]:
        names = ", ".join(f"{mask:#x}" for mask in masks)
        raise FormatError(
            f"its BMP has {bits} bits in fields that are not read ({names}); save it as PNG"
        )
    return masks


def _place_palette(start: int, size: int, bits: int, used: int) -> tuple[int, int, int]:
    """Find the palette between header and pixels."""
    if bits > 8:
        return 0, 0, 0
    if used > 1 << bits:
        raise FormatError(f"its palette has {used} colours, and {bits} bits tell {1 << bits} apart")
    each = 3 if size == 12 else 4
    return 14 + size, each, min(used or 1 << bits, (start - 14 - size) // each)


def _decode(file: File, layout: Layout, convert: Callable[[Samples], Pixels]) -> Pixels:
    if layout.compression in (1, 2):
        rows = _unpack_runs(file, layout)
    else:
        stride = -(-layout.width * layout.bits // 32) * 4
        content = read_at(file, layout.start, stride * layout.height)
        rows = np.frombuffer(content, np.uint8).reshape(layout.height, stride)
    rows = rows if layout.is_top_down else rows[::-1]
    if layout.bits > 8:
        return convert(_colours(rows, layout))
    if layout.compression == 0:
        rows = _numbers(rows, layout.bits)[:, : layout.width]
    start, each, num = layout.palette
    content = read_at(file, start, each * num)
    palette = np.frombuffer(content, np.uint8).reshape(num, each)[:, 2::-1]
    return convert(Samples(np.ascontiguousarray(rows), "palette", palette=palette))


def _numbers(rows: np.ndarray, bits: int) -> np.ndarray:
    """Take numbers of 1, 4 or 8 bits apart, the highest first."""
    if bits == 1:
        return np.unpackbits(rows, axis=1)
    if bits == 4:
        return np.stack([rows >> 4, rows & 15], 2).reshape(len(rows), -1)
    return rows


def _colours(rows: np.ndarray, layout: Layout) -> Samples:
    """Take the fields of each pixel apart, and bring those of fewer bits to 8."""
    if layout.bits == 24:
        pixels = rows[:, : 3 * layout.width].reshape(layout.height, layout.width, 3)
        return Samples(np.ascontiguousarray(pixels[..., ::-1]), "rgb")
    packed = rows.copy().view(f"<u{layout.bits // 8}")[:, : layout.width].astype(np.uint32)
    planes = []
    for mask in filter(None, layout.masks):
        low = mask & -mask
        planes.append(((packed & mask) // low * 255 // (mask // low)).astype(np.uint8))
    alpha = planes.pop() if len(planes) == 4 else None
    return Samples(np.stack(planes, 2), "rgb", alpha=alpha)


def _unpack_runs(file: File, layout: Layout) -> np.ndarray:
    """Undo run lengths, row by row from the last.

    Raises:
        FormatError: a row has more or fewer pixels than the image is wide, or the runs end early.
    """
    file.seek(layout.start)
    content, width, num = file.read(), layout.width, layout.width * layout.height
    pixels, at, ends = bytearray(), 0, 0
    while len(pixels) <= num and at + 2 <= len(content):
        count, value = content[at], content[at + 1]
        at += 2
        if count:
            pixels += _spread(bytes([value]) * count, count, layout.bits)
        elif value > 2:  # as many pixels as they stand, padded to an even number of bytes
            size = value if layout.bits == 8 else (value + 1) // 2
            pixels += _spread(content[at : at + size], value, layout.bits)
            at += size + size % 2
        elif value == 0 and len(pixels) == (ends + 1) * width:
            ends += 1
        elif value == 1 and len(pixels) == num and ends >= layout.height - 1:
            return np.frombuffer(bytes(pixels), np.uint8).reshape(layout.height, width)
        else:
            break
    raise FormatError(
        f"its run lengths end early, leave pixels out or leave its rows of {width} pixels; save it as PNG"
    )


def _spread(content: bytes, num: int, bits: int) -> bytes:
    """Take so many numbers of 4 or 8 bits apart."""
    if bits == 8:
        return content[:num]
    return bytes(part for byte in content for part in (byte >> 4, byte & 15))[:num]
