"""The scans of a JPEG, and its pixels if none of them ends early.

libjpeg fills with grey what is missing, and warns. Here a warning is a refusal, but for bytes after the
last block that writers fill up with. What libjpeg does not warn of is looked for before: scans and
restart intervals that are missing.

Source: ITU-T T.81 (JPEG), annexes B and G; Adobe Technical Note 5116, section 18 (the APP14 marker).
"""

import math
import re
import struct
from dataclasses import dataclass, field

import numpy as np

from assay.data.images.formats.samples import FormatError

MOST_MARKERS = 10_000


PROGRESSIVE = 0xC2


MOST_SCANS = 128


MOST_SPARE = 16
"""Bytes of any kind after the last block, as of encoders that write whole words; what is missing in the middle leaves more behind."""


MOST_FILLING, MOST_FILLED = 4, 1 << 15
"""Bytes that fill up each part of a scan, and parts that are looked at for them: what a file may make one decode anew is bounded so."""


SPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}
"""What is decoded to, by the number of components."""


_MARKER = re.compile(rb"\xff([\x01-\xfe])")


_SPARE = re.compile(r"(\d+) extraneous bytes before marker (0x..)")


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
    xmp: bytes = b""
    pictures: tuple[tuple[int, bool], ...] = ()
    """Where further pictures begin that are not said to be previews, and whether they are of a named type."""
    segments: list[slice] = field(default_factory=list)
    """Where that stands which a decoder needs: all but applications' data and comments."""
    scan: int = 0
    """Where the first scan's header begins."""

    @property
    def transform(self) -> int:
        """Adobe's number of the colours that the components hold: 0 as they are, 1 YCbCr, 2 YCCK."""
        if self.adobe is not None:
            return self.adobe
        is_ycc = len(self.components) == 3 and bytes(self.components) != b"RGB"
        return int(self.is_jfif or is_ycc)


@dataclass
class Scan:
    """How many parts between restart markers a scan has, and how many its size and the restart interval ask for."""

    num_parts: int
    num_due: int


