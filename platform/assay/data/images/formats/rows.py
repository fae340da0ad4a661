"""Rows of a PNG: inflated and checked here, and handed to libpng without compression.

imagecodecs' reading of what libpng refuses never frees the image, and drops a reference to None that is
not its own, by which a process that lives long enough ends (imagecodecs 2026.3.6, CPython 3.11: tried
16,000 times). So libpng is given nothing that it could refuse. It costs no time: libdeflate inflates in
half of zlib's.

Source: PNG (W3C, third edition), sections 8 to 10; RFC 1950 and 1951 (stored blocks).
"""

import logging
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from assay.data.images.formats.samples import FormatError

MAGIC = b"\x89PNG\r\n\x1a\n"


CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Samples of a pixel by colour type; a palette's numbers are read as grey."""


PASSES = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
"""Adam7: first row and column of each pass, and their steps."""


MOST_STORED = 65_535
"""Bytes of a block that is not compressed."""


MOST_OF_CHUNK = 1 << 30


FILTERS = 5

# libpng says of each interlaced file that it was not told so; it is no damage
logging.getLogger("imagecodecs").addHandler(logging.NullHandler())
logging.getLogger("imagecodecs").propagate = False


@dataclass(frozen=True)
class Form:
    """What a header says of rows: bits per sample, colour type, and whether they are interlaced."""

    bits: int
    kind: int
    interlace: int

    def parts(self, width: int, height: int) -> list[tuple[int, int]]:
        """Return the rows, and the bytes of each with that of its filter, of each pass."""
        passes = PASSES if self.interlace else ((0, 0, 1, 1),)
        sizes = [(-(-(height - y) // dy), -(-(width - x) // dx)) for y, x, dy, dx in passes]
        depth = self.bits * CHANNELS[self.kind]
        return [
            (rows, 1 + -(-columns * depth // 8))
            for rows, columns in sizes
            if min(rows, columns) > 0
        ]


def decode(content: bytes, width: int, height: int, form: Form) -> np.ndarray:
    """Decode compressed rows to pixels of 8 or 16 bits.

    Raises:
        FormatError: they are damaged or end early; what follows the last is passed over.
    """
    import imagecodecs  # a file of another format is read without it

    parts = form.parts(width, height)
    rows = _inflate(content, sum(num * size for num, size in parts))
    _check_filters(rows, parts)
    head = struct.pack(">IIBBBBB", width, height, form.bits, form.kind, 0, 0, form.interlace)
    stored = b"".join([MAGIC, *chunk(b"IHDR", head), *_store(rows), *chunk(b"IEND", b"")])
    del rows
    return imagecodecs.png_decode(stored)


def chunk(kind: bytes, *content: bytes | memoryview) -> list[bytes | memoryview]:
    """Frame a chunk."""
    sums = zlib.crc32(kind)
    for part in content:
        sums = zlib.crc32(part, sums)
    size = struct.pack(">I", sum(map(len, content)))
    return [size, kind, *content, struct.pack(">I", sums)]


def _inflate(content: bytes, need: int) -> bytes:
    import imagecodecs

    try:
        rows = bytes(imagecodecs.deflate_decode(content, out=need))
    except imagecodecs.DeflateError as error:
        if "SPACE" not in str(error):
            raise FormatError(f"its pixels are truncated or damaged ({error})") from None
        rows = zlib.decompressobj().decompress(content, need)  # it goes on behind the last row
    if len(rows) != need:
        raise FormatError(
            f"its pixels are truncated or damaged ({len(rows)} bytes, of {need} that its header asks for)"
        )
    return rows


def _check_filters(rows: bytes, parts: list[tuple[int, int]]) -> None:
    start, values = 0, np.frombuffer(rows, np.uint8)
    for num, size in parts:
        filters = values[start : start + num * size : size]
        if filters.max() >= FILTERS:
            raise FormatError(f"its pixels are damaged (a row has the filter {filters.max()})")
        start += num * size


def _store(rows: bytes) -> Iterator[bytes | memoryview]:
    """Yield IDAT chunks that hold rows in blocks that are not compressed."""
    whole, pieces, size = memoryview(rows), list[bytes | memoryview]([b"\x78\x01"]), 0
    for start in range(0, len(whole), MOST_STORED):
        block = whole[start : start + MOST_STORED]
        is_last = start + MOST_STORED >= len(whole)
        pieces += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
        size += len(block)
        if size >= MOST_OF_CHUNK and not is_last:
            yield from chunk(b"IDAT", *pieces)
            pieces, size = [], 0
    yield from chunk(b"IDAT", *pieces, struct.pack(">I", zlib.adler32(rows)))
