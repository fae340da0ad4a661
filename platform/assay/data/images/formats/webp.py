"""WebP files: lossy, lossless, with alpha, and frames of animations.

Source: WebP Container Specification (Google, 2011-2024).
"""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL.WebPImagePlugin import WebPImageFile

from assay.data.images.formats.directory import File, join_orientation, read_at, refuse_xmp
from assay.data.images.formats.samples import (
    FormatError,
    Header,
    Pixels,
    Samples,
    Traits,
    choose_page,
)

MAGIC = (b"RIFF",)


MOST_CHUNKS = 16_384


MOST_EXIF_BYTES = 1 << 20


@dataclass
class Chunks:
    """What the chunks say."""

    width: int = 0
    height: int = 0
    has_alpha: bool = False
    frames: int = 0
    orientation: int | None = None
    xmp: bytes = b""
    has_image: bool = False
    is_lossy: bool = False


def parse(file: File, page: int | None) -> Header:
    """Read the header.

    Raises:
        FormatError: it is damaged, or an animation of which no frame was chosen.
    """
    chunks = _read_chunks(file)
    page = choose_page(page, max(chunks.frames, 1), "frames of an animation")
    decode = partial(_decode_frame, file, page) if chunks.frames else partial(_decode, file, chunks)
    refuse_xmp(chunks.orientation, chunks.xmp)
    traits = Traits("WEBP", "rgb", chunks.has_alpha or bool(chunks.frames), chunks.is_lossy)
    return Header(chunks.height, chunks.width, chunks.orientation or 1, traits, decode)


def decode_still(content: bytes, size: tuple[int, int], num: int) -> np.ndarray:
    """Decode one image to as many channels.

    Raises:
        FormatError: it is of another size; imagecodecs raises what it finds damaged.
    """
    chunks = _read_chunks(io.BytesIO(content))
    if (chunks.height, chunks.width) != size or chunks.frames or not chunks.has_image:
        raise FormatError(
            f"a WebP in it is of another size: {chunks.width} x {chunks.height} pixels"
        )
    import imagecodecs  # a file of another format is read without it

    return imagecodecs.webp_decode(content, hasalpha=num == 4)


def _read_chunks(file: File) -> Chunks:
    chunks = Chunks()
    for kind, at, size in _walk(file):
        if kind == b"VP8X" and not chunks.width:
            content = read_at(file, at, 10)
            chunks.has_alpha = bool(content[0] & 16)
            width, height = (int.from_bytes(content[i : i + 3], "little") + 1 for i in (4, 7))
            chunks.width, chunks.height = width, height
        elif kind == b"VP8 ":
            content = read_at(file, at, 10)
            chunks.is_lossy = True
            sides = (int.from_bytes(content[i : i + 2], "little") & 0x3FFF for i in (6, 8))
            _set_size(chunks, *sides)
        elif kind == b"VP8L":
            bits = int.from_bytes(read_at(file, at + 1, 4), "little")
            chunks.has_alpha |= bool(bits >> 28 & 1)
            _set_size(chunks, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind == b"ANMF":
            chunks.frames += 1
            # a frame's own chunks stand behind 16 bytes; transparency of its own has lossy pixels alone
            chunks.is_lossy |= read_at(file, at + 16, 4) in (b"ALPH", b"VP8 ")
        elif kind == b"EXIF" and size <= MOST_EXIF_BYTES:
            exif = read_at(file, at, size) if size else b""
            chunks.orientation = join_orientation(chunks.orientation, exif)
        elif kind == b"XMP " and 0 < size <= MOST_EXIF_BYTES:
            chunks.xmp = read_at(file, at, size)
    if not chunks.width or not chunks.height:
        raise FormatError("its header is damaged: it says no size")
    return chunks


def _set_size(chunks: Chunks, width: int, height: int) -> None:
    if chunks.has_image:
        raise FormatError("its header is damaged: it holds two images")
    if chunks.width and (chunks.width, chunks.height) != (width, height):
        raise FormatError("its header is damaged: it says two sizes")
    chunks.width, chunks.height, chunks.has_image = width, height, True


def _walk(file: File) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, place and size of each chunk that begins within the file, and within what it says is its own."""
    end = min(file.seek(0, os.SEEK_END), 8 + int.from_bytes(read_at(file, 4, 4), "little"))
    at = 12
    for _ in range(MOST_CHUNKS):
        if at + 8 > end:
            return
        start = read_at(file, at, 8)
        size = int.from_bytes(start[4:], "little")
        yield start[:4], at + 8, size
        at += 8 + size + size % 2
    raise FormatError(f"it has more than {MOST_CHUNKS} chunks")


def _content(file: File) -> bytes:
    size = file.seek(0, os.SEEK_END)
    content = read_at(file, 0, size)
    if int.from_bytes(content[4:8], "little") + 8 > size:
        raise FormatError("it is truncated")
    return content


def _decode(file: File, chunks: Chunks, convert: Callable[[Samples], Pixels]) -> Pixels:
    import imagecodecs

    content = _content(file)
    pixels = imagecodecs.webp_decode(content, hasalpha=chunks.has_alpha)
    if pixels.shape[:2] != (chunks.height, chunks.width):
        raise FormatError(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels were decoded, not those of its header"
        )
    return convert(_samples(pixels))


def _samples(pixels: np.ndarray) -> Samples:
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
    return Samples(pixels[..., :3], "rgb", alpha=alpha)


def _decode_frame(file: File, page: int, convert: Callable[[Samples], Pixels]) -> Pixels:
    """Decode a frame of an animation, drawn over those before it."""
    image = WebPImageFile(io.BytesIO(_content(file)))
    image.seek(page)
    pixels = np.array(image.convert("RGBA"))
    return convert(_samples(pixels))
