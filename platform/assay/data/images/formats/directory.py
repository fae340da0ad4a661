"""Directories of tags as TIFF files hold them, classic and Big, and EXIF blocks.

Whatever a header says is bounded before it is read: entries of a directory, directories of a file,
values of a tag.

Source: TIFF 6.0 (Adobe, 1992), section 2; BigTIFF (Aware Systems, 2007) as tag and offset widths.
"""

import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from assay.data.images.formats.samples import FormatError

File: TypeAlias = io.BytesIO | io.BufferedReader


MOST_ENTRIES = 4096
MOST_DIRECTORIES = 4096
MOST_VALUES = 65_536
MOST_SEGMENTS = 200_000
"""What is beyond is damage, or an attack."""


ORIENTATION = 274


XMP_PACKET = 700
"""The tag that holds XMP."""


MOST_XMP_BYTES = 1 << 20


NAMES = {
    254: "NewSubfileType",
    255: "SubfileType",
    256: "ImageWidth",
    257: "ImageLength",
    258: "BitsPerSample",
    259: "Compression",
    262: "PhotometricInterpretation",
    266: "FillOrder",
    270: "ImageDescription",
    273: "StripOffsets",
    274: "Orientation",
    277: "SamplesPerPixel",
    278: "RowsPerStrip",
    279: "StripByteCounts",
    284: "PlanarConfiguration",
    292: "T4Options",
    317: "Predictor",
    320: "ColorMap",
    322: "TileWidth",
    323: "TileLength",
    324: "TileOffsets",
    325: "TileByteCounts",
    330: "SubIFDs",
    332: "InkSet",
    336: "DotRange",
    338: "ExtraSamples",
    339: "SampleFormat",
    347: "JPEGTables",
    700: "XMP",
    32997: "ImageDepth",
    33629: "UIC2Tag",
    45058: "MPEntry",
}
"""Tags that are read; of the others nothing is."""


XMP = b"http://ns.adobe.com/xap/1.0/\0"
"""What such a block of a JPEG begins with."""


_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([2-8])")


_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4"}
_TYPES |= {16: "u8", 17: "i8", 18: "u8"}
"""Types of whole numbers and bytes, as NumPy names them."""


@dataclass(frozen=True)
class Layout:
    """Widths of a file: byte order ("<" or ">"), and whether it is a BigTIFF."""

    order: str
    big: bool

    @property
    def entry(self) -> np.dtype:
        """Return one entry of a directory."""
        wide, o = ("u8" if self.big else "u4"), self.order
        place = "V8" if self.big else "V4"
        return np.dtype(
            [("code", f"{o}u2"), ("type", f"{o}u2"), ("count", f"{o}{wide}"), ("value", place)]
        )


class Directory:
    """One directory; of its tags those that are asked for are read.

    Args:
        file: where it stands.
        layout: of the file.
        offset: where it begins.
        above: the directory that it hangs below, if it does.
    """

    def __init__(
        self, file: File, layout: Layout, offset: int, above: "Directory | None" = None
    ) -> None:
        self.file, self.layout, self.offset, self.above = file, layout, offset, above
        head = 8 if layout.big else 2
        (num,) = struct.unpack(
            layout.order + ("Q" if layout.big else "H"), read_at(file, offset, head)
        )
        if not 1 <= num <= MOST_ENTRIES:
            raise FormatError(f"its directory has {num} tags, from 1 to {MOST_ENTRIES} are read")
        entry, wide = layout.entry, layout.entry["value"].itemsize
        content = read_at(file, offset + head, num * entry.itemsize + wide)
        self.next = self._number(content[-wide:])
        self._start = offset + head
        self._entries: dict[int, tuple[int, int, int, bytes]] = {}
        self.twice: set[int] = set()
        """Tags that stand there with two values."""
        for i, (code, kind, count, value) in enumerate(
            np.frombuffer(content[:-wide], entry).tolist()
        ):
            place = self._start + (i + 1) * entry.itemsize - wide
            first = self._entries.setdefault(code, (kind, count, place, value))
            if (kind, count, value) != (*first[:2], first[3]):
                self.twice.add(code)

    def _number(self, content: bytes) -> int:
        return int.from_bytes(content, "little" if self.layout.order == "<" else "big")

    def __contains__(self, code: int) -> bool:
        """Tell whether there is such a tag."""
        return code in self._entries

    def count(self, code: int) -> int:
        """Return how many values a tag has, of any type; 1 where it is missing."""
        return self._entries[code][1] if code in self._entries else 1

    def array(self, code: int, most: int = MOST_VALUES) -> np.ndarray:
        """Read the numbers of a tag; none where it is missing.

        Raises:
            FormatError: it holds other than whole numbers, more than `most`, is cut off, or stands there twice.
        """
        if code not in self._entries:
            return np.zeros(0, np.int64)
        if code in self.twice:
            raise FormatError(f"its directory has the tag {code} ({NAMES[code]}) twice")
        kind, count, place, value = self._entries[code]
        if kind not in _TYPES or not 1 <= count <= most:
            raise FormatError(
                f"its tag {code} ({NAMES[code]}) has {count} values of type {kind}, which is damage"
            )
        dtype = np.dtype(self.layout.order + _TYPES[kind])
        size = count * dtype.itemsize
        where = place if size <= len(value) else self._number(value)
        return np.frombuffer(read_at(self.file, where, size), dtype)

    def numbers(self, code: int) -> tuple[int, ...]:
        """Read a tag of few numbers; none where it is missing."""
        return tuple(self.array(code).tolist())

    def number(self, code: int, default: int | None = None) -> int:
        """Read the one number of a tag.

        Raises:
            FormatError: it is missing and has no default, or holds several that differ.
        """
        values = set(self.numbers(code)) or ({default} if default is not None else set())
        if len(values) != 1:
            raise FormatError(
                f"its tag {code} ({NAMES[code]}) "
                + (f"has the values {sorted(values)}, one is read" if values else "is missing")
            )
        return int(values.pop())


