"""JPEG files: which kinds are read, and their pixels.

Source: ITU-T T.81 (JPEG), annex B; CIPA DC-007 (several pictures in one file).
"""

import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from assay.data.images.formats.directory import (
    XMP,
    File,
    join_orientation,
    read_at,
    read_chain,
    refuse_xmp,
)
from assay.data.images.formats.samples import (
    FormatError,
    Header,
    Pixels,
    Samples,
    Traits,
    choose_page,
)
from assay.data.images.formats.scans import MOST_MARKERS, Frame, decode_scans

MAGIC = (b"\xff\xd8\xff",)


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
    0xF7: "JPEG-LS (SOF55)",
}


SAMPLINGS = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)}
"""Factors of brightness beside 1 x 1 of both colours, as TurboJPEG knows them."""


MOST_SIDE = 65_500
"""Pixels, as libjpeg reads."""


MOST_PICTURES = 16
"""Pictures of no type that are looked at."""


COLOURS: dict[int, Any] = {1: "grey", 3: "rgb", 4: "inks"}
"""By the number of components."""


def parse(file: File, page: int | None) -> Header:
    """Read the header.

    Raises:
        FormatError: it is damaged or of a kind that is not read, or holds several pictures of which
            none was chosen.
    """
    frame = _read_frame(file)
    starts = [at for at, is_named in frame.pictures if _is_page(file, at, frame, is_named)]
    number = choose_page(page, 1 + len(starts), "pictures")
    if number:
        start = starts[number - 1]
        file = io.BytesIO(read_at(file, start, _length(file) - start))
        frame = _read_frame(file)
    _check_frame(frame)
    refuse_xmp(frame.orientation, frame.xmp)
    traits = Traits("JPEG", COLOURS[len(frame.components)], is_lossy=True)
    decode = partial(_decode, file, frame, page is not None)
    return Header(frame.height, frame.width, frame.orientation or 1, traits, decode)


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
    is_reduced = len(set(frame.components.values())) > 1  # as brightness and colours are
    if (colours == "RGB" and (frame.is_jfif or frame.adobe == 1 or is_reduced)) or (
        colours == "YCBCR" and frame.adobe == 0
    ):
        told, held = ("2 (RGB)", "YCbCr") if colours == "RGB" else ("6 (YCbCr)", "RGB")
        raise FormatError(
            f"its PhotometricInterpretation (262) is {told}, and a JPEG in it holds {held}"
        )
    return decode_scans(content, frame, int(colours == "YCBCR"))[0]


def _length(file: File) -> int:
    return file.seek(0, io.SEEK_END)


def _is_page(file: File, start: int, frame: Frame, is_named: bool = False) -> bool:
    """Tell whether a picture begins there that is no preview, nor a map of gain or depth: one of a named type, or as large as the frame.

    Where an index is older than the file, nothing may begin there.
    """
    try:
        other = _read_frame(file, start)
    except FormatError:
        return False
    return is_named or (other.height >= frame.height and other.width >= frame.width)


def _read_frame(file: File, start: int = 0) -> Frame:
    """Read the markers up to the first scan."""
    frame, at = Frame(), start + 2
    for _ in range(MOST_MARKERS):
        mark, kind, *length = read_at(file, at, 4)
        if mark != 0xFF:
            raise FormatError("its header is damaged: a marker is missing")
        if kind in (0xFF, 0x01, *range(0xD0, 0xD9)):  # filling, or a marker without content
            at += 1 if kind == 0xFF else 2
            continue
        size = int.from_bytes(length, "big")
        if kind == 0xDA:
            frame.scan = at
            return frame
        if kind == 0xD9 or size < 2:
            raise FormatError("its header is damaged: it ends before its image")
        if kind in _READERS or kind in FRAMES or kind in OTHER_FRAMES:
            content = read_at(file, at + 4, size - 2) if size > 2 else b""
            _READERS.get(kind, _read_sizes)(frame, kind, content, at)
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            frame.segments.append(slice(at, at + 2 + size))
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
    if len(frame.components) != num:
        raise FormatError("its header is damaged: two components have one number")


def _read_interval(frame: Frame, kind: int, content: bytes, at: int) -> None:
    frame.interval = int.from_bytes(content[:2], "big")


def _read_jfif(frame: Frame, kind: int, content: bytes, at: int) -> None:
    frame.is_jfif |= content.startswith(b"JFIF\0")


