"""TIFF and BigTIFF files: which of their directories is the image, and its pixels.

Reduced pictures and masks (254, bits 0 and 2) are no pages. A picture that hangs below a reduced one
as a SubIFD, as in raw files of cameras, is one, and so is one that is no smaller than what it hangs below,
which then may be a preview that nobody marked. Frames that stand behind the first without directories
of their own are counted by what their writer says.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from assay.data.images.formats.directory import (
    Directory,
    File,
    orientation_of,
    read_chain,
    refuse_xmp,
    xmp_of,
)
from assay.data.images.formats.samples import FormatError, Header, Pixels, Samples, choose_page
from assay.data.images.formats.segments import Segments

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


REDUCED, MASK = 1, 4
"""Bits of the new subfile type."""


MOST_BELOW = 64
"""SubIFDs of one directory."""


def parse(file: File, page: int | None) -> Header:
    """Read the header of a page.

    Raises:
        FormatError: it is damaged, holds several pages of which none was chosen, or is not in the table.
    """
    directory = find_page(file, page)
    segments = Segments(directory)
    decode = partial(_decode, file, segments)
    orientation = orientation_of(directory)
    refuse_xmp(orientation, xmp_of(directory))
    return Header(segments.height, segments.width, orientation or 1, segments.traits, decode)


def find_page(file: File, page: int | None) -> Directory:
    """Find the directory of a page.

    Raises:
        FormatError: as `parse`.
    """
    pages = []
    first = None
    for directory in read_chain(file):
        first = first or directory
        kind = subfile_type(directory)
        is_page = not kind & (REDUCED | MASK)
        below = [each for each in read_below(directory) if _is_image(each)]
        if is_page:
            pages.append(directory)
            below = [each for each in below if _area(each) >= _area(directory)]
        pages += below
    if first is None:
        raise FormatError("it has no directory, and so no image")
    if not pages:
        raise FormatError(
            "its NewSubfileType (254) marks every picture in it as a preview or a mask; save the image itself"
        )
    frames, writer = _hidden_frames(first) if len(pages) == 1 else (1, "")
    if frames > 1 and page != 0:
        choose_page(page if page is None or page >= frames else None, frames, f"frames of {writer}")
    return pages[choose_page(page, len(pages)) if frames == 1 else 0]


def subfile_type(directory: Directory) -> int:
    """Return the new subfile type, or what the old one means in it."""
    if 254 in directory:
        return directory.number(254)
    return {2: REDUCED}.get(directory.number(255, 1), 0)


def read_below(directory: Directory) -> Iterator[Directory]:
    """Read the directories that hang below one (330)."""
    for offset in directory.array(330, MOST_BELOW).tolist():
        yield Directory(directory.file, directory.layout, offset, directory)


def _is_image(directory: Directory) -> bool:
    return not subfile_type(directory) & (REDUCED | MASK)


def _area(directory: Directory) -> int:
    return directory.number(256, 0) * directory.number(257, 0)


def _hidden_frames(directory: Directory) -> tuple[int, str]:
    """Count the frames that a writer put behind the first without a directory, as of large stacks; name the writer."""
    words = directory.array(270, 1 << 20).tobytes() if 270 in directory else b""
    named = re.search(rb"\nimages=(\d{1,9})", words) if words.startswith(b"ImageJ=") else None
    if named:
        return int(named[1]), "ImageJ"
    shape = re.match(rb'{"shape": \[([\d, ]{1,99})\].*"truncated": true', words)
    if shape:
        size = directory.number(256) * directory.number(257) * directory.number(277, 1)
        return math.prod(map(int, shape[1].split(b","))) // size, "tifffile"
    return directory.count(33629), "MetaMorph"


def _decode(file: File, segments: Segments, convert: Callable[[Samples], Pixels]) -> Pixels:
    """Decode all segments, one after the other."""
    rows, columns = segments.grid
    pixels: np.ndarray | None = None
    for index in range(rows * columns):
        part = convert(segments.read(file, index))
        if rows * columns == 1:
            return part
        if pixels is None:
            shape = segments.height, segments.width, *part.shape[2:]
            pixels = np.empty(shape, part.dtype)
        pixels[segments.box(index)] = part
    assert pixels is not None
    return pixels
