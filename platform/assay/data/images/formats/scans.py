"""The scans of a JPEG, and a check that none of them ends early.

libjpeg fills with grey what is missing and says so on stderr alone. So the data are also fed, scan by
scan, to Pillow's decoder, which waits where data are missing; at an eighth of the size this costs a
good half of a decoding. What lacks a few bytes at its very end may pass: of files cut by up to 45 bytes, one
in 60.

Source: ITU-T T.81 (JPEG), annexes B and G.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from assay.data.images.formats.samples import FormatError

MOST_MARKERS = 10_000


PROGRESSIVE = 0xC2


MOST_SCANS = 128


MOST_CHECKED = 4096
"""Restart intervals of a scan that are checked one by one; of more only their number is."""


MOST_SPARE = 512
"""Bytes after the last block that are no fault in any case."""


PAD = b"\x7f" * 7
"""Bits that end a scan, as many as the decoder wants to look ahead. Tables give long codes to runs of ones, so that these bits fill no block that is missing."""


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
    orientation: int | None = None
    """By EXIF, 1 to 8."""
    pictures: tuple[tuple[int, bool], ...] = ()
    """Where further pictures begin that are not said to be previews, and whether they are of a named type."""
    scan: int = 0
    """Where the first scan's header begins."""


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
                _check_number(scans[-1], code & 7)
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
    if frame.kind != PROGRESSIVE:
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


def _check_number(scan: Scan, number: int) -> None:
    """Refuse a restart marker out of its turn: decoders leave out what they take to be missing."""
    if number != len(scan.ends) % 8:
        raise FormatError(
            f"its data are damaged: restart marker {len(scan.ends)} of a scan has the number {number}, not {len(scan.ends) % 8}"
        )


def _check_parts(scan: Scan) -> None:
    if len(scan.ends) < scan.num_parts:
        raise FormatError(
            f"its data end early: a scan has {len(scan.ends)} of {scan.num_parts} restart intervals"
        )


def check_whole(content: bytes, frame: Frame) -> None:
    """Decode in pieces, at an eighth of the size, and see that each part is whole.

    A decoder that has all blocks of a part skips what follows; one that lacks some keeps it back.

    Raises:
        FormatError: data are missing, or go on.
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
        if end == ends[-1]:
            start += _refuse_more(decoder, content[start:end])
        piece = content[start:end].rstrip(b"\xff") + PAD
        start = end
        num, error = decoder.decode(piece)
        if num == len(piece):
            num, error = decoder.decode(b"\0")
            if num == 1:
                continue
        if num < 0 and not error and end == ends[-1]:
            return
        raise FormatError("its data end early" if num >= 0 else "its data are damaged")


def _refuse_more(decoder: Any, part: bytes) -> int:
    """Refuse data that go on after the last block, as those of an image that is higher than its header says; return how many bytes are taken in.

    What some writers fill up with, bytes of one value, may stand there, and as much as a twentieth.

    Raises:
        FormatError: they do.
    """
    most = max(MOST_SPARE, len(part) // 20)
    tail = part[len(part) - most :]
    if len(part) <= most or len(set(tail)) < 3:
        return 0
    num, error = decoder.decode(part[: len(part) - most])
    has_all = num < 0 and not error
    if num == len(part) - most:
        has_all = decoder.decode(tail[:1])[0] == 1
    if has_all:
        raise FormatError(
            f"its data go on for more than {most} bytes after the last of its blocks, so its header is of another size"
        )
    return int(max(num, 0))
