"""TIFF by what its tags say, written by hand: packed bits, palettes, fax codes, two values of one tag."""

import io
import struct
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from assay.data.images.decode import probe, read, read_plane
from assay.errors import ImageError

RNG = np.random.default_rng(3)
HEIGHT, WIDTH = 37, 53


def noise(dtype, *channels, bits=None):
    top = 2 ** (bits or 8 * np.dtype(dtype).itemsize)
    return RNG.integers(0, top, (HEIGHT, WIDTH, *channels), dtype=dtype)


def by_hand(tags, content, order="<"):
    """A TIFF of one strip, of tags (code: value or values, of 16 bits but where given as bytes)."""
    tags = {256: WIDTH, 257: HEIGHT, 259: 1, 262: 1, 277: 1, 278: HEIGHT} | tags
    tags |= {273: 0, 279: len(content)}
    tags = dict(sorted((code, value) for code, value in tags.items() if value is not None))
    room = 8 + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for code, value in tags.items():
        wide = code in (273, 279)
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(order + ("I" if wide else "H") * len(values), *values)
        if code == 273:
            packed = b"here"
        entries += struct.pack(order + "HHI", code, 4 if wide else 3, len(values))
        if len(packed) > 4:
            entries += struct.pack(order + "I", room + len(extra))
            extra += packed
        else:
            entries += packed.ljust(4, b"\0")
    start = struct.pack(order + "I", room + len(extra))
    entries = entries.replace(b"here", start)
    magic = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    return magic + struct.pack(order + "H", len(tags)) + entries + bytes(4) + extra + content


def grey(values):
    return np.stack([values] * 3, -1)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_alpha_of_any_depth_is_brought_to_8_bits(pack, bits):
    values = noise("u2", 2, bits=bits)
    order = values.astype("u1" if bits == 8 else "<u2").tobytes()
    packed = order if bits % 8 == 0 else pack(values.reshape(HEIGHT, -1), bits).tobytes()
    content = by_hand({258: (bits,) * 2, 277: 2, 338: 2}, packed)
    alpha = values[..., 1] / (2**bits - 1) * 255
    assert np.abs(read_plane(content, "alpha") - alpha).max() <= 0.5


def test_two_orientations_are_refused():
    content = by_hand({258: 8, 274: (1, 6)}, noise("u1").tobytes())
    with pytest.raises(ImageError, match=r"274 \(Orientation\) has the values \[1, 6\]"):
        read(content)
    assert probe(by_hand({258: 8, 274: (6, 6)}, noise("u1").tobytes())) == (WIDTH, HEIGHT)


def test_inks_of_one_range_that_others_do_not_have_are_refused():
    inks = noise("u1", 4)
    tags = {258: (8,) * 4, 262: 5, 277: 4}
    plain = read(by_hand(tags, inks.tobytes()))
    for ranges in ((0, 255), (0, 255) * 4):
        np.testing.assert_array_equal(read(by_hand(tags | {336: ranges}, inks.tobytes())), plain)
    for ranges in ((255, 0), (0, 255, 255, 0, 0, 255, 0, 255), (0, 255, 0)):
        with pytest.raises(ImageError, match=r"DotRange \(336\) is"):
            read(by_hand(tags | {336: ranges}, inks.tobytes()))


def test_a_fill_order_is_refused_with_what_may_stand_there():
    with pytest.raises(ImageError, match=r"FillOrder \(266\) is 2, allowed: 1;"):
        read(by_hand({258: 16, 266: 2}, noise("u2").tobytes()))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_packed_grey(pack, bits, photometric, order):
    values = noise("u2", bits=bits)
    content = by_hand({258: bits, 262: photometric}, pack(values, bits).tobytes(), order)
    right = values if photometric else 2**bits - 1 - values
    shown = right * (255 // (2**bits - 1)) if bits < 8 else right
    pixels = read(content)
    assert pixels.dtype == (np.uint8 if bits < 8 else np.uint16)
    np.testing.assert_array_equal(pixels, grey(shown))
    np.testing.assert_array_equal(read_plane(content, "index"), right)
    level = shown if bits < 8 else np.rint(right / (2**bits - 1) * 65535)
    np.testing.assert_array_equal(read_plane(content, "level"), level)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_rgb(pack, bits):
    values = noise("u2", 3, bits=bits)
    tags = {258: (bits,) * 3, 262: 2, 277: 3}
    content = by_hand(tags, pack(values.reshape(HEIGHT, -1), bits).tobytes())
    np.testing.assert_array_equal(read(content), values)


@pytest.mark.parametrize("fill_order", [1, 2])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_bilevel_of_any_codec(pack, codec, photometric, fill_order):
    """Fax codes are written by Pillow's libtiff, in the order of bits that is not asked for too."""
    bits = RNG.integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)
    content = pack(bits, 1).tobytes()
    if codec > 1:
        content = fax(bits, codec)
    if fill_order == 2:
        content = bytes(imagecodecs.bitorder_encode(content))
    file = by_hand({258: 1, 259: codec, 262: photometric, 266: fill_order}, content)
    right = bits if photometric else 1 - bits
    np.testing.assert_array_equal(read(file), grey(right * np.uint8(255)))
    np.testing.assert_array_equal(read_plane(file, "index"), right)