def read_at(file: File, offset: int, num: int) -> bytes:
    """Read bytes at a place.

    Raises:
        FormatError: the file ends before.
    """
    if num <= 0 or offset + num > file.seek(0, os.SEEK_END):
        raise FormatError(f"it is truncated: {num} bytes at {offset} are beyond its end")
    file.seek(offset)
    return file.read(num)


def read_chain(file: File) -> Iterator[Directory]:
    """Read the directories of a TIFF file, or of an EXIF block, in the order of the chain.

    Raises:
        FormatError: it is cut off, goes round in a circle, or has too many.
    """
    start = read_at(file, 0, 8)
    order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
    version = struct.unpack(order + "H", start[2:4])[0] if order else 0
    if version not in (42, 43):
        raise FormatError("its header is none of TIFF")
    layout = Layout(order, version == 43)
    if layout.big:
        sizes = struct.unpack(order + "HH", start[4:])
        if sizes != (8, 0):
            raise FormatError(f"its header has offsets of {sizes[0]} bytes, BigTIFF has 8")
        (offset,) = struct.unpack(order + "Q", read_at(file, 8, 8))
    else:
        (offset,) = struct.unpack(order + "I", start[4:])
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) >= MOST_DIRECTORIES:
            raise FormatError(
                "its directories go round in a circle"
                if offset in seen
                else f"it has more than {MOST_DIRECTORIES} directories"
            )
        seen.add(offset)
        directory = Directory(file, layout, offset)
        yield directory
        offset = directory.next


def read_orientation(exif: bytes) -> int | None:
    """Read the orientation (1 to 8) that an EXIF block says; unreadable EXIF is no reason to lose pixels.

    Raises:
        FormatError: it says two.
    """
    # some writers put the prefix twice, and leave out where the next directory begins
    block = io.BytesIO(re.sub(rb"\A(?:Exif\0\0)+", b"", exif) + bytes(4))
    try:
        directory = next(read_chain(block), None)
    except FormatError:
        return None
    if directory is None:
        return None
    if ORIENTATION in directory.twice:
        raise FormatError("its EXIF says two orientations; save it upright")
    with suppress(FormatError):
        return orientation_of(directory)
    return None


def join_orientation(known: int | None, exif: bytes) -> int | None:
    """Return the orientation that a file's EXIF says, where an earlier block said what is `known`.

    Raises:
        FormatError: the blocks contradict each other, so that each reader turns it as it likes.
    """
    said = read_orientation(exif)
    if known and said and known != said:
        raise FormatError(
            f"its EXIF says orientation {known} and, in another block, {said}; save it upright"
        )
    return said or known


def refuse_xmp(orientation: int | None, xmp: bytes) -> None:
    """Refuse an orientation that XMP alone says, as `refuse_other` does."""
    turned = _XMP.search(xmp)
    refuse_other(orientation, int(turned[1]) if turned else None, "XMP")


def refuse_other(orientation: int | None, said: int | None, where: str) -> None:
    """Refuse an orientation that stands elsewhere alone: some readers turn the image by it, most do not. EXIF's is the one that counts.

    Raises:
        FormatError: there is one, other than upright.
    """
    if orientation is None and said not in (None, 1):
        raise FormatError(
            f"its {where} says orientation {said} and its EXIF none, so that some readers turn it; save it upright"
        )


def xmp_of(directory: Directory) -> bytes:
    """Read the XMP of a directory; none where it is missing or damaged."""
    with suppress(FormatError):
        return directory.array(XMP_PACKET, MOST_XMP_BYTES).tobytes()
    return b""


def orientation_of(directory: Directory) -> int | None:
    """Return the orientation (1 to 8) that a directory says, or else the one that it hangs below."""
    above = directory.above.number(ORIENTATION, 0) if directory.above else 0
    value = directory.number(ORIENTATION, above)
    return value if 1 <= value <= 8 else None
