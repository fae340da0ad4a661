"""BMP by what its header says: palettes, colours, fields, run lengths."""

import struct

import numpy as np
import pytest

from assay.data.images.decode import probe, read, read_plane
from assay.errors import ImageError

RNG = np.random.default_rng(4)
HEIGHT, WIDTH = 21, 34
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def bmp(width, height, bits, body, *, compression=0, palette=b"", masks=b""):
    """A BMP; a negative height says that the first row is on top."""
    start = 54 + len(masks) + len(palette)
    head = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, len(palette) // 4, 0
    )
    return (
        b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + masks + palette + body
    )


@pytest.mark.parametrize("start", [0, 20, 53])
def test_a_bmp_whose_pixels_begin_in_its_header_is_refused(start):
    content = bmp(WIDTH, HEIGHT, 24, bytes(9000))
    with pytest.raises(ImageError, match=f"begin at byte {start} and its header ends at 54"):
        read(content[:10] + struct.pack("<I", start) + content[14:])


@pytest.fixture(scope="session")
def rows_of(pack):
    """Packs rows, each filled up to four bytes."""

    def fill(values, bits):
        packed = pack(values, bits)
        return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))

    return fill


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_palettes(rows_of, bits, top_down):
    index = RNG.integers(0, 2**bits, (HEIGHT, WIDTH))
    colours = RNG.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    palette = np.pad(colours[:, ::-1], ((0, 0), (0, 1))).tobytes()
    rows = rows_of(index, bits)
    rows = rows if top_down else rows[::-1]
    content = bmp(WIDTH, -HEIGHT if top_down else HEIGHT, bits, rows.tobytes(), palette=palette)
    np.testing.assert_array_equal(read(content), colours[index])
    np.testing.assert_array_equal(read_plane(content, "index"), index)
    assert probe(content) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("bits", [24, 32])
def test_bmp_colours(bits, top_down):
    rows = RGB[..., ::-1] if top_down else RGB[::-1, :, ::-1]
    rows = np.pad(rows, ((0, 0), (0, 0), (0, bits // 8 - 3))).reshape(HEIGHT, -1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    content = bmp(WIDTH, -HEIGHT if top_down else HEIGHT, bits, rows.tobytes())
    np.testing.assert_array_equal(read(content), RGB)


@pytest.mark.parametrize("layout", [(5, 5, 5), (5, 6, 5)])
def test_bmp_bit_fields(layout):
    """5 and 6 bits are spread over 8."""
    sizes = np.array(layout)
    values = RNG.integers(0, 2**sizes, (HEIGHT, WIDTH, 3))
    shifts = (sizes[1] + sizes[2], sizes[2], 0)
    words = sum(values[..., i] << shifts[i] for i in range(3)).astype("<u2")
    masks = b"".join(struct.pack("<I", (2 ** layout[i] - 1) << int(shifts[i])) for i in range(3))
    content = bmp(WIDTH, HEIGHT, 16, words[::-1].tobytes(), compression=3, masks=masks)
    assert np.abs(read(content) - values * 255 / (2**sizes - 1)).max() < 1


def test_bmp_of_32_bits_in_fields():
    """As Windows and GIMP write them, with alpha in a header of 124 bytes."""
    rgba = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    for order in ((2, 1, 0, 3), (0, 1, 2, 3), (3, 2, 1, 0)):
        masks = [0xFF << 8 * order.index(channel) for channel in range(4)]
        body = rgba[::-1][..., order].tobytes()
        if order == (3, 2, 1, 0):
            masks = [0xFF << 8 * (3 - channel) for channel in range(4)]
        head = struct.pack("<IiiHHIIiiII", 124, WIDTH, HEIGHT, 1, 32, 3, 0, 0, 0, 0, 0)
        head = (head + struct.pack("<4I", *masks)).ljust(124, b"\0")
        content = b"BM" + struct.pack("<IHHI", 138 + len(body), 0, 0, 138) + head + body
        np.testing.assert_array_equal(read(content), rgba[..., :3])
        np.testing.assert_array_equal(read_plane(content, "alpha"), rgba[..., 3])


def test_bmp_fields_that_are_not_read_are_named():
    masks = struct.pack("<3I", 0xF00, 0xF0, 0xF)
    content = bmp(WIDTH, HEIGHT, 16, bytes(9000), compression=3, masks=masks)
    with pytest.raises(ImageError, match="16 bits in fields that are not read"):
        read(content)


@pytest.mark.parametrize("bits", [4, 8])
def test_bmp_run_lengths(bits):
    index = np.repeat(RNG.integers(0, 2**bits, (HEIGHT, WIDTH // 2)), 2, 1)
    runs = b"".join(
        b"".join(bytes([2, value * 17 if bits == 4 else value]) for value in row[::2]) + b"\0\0"
        for row in index[::-1].tolist()
    )
    palette = np.repeat(np.arange(2**bits, dtype=np.uint8)[:, None], 4, 1)
    palette[:, 1] //= 2
    body = runs + b"\0\1"
    content = bmp(WIDTH, HEIGHT, bits, body, compression=3 - bits // 4, palette=palette.tobytes())
    np.testing.assert_array_equal(read(content), palette[index][..., 2::-1][..., :3])
    with pytest.raises(ImageError):
        read(content[: -len(runs) // 2])


@pytest.mark.parametrize(("compression", "bits"), [(4, 24), (5, 24), (1, 4), (0, 2), (6, 32)])
def test_other_bmp_are_refused_by_name(compression, bits):
    content = bmp(WIDTH, HEIGHT, bits, bytes(9000), compression=compression)
    with pytest.raises(ImageError, match=f"compression {compression} and {bits} bits, allowed"):
        read(content)