BILEVEL = {
    "noise": RNG.integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8),
    "white below": np.pad(
        np.ones((HEIGHT // 3, WIDTH), np.uint8), ((0, HEIGHT - HEIGHT // 3), (0, 0))
    ),
    "black below": np.tri(HEIGHT, WIDTH, dtype=np.uint8),
    "white": np.zeros((HEIGHT, WIDTH), np.uint8),
    "black": np.ones((HEIGHT, WIDTH), np.uint8),
    "lines": np.tile(np.uint8([[0], [1]]), (HEIGHT, WIDTH))[:HEIGHT],
}


@pytest.mark.parametrize("codec", [2, 3, 4])
def test_fax_data_that_end_early_are_refused(codec):
    """Decoders make what is missing white; cuts within an end of line cannot all be told."""
    num = passed = 0
    for bits in BILEVEL.values():
        tags, content = {258: 1, 259: codec, 262: 1}, fax(bits, codec)
        right = read(by_hand(tags, content))
        np.testing.assert_array_equal(right, grey(bits * np.uint8(255)))
        for stop in range(1, len(content)):
            num += 1
            with suppress(ImageError):
                passed += not np.array_equal(read(by_hand(tags, content[:stop])), right)
    assert num > 100
    assert passed <= num * (0.1 if codec == 3 else 0.02)


def fax(bits, codec):
    """The strip that libtiff makes of bits, which count black as 1."""
    name = {2: "tiff_ccitt", 3: "group3", 4: "group4"}[codec]
    file = io.BytesIO()
    Image.fromarray(bits.astype(bool)).save(file, "TIFF", compression=name, tiffinfo={278: HEIGHT})
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
        (start,), (num,) = tiff.pages.first.dataoffsets, tiff.pages.first.databytecounts
    return file.getvalue()[start : start + num]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("scale", [1, 256, 257])
def test_palettes_of_8_bits_in_16(pack, bits, scale):
    colours = RNG.integers(0, 256, (2**bits, 3), dtype=np.uint16)
    colours[0] = 255
    index = noise("u2", bits=bits)
    tags = {258: bits, 262: 3, 320: tuple((colours.T * scale).ravel().tolist())}
    content = by_hand(tags, pack(index, bits).tobytes())
    image = read(content)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, colours[index])
    np.testing.assert_array_equal(read_plane(content, "index"), index)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({259: 6}, r"Compression \(259\) is 6 \(OJPEG\)"),
        ({259: None}, r"259 \(Compression\) is missing"),
        ({262: None}, r"262 \(PhotometricInterpretation\) is missing"),
        ({262: 6}, r"\(262\) is 6 \(YCBCR\)"),
        ({258: (5, 6, 5), 277: 3, 262: 2}, r"258 \(BitsPerSample\) has the values \[5, 6\]"),
        ({258: 24}, r"BitsPerSample \(258\) is 24"),
        ({332: 2, 262: 5, 277: 4}, r"InkSet \(332\) is 2"),
        ({338: 3, 277: 2}, r"ExtraSamples \(338\) is 3"),
        ({339: 4}, r"SampleFormat \(339\) is 4"),
        ({32997: 2}, r"ImageDepth \(32997\) is 2"),
        ({317: 34892}, r"Predictor \(317\) is 34892"),
        ({256: 0}, "0 x 37 pixels"),
        ({278: 5}, r"273 \(StripOffsets\) has 1 values, and its size needs 8"),
        ({262: 3}, r"320 \(ColorMap\) has 0 values"),
    ],
)
def test_other_tags_are_refused_by_name(tags, reason):
    content = by_hand({258: 8} | tags, bytes(HEIGHT * WIDTH * 4))
    with pytest.raises(ImageError, match=reason):
        read(content)