def find_scans(content: bytes, frame: Frame) -> tuple[int, list[int]]:
    """Find the end of the image, after its end marker, and where the scans' headers end.

    Raises:
        FormatError: a scan, a restart interval or the end marker is missing.
    """
    scans: list[Scan] = []
    heads: list[int] = []
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
                scans[-1].num_parts += 1
            continue
        if scans:
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
            heads.append(at + size)
        at += max(size, 2)
    if any(missing.values()):
        raise FormatError("it is truncated, scans of it are missing")
    return at, heads


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
    return Scan(1, -(-blocks // interval) if interval else 1)


def _check_number(scan: Scan, number: int) -> None:
    """Refuse a restart marker out of its turn: decoders leave out what they take to be missing."""
    due = (scan.num_parts - 1) % 8
    if number != due:
        raise FormatError(
            f"its data are damaged: restart marker {scan.num_parts - 1} of a scan has the number {number}, not {due}"
        )


def _check_parts(scan: Scan) -> None:
    if scan.num_parts < scan.num_due:
        raise FormatError(
            f"its data end early: a scan has {scan.num_parts} of {scan.num_due} restart intervals"
        )


def decode_scans(content: bytes, frame: Frame, transform: int) -> tuple[np.ndarray, int]:
    """Decode the image, whose components hold these colours (`Frame.transform`).

    Returns:
        Pixels (height, width) or (height, width, components), and where the image ends.

    Raises:
        FormatError: data are missing, damaged, or go on after the last block.
    """
    end, heads = find_scans(content, frame)
    bare = _take_bare(content[:end], heads, frame, transform)
    space = SPACES[len(frame.components)]
    pixels = _decode(bare, space)
    is_parted = frame.interval and len(heads) == 1 and frame.kind != PROGRESSIVE
    if isinstance(pixels, str) and is_parted and _SPARE.search(pixels):
        bare = _drop_filling(bare, frame)
        pixels = _decode(bare, space)
    if isinstance(pixels, str):
        _check_spare(bare, pixels)
        pixels = _decode(bare, space, strict=False)
        if isinstance(pixels, str):
            raise FormatError(_name_fault(pixels))
    return pixels[..., 0] if space == "GRAY" else pixels, end


def _decode(content: bytes, space: str, strict: bool = True) -> np.ndarray | str:
    """Decode to these colours; or return what libjpeg warns of first."""
    import simplejpeg  # a file of another format is read without it

    try:
        return simplejpeg.decode_jpeg(content, space, strict=strict)
    except ValueError as error:
        return str(error)


def _drop_filling(content: bytes, frame: Frame) -> bytes:
    """Drop bytes of ones or zeros between the last block and a restart marker, with which the encoders of cameras fill up.

    Each part of the one scan is decoded as an image of its own, one row of its blocks, which shows what it can do without.
    """
    at, sizes = 18, 0  # behind the first marker and Adobe's
    while content[at + 1] != 0xDA:
        if content[at + 1] == frame.kind:
            sizes = at + 5
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    begin = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    sampling = frame.components.values() if len(frame.components) > 1 else [(1, 1)]
    width, height = (8 * max(factors[axis] for factors in sampling) for axis in (0, 1))
    width *= frame.interval
    pieces = re.split(rb"(\xff[\xd0-\xd7])", content[begin:-2])
    if width >= 1 << 16 or len(pieces) > 2 * MOST_FILLED:
        return content
    head = content[:sizes] + struct.pack(">HH", height, width) + content[sizes + 4 : begin]
    for i in range(0, len(pieces) - 1, 2):
        pieces[i] = _trim(pieces[i], head, SPACES[len(frame.components)])
    return b"".join((content[:begin], *pieces, content[-2:]))


def _trim(part: bytes, head: bytes, space: str) -> bytes:
    """Leave out what fills a part up, as long as no block is missing then; ones stand as 0xff with a 0 behind."""
    for _ in range(MOST_FILLING):
        less = part[:-2] if part.endswith(b"\xff\0") else part.removesuffix(b"\0")
        if less == part:
            break
        image = _decode(head + less + b"\xff\xd9", space)
        if isinstance(image, str) and _is_short(image):
            break
        part = less
    return part


def _is_short(warning: str) -> bool:
    return "premature end" in warning.lower()


def _take_bare(content: bytes, heads: list[int], frame: Frame, transform: int) -> bytes:
    """Take what a decoder needs, with a marker that names the colours, so that nothing else decides on them or is warned of."""
    scans = bytearray(content[frame.scan :])
    if frame.kind != PROGRESSIVE:
        # Without meaning in a sequential scan, and wrong in the files of many cameras
        for head in heads:
            scans[head - 3 - frame.scan : head - frame.scan] = b"\0\x3f\0"
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    return b"".join((b"\xff\xd8", adobe, *(content[each] for each in frame.segments), scans))


def _check_spare(content: bytes, warning: str) -> None:
    """Refuse what is warned of, unless it is that few bytes stand after the last block, or bytes of one value that fill up.

    What goes on for longer is of an image that is larger than its header says, or of blocks that were lost to damage before.
    """
    spare = _SPARE.search(warning)
    if spare is None:
        raise FormatError(_name_fault(warning))
    num, is_end = int(spare[1]), spare[2] == "0xd9"
    is_filler = num <= MOST_SPARE or len(set(content[-2 - num : -2])) < 3
    if not (is_end and is_filler):
        raise FormatError(
            f"its data go on for {num} bytes after the last block before marker {spare[2]}, so they are damaged or its header is of "
            "another size; save it anew if it looks right"
        )


def _name_fault(warning: str) -> str:
    """Say what libjpeg found: a warning, or an error of a header."""
    if _is_short(warning):
        return "its data end early"
    if warning.startswith("tj"):  # TurboJPEG's own words hide what libjpeg found
        return "its header is damaged, or has a marker that is not read"
    return f"its data are damaged ({warning.removeprefix('Corrupt JPEG data: ')})"
