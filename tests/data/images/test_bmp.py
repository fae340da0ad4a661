"""BMP files as other writers make them: palettes of few colours, bit fields, run lengths."""

import struct

import numpy as np
import pytest

from assay.data.images.decode import read, read_plane
from assay.errors import ImageError

RNG = np.random.default_rng(3)
NUMBERS = RNG.integers(0, 16, (11, 13), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
GREYS = np.repeat(np.arange(16, dtype=np.uint8)[:, None], 3, 1)
BLACK_AND_WHITE = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)


def bmp(size, bits, content, compression=0, palette=None, used=0, masks=()):
    """Write a file; a negative height stands for rows from the first to the last."""
    height, width = size
    colours = b"" if palette is None else np.insert(palette[:, ::-1], 3, 0, axis=1).tobytes()
    extra = struct.pack(f"<{len(masks)}I", *masks)
    fields = (40, width, height, 1, bits, compression, len(content), 0, 0, used, 0)
    body = struct.pack("<IiiHHIIiiII", *fields) + extra + colours
    start = 14 + len(body)
    return b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start) + body + content


def packed(numbers, bits):
    """Pack rows from the last to the first, each filled up to four bytes."""
    text = ["".join(f"{number:0{bits}b}" for number in row) for row in numbers[::-1]]
    return b"".join(
        int(row.ljust(-(-len(row) // 32) * 32, "0"), 2).to_bytes(-(-len(row) // 32) * 4, "big")
        for row in text
    )


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("palette", [BLACK_AND_WHITE, BLACK_AND_WHITE[::-1], COLOURS[:2]])
@pytest.mark.parametrize("used", [2, 0])
def test_two_colours_are_read_at_any_depth(bits, palette, used):
    numbers = NUMBERS & 1
    content = bmp(numbers.shape, bits, packed(numbers, bits), palette=palette, used=used)
    assert np.array_equal(read(content), palette[numbers])
    assert np.array_equal(read_plane(content, "index"), numbers)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("palette", [COLOURS, GREYS, GREYS * 17])
def test_numbers_and_colours_of_a_palette(bits, palette):
    content = bmp(NUMBERS.shape, bits, packed(NUMBERS, bits), palette=palette, used=16)
    assert np.array_equal(read(content), palette[NUMBERS])
    assert np.array_equal(read_plane(content, "index"), NUMBERS)


def runs(bits, is_literal=False, numbers=NUMBERS):
    """Write each row as runs of one, or as all but its last pixel as they stand."""
    parts = []
    for row in numbers[::-1]:
        alone = [bytes([1, value if bits == 8 else value << 4]) for value in row]
        if is_literal:
            literal = packed(row[None, :-1], bits)[: -(-(len(row) - 1) * bits // 8)]
            alone = [bytes([0, len(row) - 1]) + literal + b"\0" * (len(literal) % 2), alone[-1]]
        parts += [*alone, b"\0\0"]
    return b"".join(parts) + b"\0\1"


@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (4, 2)])
@pytest.mark.parametrize("is_literal", [False, True])
@pytest.mark.parametrize("columns", [13, 12, 11, 10])
def test_run_lengths(bits, compression, is_literal, columns):
    numbers = NUMBERS[:, :columns]
    content = bmp(numbers.shape, bits, runs(bits, is_literal, numbers), compression, COLOURS)
    assert np.array_equal(read(content), COLOURS[numbers])


@pytest.mark.parametrize(
    "content",
    [
        runs(8)[:-2],  # no end
        b"\0\0" + runs(8)[26:],  # an empty row
        b"\0\2\3\0" + runs(8),  # a jump
        bytes([14, 1]) + runs(8)[26:],  # a row that is too long
        bytes([255, 1]) * 1000,
        b"\0\5\1",
    ],
)
def test_runs_that_leave_pixels_out_or_rows_are_refused(content):
    with pytest.raises(ImageError, match="run lengths"):
        read(bmp(NUMBERS.shape, 8, content, 1, COLOURS))


@pytest.mark.parametrize("is_top_down", [False, True])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0x7C00, 0x3E0, 0x1F)),
        (16, ()),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, ()),
    ],
)
def test_fields_of_bits(bits, masks, is_top_down):
    pixels = RNG.integers(0, 1 << bits, (6, 5), dtype=np.uint64)
    named = masks or {16: (0x7C00, 0x3E0, 0x1F), 32: (0xFF0000, 0xFF00, 0xFF)}[bits]
    expected = [(pixels & mask) * 255 // mask for mask in named]
    order = 1 if is_top_down else -1
    rows = np.pad(pixels[::order], ((0, 0), (0, 1 if bits == 16 else 0)))
    content = rows.astype(f"<u{bits // 8}").tobytes()
    file = bmp((-order * 6, 5), bits, content, 3 if masks else 0, masks=masks)
    assert np.array_equal(read(file), np.stack(expected, 2))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (bmp((11, 13), 8, packed(NUMBERS, 8), palette=COLOURS[:9], used=9), "beyond its palette"),
        (bmp((11, 13), 8, packed(NUMBERS, 8), palette=COLOURS, used=300), "300 colours"),
        (bmp((-11, 13), 8, runs(8), 1, COLOURS), "13 x -11"),
        (bmp((11, 13), 8, packed(NUMBERS, 8)[:-1], palette=COLOURS, used=16), "truncated"),
    ],
)
def test_headers_that_do_not_fit_are_refused(file, message):
    with pytest.raises(ImageError, match=message):
        read(file)
