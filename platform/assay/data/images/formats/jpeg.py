"""JPEG files: which kinds are read, and a check that no scan ends early.

libjpeg fills with grey what is missing and says so on stderr alone. So the data are also fed, scan by
scan, to Pillow's decoder, which waits where data are missing; at an eighth of the size this costs a
good half of a decoding. What lacks a few bytes at its very end may pass.

Source: ITU-T T.81 (JPEG), annex B; CIPA DC-007 (several pictures in one file).
"""

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from assay.data.images.formats.directory import File, read_at, read_chain, read_orientation
from assay.data.images.formats.samples import FormatError, Header, Pixels, Samples, choose_page

MAGIC = (b"\xff\xd8\xff",)


MOST_MARKERS = 10_000


MOST_SCANS = 128


MOST_CHECKED = 4096
"""Restart intervals of a scan that are checked one by one; of more only their number is."""


FRAMES = {0xC0: "baseline", 0xC1: "sequential", 0xC2: "progressive"}
"""Kinds that are read, by the frame's marker."""


OTHER_FRAMES = {
    0xC3: "lossless (SOF3)",
    0xC5: "hierarchical (SOF5)",
    0xC6: "hierarchical (SOF6)",
    0xC7: "hierarchical (SOF7)",
    0xC9: "arithmetic coding (SOF9)",
    0xCA: "arithmetic coding (SOF10)",
    0xCB: "arithmetic coding (SOF11)",
    0xCD: "arithmetic coding (SOF13)",
    0xCE: "arithmetic coding (SOF14)",
    0xCF: "arithmetic coding (SOF15)",
}


COLOURS = {1: "grey", 3: "rgb", 4: "inks"}
"""By the number of components."""


PAD = b"\xff\0" * 8
"""Bits that end a scan, as many as the decoder wants to look ahead."""


_MARKER = re.compile(rb"\xff([\x01-\xfe])")


@dataclass
class Frame:
    """What stands before the first scan."""

    kind: int = 0
    precision: int = 8
    height: int = 0
    width: int = 0
    components: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Sampling factors (horizontal, vertical) by the component's number."""
    interval: int = 0
    """Blocks between two restart markers."""
    adobe: int | None = None
    """Adobe's colour transform."""
    is_jfif: bool = False
    orientation: int = 1
    pictures: tuple[int, ...] = ()
    """Where further pictures begin that are no previews."""
    scan: int = 0
    """Where the first scan's header begins."""


def parse(file: File, page: int | None) -> Header:
    """Read the header.

    Raises:
        FormatError: it is damaged or of a kind that is not read, or holds several pictures of which
            none was chosen.
    """
    frame = _read_frame(file)
    page = choose_page(page, 1 + len(frame.pictures), "pictures")
    if page:
        file = io.BytesIO(
            read_at(file, frame.pictures[page - 1], _length(file) - frame.pictures[page - 1])
        )
        frame = _read_frame(file)
    _check_frame(frame)
    return Header(frame.height, frame.width, frame.orientation, partial(_decode, file, frame))


def decode_part(content: bytes, size: tuple[int, int], colours: str | None) -> np.ndarray:
    """Decode a strip or a tile of a TIFF file, whose tag says which colours it holds (none: grey).

    Raises:
        FormatError: it is damaged, of another size or of other colours.
    """
    frame = _read_frame(io.BytesIO(content))
    _check_frame(frame)
    if (frame.height, frame.width) != size:
        raise FormatError(f"a JPEG in it is of another size: {frame.width} x {frame.height} pixels")
    if len(frame.components) != (3 if colours else 1):
        raise FormatError(f"a JPEG in it has {len(frame.components)} components")
    if colours == "RGB" and (frame.is_jfif or frame.adobe == 1):
        raise FormatError(
            "its PhotometricInterpretation (262) is 2 (RGB), and a JPEG in it holds YCbCr"
        )
    spaces = {"colorspace": colours, "outcolorspace": "RGB"} if colours else {}
    return _decode_whole(content, frame, **spaces)


def _length(file: File) -> int:
    return file.seek(0, io.SEEK_END)


def _read_frame(file: File) -> Frame:
    """Read the markers up to the first scan."""
    frame, at = Frame(), 2
    for _ in range(MOST_MARKERS):
        start = read_at(file, at, 4)
        if start[0] != 0xFF:
            raise FormatError("its header is damaged: a marker is missing")
        if start[1] in (0xFF, 0x01, *range(0xD0, 0xD9)):  # filling, or a marker without content
            at += 1 if start[1] == 0xFF else 2
            continue
        size = int.from_bytes(start[2:], "big")
        if start[1] == 0xDA:
            frame.scan = at
            return frame
        if start[1] == 0xD9 or size < 2:
            raise FormatError("its header is damaged: it ends before its image")
        if start[1] in _READERS or start[1] in FRAMES or start[1] in OTHER_FRAMES:
            content = read_at(file, at + 4, size - 2) if size > 2 else b""
            _READERS.get(start[1], _read_sizes)(frame, start[1], content, at)
        at += 2 + size
    raise FormatError(f"its header has more than {MOST_MARKERS} markers")


