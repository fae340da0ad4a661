"""Headers without end and sizes beyond memory are refused at once."""

import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
import tifffile

from assay.data.images.decode import probe, read
from assay.errors import ImageError

RNG = np.random.default_rng(4)
HEIGHT, WIDTH = 21, 34
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 3)


def chain_of_directories(num):
    one = struct.pack("<HHHII", 1, 256, 3, 1, 4)
    links = [struct.pack("<I", 8 + (i + 1) * (len(one) + 4)) for i in range(num)]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(one + link for link in links)


def strips(num):
    """A TIFF of that many strips of one row."""
    tags = [(256, 4, 1, 1), (257, 4, 1, num), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, num, 200), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, num, 200 + 4 * num)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)
    return head.ljust(200, b"\0") + struct.pack("<I", 200) * num + struct.pack("<I", 1) * num


def pictures(jpeg, num):
    """A JPEG whose index says so many times that a picture of no type, of a long header, stands behind it."""
    size = 26 + 16 * (num + 1)
    start = size + len(jpeg) - 2
    entries = struct.pack(">IIII", 0, 0, start, 0) * (num + 1)
    index = b"MM\0*" + struct.pack(">IHHHIII", 8, 1, 0xB002, 7, len(entries), 26, 0) + entries
    block = b"\xff\xe2" + struct.pack(">H", len(index) + 6) + b"MPF\0" + index
    behind = jpeg[:2] + b"\xff\xfe\0\2" * 9_000 + jpeg[2:]
    return jpeg[:2] + block + jpeg[2:] + behind


def chunks(png, num):
    """A PNG with so many empty texts before its pixels."""
    empty = struct.pack(">I4sI", 0, b"tEXt", zlib.crc32(b"tEXt"))
    return png[:33] + empty * num + png[33:]


ATTACKS = {
    "strips": lambda png, jpeg: strips(5_000_000),
    "directories": lambda png, jpeg: chain_of_directories(2_000_000),
    "tags": lambda png, jpeg: b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(12 * 65535 + 4),
    "chunks": lambda png, jpeg: chunks(png, 1_000_000),
    "segments": lambda png, jpeg: jpeg[:2] + b"\xff\xfe\0\2" * 2_000_000 + jpeg[2:],
    "fill": lambda png, jpeg: jpeg[:2] + b"\xff" * 20_000_000 + jpeg[3:],
    "riff": lambda png, jpeg: b"RIFF\xff\xff\xff\x7fWEBP" + b"JUNK\0\0\0\0" * 2_000_000,
    "pictures": lambda png, jpeg: pictures(jpeg, 16),
    "many pictures": lambda png, jpeg: pictures(jpeg, 4000),
    "long tag": lambda png, jpeg: (
        b"MM\0*" + struct.pack(">IHHHII", 8, 1, 256, 4, 0xFFFFFFFF, 8) + bytes(20_000_000)
    ),
}
"""Makes each attack of a sound PNG and JPEG: at most one of them is held at a time."""


@pytest.mark.parametrize("name", ATTACKS)
def test_headers_without_end_are_refused_at_once(saved, name):
    content = ATTACKS[name](saved(RGB, "PNG"), saved(SMOOTH, "JPEG"))
    for read_it in (probe, read):
        began = time.process_time()
        with pytest.raises(ImageError):
            read_it(content)
        assert time.process_time() - began < 2  # .05 s without the checks of shapes


def test_sizes_that_fit_no_memory_are_refused(monkeypatch):
    whole = io.BytesIO()
    tifffile.imwrite(whole, RGB, photometric="rgb", metadata=None)
    monkeypatch.setattr(np, "empty", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    rows = io.BytesIO()
    tifffile.imwrite(rows, RGB, photometric="rgb", rowsperstrip=2, metadata=None)
    with pytest.raises(ImageError, match="do not fit in memory"):
        read(rows.getvalue())
    np.testing.assert_array_equal(read(whole.getvalue()), RGB)