def _read_exif(frame: Frame, kind: int, content: bytes, at: int) -> None:
    if content.startswith(b"Exif\0\0"):
        frame.orientation = join_orientation(frame.orientation, content)
    elif content.startswith(XMP):
        frame.xmp = content


def _read_adobe(frame: Frame, kind: int, content: bytes, at: int) -> None:
    if content.startswith(b"Adobe") and len(content) >= 12:
        if frame.adobe not in (None, content[11]):
            raise FormatError("it has two Adobe markers that contradict each other; save it anew")
        frame.adobe = content[11]


def _read_pictures(frame: Frame, kind: int, content: bytes, at: int) -> None:
    """Read the index of a file of several pictures; previews are no pages."""
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
    types = [(int(offset), kind & 0xFFFFFF) for kind, _, offset, _ in numbers[1:]]
    frame.pictures = tuple(
        (at + 8 + start, kind > 0) for start, kind in types if kind >> 16 == 2 or not kind
    )
    if sum(not is_named for _, is_named in frame.pictures) > MOST_PICTURES:
        raise FormatError(
            f"it holds more than {MOST_PICTURES} pictures of no type; save each as a file of its own"
        )


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
    if not frame.height:
        raise FormatError(
            "its header leaves its height to a marker behind the pixels (DNL), which is not read; save it anew"
        )
    if num not in COLOURS or not frame.width:
        raise FormatError(
            f"its JPEG has {num} components and {frame.width} x {frame.height} pixels; 1, 3 or 4 components are read"
        )
    if max(frame.width, frame.height) > MOST_SIDE:
        raise FormatError(
            f"its JPEG has {frame.width} x {frame.height} pixels, sides up to {MOST_SIDE} are read; save it as PNG or cut it up"
        )
    if num == 4 and frame.adobe not in (0, 2):
        raise FormatError(
            "its JPEG has 4 components and no Adobe marker that says which colours they are; save it as RGB"
        )
    if num == 3 and frame.adobe not in (None, 0, 1):
        raise FormatError(f"its JPEG has the Adobe colour transform {frame.adobe}; save it as RGB")
    if num == 3 and frame.is_jfif and (frame.adobe == 0 or bytes(frame.components) == b"RGB"):
        raise FormatError(
            "its JFIF marker says that it holds YCbCr, and its Adobe marker or its components' names that it holds RGB; save it as PNG"
        )
    if any(not 1 <= side <= 4 for factors in frame.components.values() for side in factors):
        raise FormatError("its header is damaged: its sampling factors are not from 1 to 4")
    if not _is_sampled_as_known(list(frame.components.values())):
        factors = ", ".join(f"{across}x{down}" for across, down in frame.components.values())
        raise FormatError(
            f"its components are sampled {factors}, which is not read; save it as 4:4:4, 4:2:2 or 4:2:0, or as PNG"
        )


def _is_sampled_as_known(factors: list[tuple[int, int]]) -> bool:
    """Tell whether TurboJPEG knows the sampling factors: it has a name for few of those that T.81 allows."""
    if len(factors) == 1:
        return True
    first, colours, black = factors[0], set(factors[1:3]), factors[3:]
    if len(colours) > 1 or black not in ([], [first]):
        return False
    (colour,) = colours
    return (
        (colour == (1, 1) and first in SAMPLINGS)
        or (first == (2, 2) and colour in ((1, 2), (2, 1)))
        or (colour == first and math.prod(first) <= 3)
    )


def _decode(
    file: File, frame: Frame, is_chosen: bool, convert: Callable[[Samples], Pixels]
) -> Pixels:
    content = read_at(file, 0, _length(file))
    pixels, end = decode_scans(content, frame, frame.transform)
    if not is_chosen:
        _refuse_next(file, content, end, frame)
    inks = len(frame.components) == 4  # Adobe writes them inverted
    return convert(Samples(255 - pixels if inks else pixels, COLOURS[len(frame.components)]))


def _refuse_next(file: File, content: bytes, end: int, frame: Frame) -> None:
    """Refuse a second picture as large behind the first, as video cameras and files joined by hand have it, that no index names."""
    start = content.find(b"\xff\xd8\xff", end)
    if start >= 0 and not content[end:start].strip(b"\0\xff") and _is_page(file, start, frame):
        raise FormatError(
            "a second picture of its size or larger stands behind it, and which one to read is not said; pass --data.page 0 for the first, or save each as a file of its own"
        )
