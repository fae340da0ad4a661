"""Image files of every kind that is read, and mutations of them, for fuzzing."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from PIL import Image

HEIGHT, WIDTH = 24, 40


def files(seed: int = 0) -> dict[str, list[bytes]]:
    """Write small files, by format."""
    rng = np.random.default_rng(seed)
    rgb = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), (0, 0), 1)
    deep = rng.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    grey, alpha = rgb[..., 0].copy(), np.dstack([rgb, rgb[..., 0]])
    frames = [Image.fromarray(np.roll(rgb, i, 0)) for i in (1, 2)]
    animated: dict[str, Any] = {"save_all": True, "append_images": frames}
    planes: dict[str, Any] = {"planarconfig": "separate", "compression": "zstd"}
    return {
        "JPEG": [
            _saved(rgb, "JPEG"),
            _saved(rgb, "JPEG", progressive=True),
            _saved(rgb, "JPEG", restart_marker_blocks=2, subsampling=0),
            _saved(grey, "JPEG"),
            _saved(np.array(Image.fromarray(rgb).convert("CMYK")), "JPEG", mode="CMYK"),
            _saved(rgb, "MPO", **animated),
        ],
        "PNG": [
            _saved(rgb, "PNG"),
            _saved(alpha, "PNG"),
            _saved(grey > 99, "PNG"),
            _saved(grey, "PNG", transparency=3),
            cv2.imencode(".png", deep)[1].tobytes(),
            _palette("PNG"),
            _saved(rgb, "PNG", **animated),
        ],
        "TIFF": [
            _tiff(rgb, rowsperstrip=7),
            _tiff(deep, tile=(16, 16), compression="lzw", predictor=2, byteorder=">"),
            _tiff(deep, bigtiff=True, tile=(16, 16), compression="deflate"),
            _tiff(rgb.transpose(2, 0, 1).copy(), **planes),
            _tiff(rgb, compression="jpeg", tile=(16, 16)),
            _tiff(rgb, compression="webp"),
            _tiff(grey.astype("f4"), compression="deflate", predictor=3, bigtiff=True),
            _tiff(grey, compression="packbits", rowsperstrip=5),
            _tiff(grey, compression="lzma"),
            _tiff(np.stack([rgb, rgb])),
            _saved(grey > 99, "TIFF", compression="group4"),
            _saved(grey > 99, "TIFF", compression="group3"),
            _palette("TIFF"),
        ],
        "WebP": [
            _saved(rgb, "WEBP"),
            _saved(alpha, "WEBP"),
            _saved(alpha, "WEBP", lossless=True),
            _saved(rgb, "WEBP", **animated),
        ],
        "BMP": [
            _saved(rgb, "BMP"),
            _saved(grey, "BMP"),
            _saved(grey > 99, "BMP"),
            _palette("BMP"),
            _runs(),
        ],
    }


def _saved(pixels: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    image = (
        Image.fromarray(pixels)
        if mode is None
        else Image.frombytes(mode, (WIDTH, HEIGHT), pixels.tobytes())
    )
    image.save(file, form, **options)
    return file.getvalue()


def _palette(form: str) -> bytes:
    index = np.random.default_rng(1).integers(0, 16, (HEIGHT, WIDTH), dtype=np.uint8)
    image = Image.fromarray(index)
    image.putpalette(bytes(range(256)) * 3)
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def _runs() -> bytes:
    rows = (
        b"".join(bytes([WIDTH // 2, y, WIDTH // 2, 255 - y, 0, 0]) for y in range(HEIGHT)) + b"\0\1"
    )
    palette = bytes(value for i in range(256) for value in (i, i // 2, 255 - i, 0))
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + 40 + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + palette + rows


def _tiff(
    pixels: np.ndarray,
    bigtiff: bool = False,
    byteorder: Literal["<", ">"] | None = None,
    **options: Any,
) -> bytes:
    file = io.BytesIO()
    photometric = "rgb" if 3 in (pixels.shape[0], pixels.shape[-1]) else "minisblack"
    with tifffile.TiffWriter(file, bigtiff=bigtiff, byteorder=byteorder) as out:
        out.write(pixels, photometric=photometric, metadata=None, **options)
    return file.getvalue()


def mutate(rng: np.random.Generator, content: bytes) -> bytes:
    """Change a file in one or a few of the ways of `WAYS`."""
    changed = bytearray(content)
    for way in rng.choice(len(WAYS), rng.integers(1, 3)):
        WAYS[way](rng, changed)
        if len(changed) < 2:
            break
    if content.startswith(b"\x89PNG") and rng.random() < 0.7:
        _mend_sums(changed)
    return bytes(changed)


def _place(rng: np.random.Generator, content: bytearray) -> int:
    """Choose a byte, every other time near the beginning, where headers are."""
    stop = len(content) if rng.random() < 0.5 else min(len(content), 300)
    return int(rng.integers(0, stop))


def _flip(rng: np.random.Generator, content: bytearray) -> None:
    for _ in range(int(rng.integers(1, 9))):
        content[_place(rng, content)] ^= 1 << int(rng.integers(0, 8))


def _set(rng: np.random.Generator, content: bytearray) -> None:
    content[_place(rng, content)] = int(rng.choice([0, 1, 2, 127, 128, 254, 255]))


def _truncate(rng: np.random.Generator, content: bytearray) -> None:
    del content[_place(rng, content) :]


def _lengthen(rng: np.random.Generator, content: bytearray) -> None:
    """Write a number of 16 or 32 bits, in either order: a length, an offset, a count or a size."""
    number = int(rng.choice([0, 1, 3, 255, 65535, 65536, 2**31 - 1, 2**32 - 1, len(content)]))
    place, size, order = _place(rng, content), int(rng.choice([2, 4])), rng.choice(["<", ">"])
    packed = struct.pack(f"{order}I", number)
    content[place : place + size] = packed[-size:] if order == ">" else packed[:size]


def _remove(rng: np.random.Generator, content: bytearray) -> None:
    place = _place(rng, content)
    del content[place : place + int(rng.integers(1, 40))]


def _repeat(rng: np.random.Generator, content: bytearray) -> None:
    """Insert a piece of the file: a chunk, a tag or a segment twice, or at another place."""
    start = _place(rng, content)
    place = _place(rng, content)
    content[place:place] = content[start : start + int(rng.choice([4, 12, 20, 64]))]


def _swap_tags(rng: np.random.Generator, content: bytearray) -> None:
    """Exchange two pieces of the size of a TIFF's entry."""
    one, other = _place(rng, content), _place(rng, content)
    first, second = content[one : one + 12], content[other : other + 12]
    content[one : one + 12], content[other : other + 12] = second, first


WAYS: list[Callable[[np.random.Generator, bytearray], None]] = [
    _flip,
    _set,
    _truncate,
    _lengthen,
    _remove,
    _repeat,
    _swap_tags,
]


def _mend_sums(content: bytearray) -> None:
    """Write the right sums of a PNG's chunks, so that what was changed is looked at."""
    for start, length in list(_chunks(content)):
        sums = zlib.crc32(content[start + 4 : start + 8 + length])
        content[start + 8 + length : start + 12 + length] = struct.pack(">I", sums)


def _chunks(content: bytearray) -> Iterator[tuple[int, int]]:
    start = 8
    while start + 12 <= len(content):
        (length,) = struct.unpack(">I", content[start : start + 4])
        if start + 12 + length > len(content):
            return
        yield start, length
        start += 12 + length
