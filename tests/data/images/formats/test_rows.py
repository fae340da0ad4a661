"""Rows of a PNG, compressed by zlib, against what was compressed; and what damage leaves behind."""

import gc
import io
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from assay.data.images.decode import read
from assay.data.images.formats import rows
from assay.errors import ImageError

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (300, 310, 3), dtype=np.uint8)


def png(pixels=PIXELS):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def with_rows(change):
    """The file with other bytes in its one IDAT chunk."""
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS))
    head = png()[:33]
    return b"".join([head, *rows.chunk(b"IDAT", change(content)), *rows.chunk(b"IEND", b"")])


def inflated(change):
    return lambda content: zlib.compress(change(zlib.decompress(content)))


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "sum": lambda content: content[:-4] + b"sums",
    "no sum": lambda content: content[:-4],
    "junk": lambda content: b"junk" * 99,
    "nothing": lambda content: b"",
    "a row short": inflated(lambda values: values[:-931]),
    "a filter": inflated(lambda values: values[: 931 * 7] + b"\5" + values[931 * 7 + 1 :]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_refused_and_leaves_nothing_behind(name):
    """The library keeps the image of each file that it refuses, and ends the process after some thousand."""
    content = with_rows(DAMAGE[name])

    def refuse(num):
        for _ in range(num):
            with pytest.raises(ImageError, match=r"its pixels are (truncated or )?damaged"):
                read(content)
        gc.collect()

    refuse(3)
    tracemalloc.start()
    before, references = tracemalloc.get_traced_memory()[0], sys.getrefcount(None)
    refuse(30)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 5 * PIXELS.nbytes
    assert sys.getrefcount(None) > references - 15


@pytest.mark.parametrize("behind", [b"", b"x" * 70_000])
def test_what_follows_the_last_row_is_passed_over(behind):
    np.testing.assert_array_equal(read(with_rows(lambda content: content + behind)), PIXELS)
    longer = with_rows(inflated(lambda values: values + behind))
    np.testing.assert_array_equal(read(longer), PIXELS)


def test_rows_are_stored_in_chunks_that_a_file_may_have(monkeypatch):
    monkeypatch.setattr(rows, "MOST_OF_CHUNK", 100_000)
    np.testing.assert_array_equal(read(png()), PIXELS)
    values = RNG.integers(0, 256, 400_000, dtype=np.uint8).tobytes()
    parts = b"".join(rows._store(values))
    assert parts.count(b"IDAT") == 4
    pieces, at = b"", 0
    while at < len(parts):
        size = int.from_bytes(parts[at : at + 4], "big")
        pieces += parts[at + 8 : at + 8 + size]
        at += size + 12
    assert zlib.decompress(pieces) == values
