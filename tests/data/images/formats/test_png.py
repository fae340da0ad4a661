"""PNG by what its header says: kinds, palettes, transparency, frames."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from assay.data.images.decode import probe, read, read_plane
from assay.errors import ImageError

RNG = np.random.default_rng(4)
HEIGHT, WIDTH = 21, 34
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def chunk(kind, content):
    sums = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sums)


PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
PASSES += [(1, 0, 2, 1)]
"""Adam7: first row and column, and their steps."""


@pytest.fixture(scope="session")
def png(pack):
    """Makes a PNG of samples (h, w, n), packed by hand."""

    def make(values, bits, colour, *, interlaced=False, chunks=b"", behind=b""):
        parts = [values[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [values]
        rows = b"".join(
            b"\0" + row.tobytes() for part in parts if part.size for row in pack(part, bits)
        )
        height, width = values.shape[:2]
        size = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
        body = chunks + chunk(b"IDAT", zlib.compress(rows)) + behind
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + body + chunk(b"IEND", b"")

    return make


def shown(values, bits):
    return (values * (255 // (2**bits - 1)) if bits < 8 else values).astype(
        "u2" if bits == 16 else "u1"
    )


PNG = [(0, bits, 1) for bits in (1, 2, 4, 8, 16)]
PNG += [(2, 8, 3), (2, 16, 3), (4, 8, 2), (4, 16, 2), (6, 8, 4), (6, 16, 4)]
ANCILLARY = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"cHRM", bytes(32))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "bits", "num"), PNG)
def test_png_of_every_kind(png, colour, bits, num, interlaced):
    values = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, num))
    significant = chunk(b"sBIT", bytes([max(bits // 2, 1)] * num))
    for chunks in (b"", ANCILLARY + significant):
        content = png(values, bits, colour, interlaced=interlaced, chunks=chunks)
        image, right = read(content), shown(values, bits)
        assert image.dtype == right.dtype
        colours = right[..., :1] if num < 3 else right[..., :3]
        np.testing.assert_array_equal(image, np.broadcast_to(colours, image.shape))
        assert probe(content) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(read_plane(content, "level"), colours.max(2))
    if num in (2, 4):
        alpha = np.rint(values[..., -1] / 257) if bits == 16 else values[..., -1]
        np.testing.assert_array_equal(read_plane(content, "alpha"), alpha)
    if num < 3:
        np.testing.assert_array_equal(read_plane(content, "index"), values[..., 0])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_palettes(png, bits, interlaced):
    index = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, 1))
    colours = RNG.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    opaque = RNG.integers(0, 256, 2**bits // 2, dtype=np.uint8)
    chunks = chunk(b"PLTE", colours.tobytes()) + chunk(b"tRNS", opaque.tobytes())
    content = png(index, bits, 3, interlaced=interlaced, chunks=chunks)
    np.testing.assert_array_equal(read(content), colours[index[..., 0]])
    np.testing.assert_array_equal(read_plane(content, "index"), index[..., 0])
    alpha = np.append(opaque, np.full(2**bits - len(opaque), 255))[index[..., 0]]
    np.testing.assert_array_equal(read_plane(content, "alpha"), alpha)


@pytest.mark.parametrize(("colour", "num"), [(0, 1), (2, 3)])
@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_one_transparent_colour(png, colour, num, bits):
    values = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, num))
    clear = chunk(b"tRNS", values[3, 4].astype(">u2").tobytes())
    content = png(values, bits, colour, chunks=clear)
    np.testing.assert_array_equal(read(content)[..., :num], values)
    same = (values == values[3, 4]).all(2)
    np.testing.assert_array_equal(read_plane(content, "alpha"), np.where(same, 0, 255))


def test_a_png_number_beyond_its_palette_is_refused(png):
    index = np.full((HEIGHT, WIDTH, 1), 3)
    content = png(index, 2, 3, chunks=chunk(b"PLTE", bytes(9)))
    with pytest.raises(ImageError, match="the number 3, beyond its palette of 3 colours"):
        read(content)
    assert read_plane(content, "index").max() == 3


@pytest.mark.parametrize(("bits", "colour"), [(3, 0), (16, 3), (4, 2), (8, 5)])
def test_png_headers_that_do_not_exist_are_refused(bits, colour):
    size = struct.pack(">IIBBBBB", 4, 4, bits, colour, 0, 0, 0)
    with pytest.raises(ImageError, match=f"colour type {colour}, {bits} bits"):
        probe(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("kind", "content"),
    [("eXIf", b"MM\0*\0\0\0\x08" + bytes(6)), ("PLTE", bytes(9)), ("tRNS", b"\0\1"), ("IHDR", b"")],
)
def test_a_png_that_says_two_things_is_refused(png, kind, content):
    """Readers differ in which of two chunks they take."""
    twice = chunk(kind.encode(), content) * (1 if kind == "IHDR" else 2)
    with pytest.raises(ImageError, match=f"its chunk {kind} stands twice"):
        read(png(np.full((HEIGHT, WIDTH, 1), 3), 8, 0, chunks=twice))


@pytest.fixture(scope="session")
def animated(png):
    """Makes an APNG of two frames, whose second holds as many rows."""

    def make(rows, *, says=2):
        sides = struct.pack(">IIIIHHBB", WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
        second = b"".join(b"\0" + row.tobytes() for row in (255 - RGB)[:rows])
        before = chunk(b"acTL", struct.pack(">II", says, 0)) + chunk(b"fcTL", bytes(4) + sides)
        behind = chunk(b"fcTL", struct.pack(">I", 1) + sides)
        behind += chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(second))
        return png(RGB.astype(int), 8, 2, chunks=before, behind=behind)

    return make


def test_a_frame_whose_rows_end_early_is_refused(animated):
    whole, cut = animated(HEIGHT), animated(HEIGHT // 2)
    np.testing.assert_array_equal(read(whole, page=1), 255 - RGB)
    with Image.open(io.BytesIO(cut)) as image:
        image.seek(1)
        assert image.size == (WIDTH, HEIGHT)  # read in silence
        image.load()
    np.testing.assert_array_equal(read(cut, page=0), RGB)
    with pytest.raises(ImageError, match="truncated or damaged"):
        read(cut, page=1)


@pytest.mark.parametrize("says", [0, 1, 3])
def test_an_animation_of_other_frames_than_it_says_is_refused(animated, says):
    for page in (None, 0):
        with pytest.raises(ImageError, match=f"an animation of {says} frames, and holds 2"):
            read(animated(HEIGHT, says=says), page=page)
