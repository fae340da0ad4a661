"""PNG files: chunks, checked and bounded, and pixels by libpng.

libpng is given a file with no more than the header and the rows (see `rows`), so that it changes no value
by a palette, transparency or gamma: sBIT, gAMA, cHRM and iCCP do not change what was stored.

Source: PNG (W3C, third edition), sections 5, 11 and 13.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from assay.data.images.formats import rows
from assay.data.images.formats.directory import File, read_at, read_orientation
from assay.data.images.formats.samples import (
    FormatError,
    Header,
    Pixels,
    Samples,
    Traits,
    choose_page,
)
from assay.data.images.formats.texts import MOST_BYTES, read_text, refuse_texts

MAGIC = (rows.MAGIC,)


MOST_CHUNKS = 100_000


MOST_SIDE = 1_000_000
"""Pixels, as libpng reads."""


KINDS: dict[int, tuple[Any, int]] = {
    0: ("grey", 1),
    2: ("rgb", 3),
    3: ("palette", 1),
    4: ("grey", 2),
    6: ("rgb", 4),
}
"""Colour type: what it holds and how many samples."""


DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Colour type: bits per sample."""


EARLY = (b"PLTE", b"tRNS", b"acTL")
"""Chunks that stand before the pixels."""


@dataclass
class Frame:
    """A frame of an animation: its sides, and start and length of its chunks."""

    width: int
    height: int
    parts: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Chunks:
    """What the chunks say."""

    width: int = 0
    height: int = 0
    bits: int = 0
    kind: int = 0
    interlace: int = 0
    named: dict[bytes, bytes] = field(default_factory=dict)
    """Content of the chunks that are read."""
    pixels: list[tuple[int, int]] = field(default_factory=list)
    """Start and length of the content of each IDAT chunk."""
    has_end: bool = False
    is_followed: bool = False
    """Another PNG begins where it ends, as where files were joined."""
    texts: dict[bytes, bytes] = field(default_factory=dict)
    """By their keywords, those that may hold an orientation."""
    frames: list[Frame] = field(default_factory=list)
    is_framed: bool = False
    """The image in the IDAT chunks is a frame of the animation, where there is one."""

    @property
    def form(self) -> rows.Form:
        """How its rows are laid out; numbers of a palette as grey."""
        return rows.Form(self.bits, 0 if self.kind == 3 else self.kind, self.interlace)


def parse(file: File, page: int | None) -> Header:
    """Read the header.

    Raises:
        FormatError: it is damaged, or an animation of which no frame was chosen.
    """
    chunks = _read_chunks(file)
    frames = int.from_bytes(chunks.named.get(b"acTL", b"")[:4], "big")
    if frames and not chunks.is_framed:
        raise FormatError(
            "it holds an animation and a picture that is none of its frames, and readers show one or the other; save what is meant as a file of its own"
        )
    if b"acTL" in chunks.named and chunks.has_end and frames != len(chunks.frames):
        raise FormatError(
            f"it says that it is an animation of {frames} frames, and holds {len(chunks.frames)}"
        )
    if page is None and chunks.is_followed:
        choose_page(page, 2, "pictures, one behind the other")
    page = choose_page(page, max(frames, 1), "frames of an animation")
    if page and (chunks.bits == 16 or chunks.kind == 3):
        # Pillow draws frames of a palette over each other in a way of its own
        what = "a palette" if chunks.kind == 3 else "16 bits"
        raise FormatError(
            f"its frames have {what}; save the one that is meant as a file of its own"
        )
    decode = partial(_decode_frame, file, chunks, page) if page else partial(_decode, file, chunks)
    orientation = read_orientation(chunks.named.get(b"eXIf", b""))
    refuse_texts(orientation, chunks.texts)
    colour, num = KINDS[chunks.kind]
    traits = Traits("PNG", colour, has_alpha=num in (2, 4) or b"tRNS" in chunks.named)
    return Header(chunks.height, chunks.width, orientation or 1, traits, decode)


def _read_chunks(file: File) -> Chunks:
    """Walk the chunks; those that hold no pixels are checked by their sums."""
    chunks, at, size = Chunks(), 8, file.seek(0, os.SEEK_END)
    for _ in range(MOST_CHUNKS):
        file.seek(at)
        start = file.read(8)
        if at + 12 > size or len(start) < 8:
            break  # a truncated file still has a size; `_decode` refuses it
        length, kind = struct.unpack(">I4s", start)
        if not chunks.width and kind != b"IHDR":
            raise FormatError("its first chunk is not IHDR")
        if at + 12 + length > size:
            break
        _check_order(chunks, kind)
        if kind in (b"IHDR", *EARLY, b"eXIf"):
            chunks.named[kind] = _read_chunk(file, kind, length)
            if kind == b"IHDR":
                _read_sizes(chunks)
        elif kind in (b"iTXt", b"zTXt", b"tEXt") and length <= MOST_BYTES:
            chunks.texts |= read_text(kind, file.read(length))
        elif kind == b"IDAT":
            chunks.pixels.append((at + 8, length))
        elif kind == b"IEND":
            chunks.has_end = True
            file.seek(at + 12 + length)
            chunks.is_followed = file.read(len(rows.MAGIC)) == rows.MAGIC
            break
        elif kind == b"fcTL":
            sides = struct.unpack(">4xII", _read_chunk(file, kind, length)[:12])
            if sides[0] > chunks.width or sides[1] > chunks.height:
                raise FormatError("a frame of its animation is larger than the whole")
            chunks.frames.append(Frame(*sides))
            chunks.is_framed |= not chunks.pixels
        elif kind == b"fdAT" and chunks.frames and length > 4:
            chunks.frames[-1].parts.append((at + 8, length))
        at += length + 12
    else:
        raise FormatError(f"it has more than {MOST_CHUNKS} chunks")
    if not chunks.width:
        raise FormatError("it is truncated, its header is missing")
    return chunks


