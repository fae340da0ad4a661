"""Orientations that JPEG and WebP say twice, and what follows a WebP."""

import struct

import cv2
import numpy as np
import pytest

from assay.data.images.decode import read
from assay.errors import ImageError

RNG = np.random.default_rng(4)
HEIGHT, WIDTH = 21, 34
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 3)


def turned(orientation):
    """An EXIF block that says an orientation."""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 274, 3, 1, orientation, 0, 0)


def jpeg_turned(still, *blocks):
    marks = [struct.pack(">2sH", b"\xff\xe1", len(b) + 8) + b"Exif\0\0" + b for b in blocks]
    return still[:2] + b"".join(marks) + still[2:]


def webp_turned(still, *blocks):
    sides = b"".join((side - 1).to_bytes(3, "little") for side in SMOOTH.shape[1::-1])
    marks = [struct.pack("<4sI", b"EXIF", len(b)) + b for b in blocks]
    body = b"WEBPVP8X" + struct.pack("<I4B", 10, 8, 0, 0, 0) + sides + still[12:] + b"".join(marks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(("form", "mark"), [("JPEG", jpeg_turned), ("WEBP", webp_turned)])
def test_exif_that_contradicts_itself_is_refused(saved, form, mark):
    """Readers differ in which of two blocks they take; one that says nothing contradicts none."""
    still = saved(SMOOTH, form, quality=95, lossless=True)
    upright, silent = read(mark(still, turned(1))), turned(1).replace(b"\x01\x12", b"\x01\x13")
    for blocks in [(6,), (6, 6)]:
        content = mark(still, *map(turned, blocks))
        np.testing.assert_array_equal(read(content), np.rot90(upright, -1))
    for blocks in [(silent, turned(6)), (turned(6), silent), (turned(6), b"torn")]:
        np.testing.assert_array_equal(read(mark(still, *blocks)), np.rot90(upright, -1))
    for blocks in [(1, 6), (6, 1), (3, 8)]:
        with pytest.raises(
            ImageError, match=f"orientation {blocks[0]} and, in another block, {blocks[1]}"
        ):
            read(mark(still, *map(turned, blocks)))


def test_what_follows_a_webp_is_none_of_it(saved):
    content = saved(RGB, "WEBP", lossless=True)
    mark = struct.pack("<4sI", b"EXIF", len(turned(6))) + turned(6)
    np.testing.assert_array_equal(read(content + mark), RGB)
    for size in (0, 4, len(content) - 60):
        with pytest.raises(ImageError):
            read(content[:4] + struct.pack("<I", size) + content[8:])
