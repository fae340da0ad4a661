"""Damage of every kind is refused, and no memory that was not decoded into comes through."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from assay.data.images.decode import read, read_plane
from assay.errors import ImageError

RNG = np.random.default_rng(5)
HEIGHT, WIDTH = 48, 64
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)


def saved(image, form, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def tiff(pixels, **options):
    file = io.BytesIO()
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(file, pixels, photometric=photometric, metadata=None, **options)
    return file.getvalue()


FILES = {
    "jpeg": saved(RGB, "JPEG", quality=90),
    "progressive": saved(RGB, "JPEG", progressive=True),
    "grey jpeg": saved(RGB[..., 0], "JPEG"),
    "png": saved(RGB, "PNG"),
    "palette": saved(RGB[..., 0] // 16, "PNG"),
    "png 16": cv2.imencode(".png", DEEP)[1].tobytes(),
    "bmp": saved(RGB, "BMP"),
    "webp": saved(RGB, "WEBP"),
    "lossless webp": saved(RGB, "WEBP", lossless=True),
    "tiff": tiff(RGB, rowsperstrip=7),
    "tiff 16": tiff(DEEP, rowsperstrip=7, compression="lzw", predictor=2),
    "grey tiff": tiff(RGB[..., 0].copy(), rowsperstrip=7, compression="packbits"),
    "deflate": tiff(RGB, tile=(16, 16), compression="deflate"),
    "zstd": tiff(DEEP, tile=(16, 32), compression="zstd"),
    "lzma": tiff(DEEP, rowsperstrip=9, compression="lzma"),
    "jpeg strips": tiff(RGB, rowsperstrip=16, compression="jpeg"),
    "webp strips": tiff(RGB, rowsperstrip=16, compression="webp"),
    "planes": tiff(RGB.transpose(2, 0, 1).copy(), planarconfig="separate", rowsperstrip=7),
    "big": tiff(RGB, bigtiff=True, tile=(16, 16)),
    "fax": saved(RGB[..., 0] > 127, "TIFF", compression="group4"),
    "floats": tiff(RGB[..., 0].astype("f4"), rowsperstrip=7),
}


def outcome(content, dirt):
    """What is read, or why not, after memory of many sizes was filled and freed."""
    held = [np.full(size, dirt, np.uint8) for size in (1 << 10, 1 << 14, 3 << 14, 3 << 16, 1 << 20)]
    held += [np.full((HEIGHT, WIDTH, 3), dirt, dtype) for dtype in (np.uint8, np.uint16) * 4]
    del held
    try:
        return read(content, max_pixels=10**6).tobytes()
    except ImageError as error:
        return str(error)


def mutants(content):
    yield content
    for i in range(40):
        changed = bytearray(content)
        if i % 4 == 0:
            changed = changed[: int(RNG.integers(8, len(changed)))]
        for _ in range(int(RNG.integers(1, 4))):
            changed[int(RNG.integers(0, len(changed)))] = int(RNG.integers(0, 256))
        yield bytes(changed)


@pytest.mark.parametrize("name", FILES)
def test_twice_in_one_process_is_the_same(name, capfd):
    for content in mutants(FILES[name]):
        assert outcome(content, 0x55) == outcome(content, 0xAA)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def edited(content, code, values, kind="I"):
    """The file with other values of a tag."""
    changed = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tag = file.pages.first.tags[code]
        start = tag.valueoffset
    for number, value in values.items():
        struct.pack_into(f"<{kind}", changed, start + number * struct.calcsize(kind), value)
    return bytes(changed)


STRIPS = FILES["tiff 16"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (edited(STRIPS, 273, {3: 0}), "strip or tile 3 is missing"),
        (edited(STRIPS, 279, {3: 0}, "H"), "strip or tile 3 is missing"),
        (edited(STRIPS, 279, {3: 90}, "H"), "strip or tile 3 has"),
        (edited(STRIPS, 273, {3: 1 << 30}), "beyond its end"),
        (edited(STRIPS, 279, {6: 60_000}, "H"), "beyond its end"),
        (
            edited(FILES["tiff"], 279, {3: 1000}, "H"),
            "strip or tile 3 has 1000 bytes and not the 1344",
        ),
        (edited(FILES["big"], 325, {5: 0}, "H"), "strip or tile 5 is missing"),
        (STRIPS[:-200], "beyond its end"),
    ],
)
def test_strips_that_are_missing_or_end_early_are_refused(content, reason):
    with pytest.raises(ImageError, match=reason):
        read(content)
    with pytest.raises(ImageError, match=reason):
        read_plane(content, "level")


def test_a_strip_of_a_tiff_whose_jpeg_ends_early_is_refused():
    content = FILES["jpeg strips"]
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        start, num = page.dataoffsets[1], page.databytecounts[1]
    half = start + num // 2
    cut = content[:half] + b"\xff\xd9" + bytes(start + num - half - 2) + content[start + num :]
    with pytest.raises(ImageError, match="its data end early"):
        read(cut)


@pytest.mark.parametrize("name", ["png", "palette", "png 16"])
def test_a_png_whose_sums_are_right_and_whose_pixels_end_early_is_refused(name):
    content = FILES[name]
    start, parts, at = content.index(b"IDAT") - 4, b"", content.index(b"IDAT") - 4
    while content[at + 4 : at + 8] == b"IDAT":
        (length,) = struct.unpack(">I", content[at : at + 4])
        parts += content[at + 8 : at + 8 + length]
        at += 12 + length
    pixels = zlib.decompress(parts)
    short = b"IDAT" + zlib.compress(pixels[: len(pixels) // 2])
    body = struct.pack(">I", len(short) - 4) + short + struct.pack(">I", zlib.crc32(short))
    with pytest.raises(ImageError, match="truncated or damaged"):
        read(content[:start] + body + content[at:])


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_is_refused(name):
    content = FILES[name]
    read(content)
    for share in (0.02, 0.3, 0.6, 0.9, 0.97):
        with pytest.raises(ImageError):
            read(content[: int(share * len(content))])