def _read_sizes(frame: Frame, kind: int, content: bytes, at: int) -> None:
    """Read a frame's header."""
    if frame.kind:
        raise FormatError("its header is damaged: it has several frames")
    num = content[5] if len(content) > 5 else 0
    if len(content) != 6 + 3 * num:
        raise FormatError("its header is damaged: its frame is cut off")
    frame.kind, frame.precision = kind, content[0]
    frame.height, frame.width = (int.from_bytes(content[i : i + 2], "big") for i in (1, 3))
    for number, sampling, _ in zip(content[6::3], content[7::3], content[8::3], strict=True):
        frame.components[number] = sampling >> 4, sampling & 15


def _read_interval(frame: Frame, kind: int, content: bytes, at: int) -> None:
    frame.interval = int.from_bytes(content[:2], "big")


def _read_jfif(frame: Frame, kind: int, content: bytes, at: int) -> None:
    frame.is_jfif |= content.startswith(b"JFIF\0")


def _read_exif(frame: Frame, kind: int, content: bytes, at: int) -> None:
    if content.startswith(b"Exif\0\0") and frame.orientation == 1:
        frame.orientation = read_orientation(content)


def _read_adobe(frame: Frame, kind: int, content: bytes, at: int) -> None:
    if content.startswith(b"Adobe") and len(content) >= 12:
        frame.adobe = content[11]


def _read_pictures(frame: Frame, kind: int, content: bytes, at: int) -> None:
    """Read the index of a file of several pictures; previews and those of no type are no pages."""
    if not content.startswith(b"MPF\0"):
        return
    try:
        (index, *_) = read_chain(io.BytesIO(content[4:]))
        entries = index.array(0xB002).reshape(-1, 16)
        order = index.layout.order
    except (FormatError, ValueError):  # pictures that cannot be told are not read
        return
    numbers = np.frombuffer(entries.astype(np.uint8).tobytes(), np.dtype(f"{order}u4")).reshape(
        -1, 4
    )
    starts = [int(offset) for kind, _, offset, _ in numbers[1:] if kind >> 16 & 255 == 2]
    frame.pictures = tuple(at + 8 + start for start in starts)


_READERS: dict[int, Callable[[Frame, int, bytes, int], None]] = {
    0xDD: _read_interval,
    0xE0: _read_jfif,
    0xE1: _read_exif,
    0xE2: _read_pictures,
    0xEE: _read_adobe,
}


def _check_frame(frame: Frame) -> None:
    """Refuse kinds that are not read, by name."""
    num = len(frame.components)
    if frame.kind not in FRAMES:
        kind = OTHER_FRAMES.get(frame.kind, "without a frame")
        raise FormatError(f"its JPEG is {kind}; save it as baseline JPEG or as PNG")
    if frame.precision != 8:
        raise FormatError(
            f"its JPEG has {frame.precision} bits per sample, 8 are read; save it as PNG of 16 bits"
        )
    if num not in COLOURS or not frame.width or not frame.height:
        raise FormatError(
            f"its JPEG has {num} components and {frame.width} x {frame.height} pixels; 1, 3 or 4 components are read"
        )
    if num == 4 and frame.adobe not in (0, 2):
        raise FormatError(
            "its JPEG has 4 components and no Adobe marker that says which colours they are; save it as RGB"
        )
    if num == 3 and frame.adobe not in (None, 0, 1):
        raise FormatError(f"its JPEG has the Adobe colour transform {frame.adobe}; save it as RGB")
    if any(not 1 <= side <= 4 for factors in frame.components.values() for side in factors):
        raise FormatError("its header is damaged: its sampling factors are not from 1 to 4")


def _decode(file: File, frame: Frame, convert: Callable[[Samples], Pixels]) -> Pixels:
    content = read_at(file, 0, _length(file))
    if len(frame.components) == 4:
        _check_whole(content, frame)
        return convert(Samples(np.array(JpegImageFile(io.BytesIO(content))), "inks"))
    colour: Any = COLOURS[len(frame.components)]
    return convert(Samples(_decode_whole(content, frame), colour))