def _check_order(chunks: Chunks, kind: bytes) -> None:
    """Refuse chunks that readers take in different ways, or that one must not pass over (a capital first)."""
    name = repr(kind)[2:-1]
    if kind in chunks.named:
        raise FormatError(f"its chunk {name} stands twice")
    if kind in EARLY and chunks.pixels:
        raise FormatError(f"its chunk {name} stands behind its pixels")
    if not kind[0] & 32 and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
        raise FormatError(f"it cannot be read without its chunk {name}, which is not known")


def _read_chunk(file: File, kind: bytes, length: int) -> bytes:
    if length > MOST_BYTES:
        if kind == b"eXIf":
            return b""
        raise FormatError(f"its chunk {kind.decode()} has {length} bytes")
    content = file.read(length + 4)
    if zlib.crc32(kind + content[:length]) != int.from_bytes(content[length:], "big"):
        raise FormatError(f"its chunk {kind.decode()} is damaged")
    return content[:length]


def _read_sizes(chunks: Chunks) -> None:
    content = chunks.named[b"IHDR"]
    if len(content) != 13:
        raise FormatError("its header is damaged")
    chunks.width, chunks.height, chunks.bits, chunks.kind, packing, filters, chunks.interlace = (
        struct.unpack(">IIBBBBB", content)
    )
    if chunks.bits not in DEPTHS.get(chunks.kind, ()) or packing or filters or chunks.interlace > 1:
        raise FormatError(
            f"its header says colour type {chunks.kind}, {chunks.bits} bits, compression {packing}, filter {filters} and interlace "
            f"{chunks.interlace}, which PNG does not have"
        )
    if not chunks.width or not chunks.height or max(chunks.width, chunks.height) > MOST_SIDE:
        raise FormatError(f"its header says {chunks.width} x {chunks.height} pixels")


def _decode(file: File, chunks: Chunks, convert: Callable[[Samples], Pixels]) -> Pixels:
    """Decode the image that stands in the IDAT chunks."""
    if not chunks.has_end or not chunks.pixels:
        raise FormatError("it is truncated, its end marker is missing")
    content = b"".join(_read_part(file, b"IDAT", *place) for place in chunks.pixels)
    pixels = rows.decode(content, chunks.width, chunks.height, chunks.form)
    if chunks.bits < 8:  # libpng spreads them over 8 bits
        pixels = pixels // np.uint8(255 // (2**chunks.bits - 1))
    return convert(_samples(pixels, chunks))


def _read_part(file: File, kind: bytes, start: int, length: int) -> bytes:
    """Read a chunk of compressed rows."""
    content, sums = read_at(file, start, length + 4)[:length], read_at(file, start + length, 4)
    if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(sums, "big"):
        raise FormatError("its pixels are damaged (a chunk does not agree with its sum)")
    return content


def _samples(pixels: np.ndarray, chunks: Chunks) -> Samples:
    colour, num = KINDS[chunks.kind]
    alpha = palette = None
    if num in (2, 4):
        alpha, pixels = pixels[..., -1], pixels[..., : num - 1]
        pixels = pixels[..., 0] if num == 2 else pixels
    clear = chunks.named.get(b"tRNS")
    if colour == "palette":
        named = chunks.named.get(b"PLTE", b"")
        if not named or len(named) % 3 or len(named) > 3 << chunks.bits:
            raise FormatError("its palette is missing or damaged")
        palette = np.frombuffer(named, np.uint8).reshape(-1, 3)
        if clear is not None:
            opaque = np.frombuffer(clear[:256].ljust(256, b"\xff"), np.uint8)
            return Samples(pixels, colour, 8, palette=palette, alpha=opaque[pixels])
        return Samples(pixels, colour, chunks.bits, palette=palette)
    if clear is not None and num in (1, 3):
        alpha = _opaque(pixels, clear, num, chunks.bits)
    return Samples(pixels, colour, chunks.bits, alpha=alpha)


def _opaque(pixels: np.ndarray, clear: bytes, num: int, bits: int) -> np.ndarray:
    """Return alpha where one colour is transparent; 0, or 255, or 65535 of 16 bits."""
    if len(clear) != 2 * num:
        raise FormatError("its chunk tRNS is damaged")
    key = np.frombuffer(clear, ">u2") & (2**bits - 1)
    same = pixels == key if num == 3 else (pixels == key[0])[..., None]
    top = np.uint16(65535) if bits == 16 else np.uint8(255)
    return np.where(same.all(2), top.dtype.type(0), top)


def _decode_frame(
    file: File, chunks: Chunks, page: int, convert: Callable[[Samples], Pixels]
) -> Pixels:
    """Decode a later frame of an animation, drawn over those before it; Pillow passes over rows that are missing."""
    _decode(file, chunks, Samples.rgb)
    for frame in chunks.frames[1 : page + 1]:
        content = b"".join(_read_part(file, b"fdAT", *place)[4:] for place in frame.parts)
        rows.decode(content, frame.width, frame.height, chunks.form)
    file.seek(0)
    image = PngImageFile(io.BytesIO(file.read()))
    image.seek(page)
    pixels = np.array(image.convert("RGBA"))
    return convert(Samples(pixels[..., :3], "rgb", alpha=pixels[..., 3]))