def _decode_whole(content: bytes, frame: Frame, **spaces: Any) -> np.ndarray:
    """Decode grey or RGB.

    Raises:
        FormatError: its data end early.
    """
    import imagecodecs  # a file of another format is read without it

    _check_whole(content, frame)
    pixels = imagecodecs.jpeg8_decode(content, **spaces)
    if pixels.shape[:2] != (frame.height, frame.width):
        raise FormatError(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels were decoded, not those of its header"
        )
    return pixels


@dataclass
class Scan:
    """Where the parts of a scan between restart markers end."""

    ends: list[int]
    num_parts: int
    """As many as its size and the restart interval ask for."""


def find_scans(content: bytes, frame: Frame) -> list[Scan]:
    """Find the scans, up to the end of the image.

    Raises:
        FormatError: a scan, a restart interval or the end marker is missing.
    """
    scans: list[Scan] = []
    interval, at, marks = frame.interval, frame.scan, 0
    missing = {(number, i): 16 for number in frame.components for i in range(64)}
    while True:
        marker = _MARKER.search(content, at)
        if marker is None:
            raise FormatError("it is truncated, its end marker is missing")
        code, at = marker[1][0], marker.end()
        if 0xD0 <= code <= 0xD7:
            if scans:
                scans[-1].ends.append(marker.start())
            continue
        if scans and len(scans[-1].ends) < scans[-1].num_parts:
            scans[-1].ends.append(marker.start())
            _check_parts(scans[-1])
        if code == 0xD9:
            break
        size = int.from_bytes(content[at : at + 2], "big")
        marks += 1
        if marks > MOST_MARKERS or len(scans) > MOST_SCANS:
            raise FormatError(f"it has more than {MOST_SCANS} scans or {MOST_MARKERS} markers")
        if code == 0xDD:
            interval = int.from_bytes(content[at + 2 : at + 4], "big")
        elif code == 0xDA:
            scans.append(_read_scan(content[at + 2 : at + size], frame, interval, missing))
        at += max(size, 2)
    if any(missing.values()):
        raise FormatError("it is truncated, scans of it are missing")
    return scans


def _read_scan(
    header: bytes, frame: Frame, interval: int, missing: dict[tuple[int, int], int]
) -> Scan:
    """Count the parts of a scan by its header, and cross off what it brings."""
    num = header[0] if header else 0
    if len(header) != 4 + 2 * num or not set(header[1 : 1 + 2 * num : 2]) <= set(frame.components):
        raise FormatError("a scan's header is damaged")
    numbers = header[1 : 1 + 2 * num : 2]
    first, last, approximation = header[-3:]
    if frame.kind != 0xC2:
        first, last, approximation = 0, 63, 0
    for number in numbers:
        for i in range(first, min(last, 63) + 1):
            missing[number, i] = approximation & 15
    most_x, most_y = (
        max(factors[axis] for factors in frame.components.values()) for axis in (0, 1)
    )
    if num == 1:
        across, down = frame.components[numbers[0]]
        width, height = -(-frame.width * across // most_x), -(-frame.height * down // most_y)
        blocks = math.ceil(width / 8) * math.ceil(height / 8)
    else:
        blocks = math.ceil(frame.width / (8 * most_x)) * math.ceil(frame.height / (8 * most_y))
    return Scan([], -(-blocks // interval) if interval else 1)


def _check_parts(scan: Scan) -> None:
    if len(scan.ends) < scan.num_parts:
        raise FormatError(
            f"its data end early: a scan has {len(scan.ends)} of {scan.num_parts} restart intervals"
        )


def _check_whole(content: bytes, frame: Frame) -> None:
    """Decode in pieces, at an eighth of the size, and see that each part is whole.

    A decoder that has all blocks of a part skips what follows; one that lacks some keeps it back.

    Raises:
        FormatError: data are missing.
    """
    mode, raw = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK")}[len(frame.components)]
    image = Image.new(mode, (-(-frame.width // 8), -(-frame.height // 8)))
    decoder = Image._getdecoder(mode, "jpeg", (raw, ""), (8, 0))
    decoder.setimage(image.im, (0, 0, *image.size))
    scans = find_scans(content, frame)
    ends = [
        end
        for scan in scans
        for end in (scan.ends if len(scan.ends) <= MOST_CHECKED else scan.ends[-1:])
    ]
    start = 0
    for end in ends:
        piece = content[start:end] + PAD
        start = end
        num, error = decoder.decode(piece)
        if num == len(piece):
            num, error = decoder.decode(b"\0")
            if num == 1:
                continue
        if num < 0 and not error and end == ends[-1]:
            return
        raise FormatError("its data end early" if num >= 0 else "its data are damaged")
