"""Files whose tags, markers or chunks say two things, or of which readers show different pictures."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from assay.data.images.decode import read
from assay.data.images.pyramid import ImagePyramid
from assay.errors import ImageError

RNG = np.random.default_rng(11)
RGB = RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8)
SMOOTH = np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[:, None, None], (1, 40, 3))
TURNED = np.rot90(RGB, -1)
PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind, content):
    sums = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + sums


def png(before=(), after=(), kind=2, pixels=RGB):
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    named = [b"".join(chunk(*each) for each in chunks) for chunks in (before, after)]
    return (
        PNG
        + header
        + named[0]
        + chunk(b"IDAT", zlib.compress(rows))
        + named[1]
        + chunk(b"IEND", b"")
    )


def saved(pixels, format, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


# EXIF


def exif(*entries, has_next=True):
    """Write a block of tags of one short each."""
    tags = b"".join(struct.pack("<HHIHxx", code, 3, 1, value) for code, value in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + tags + bytes(4 * has_next)


@pytest.mark.parametrize("has_next", [True, False])
@pytest.mark.parametrize("others", [(), ((270, 1), (270, 1)), ((270, 1), (270, 2)), ((274, 6),)])
def test_an_orientation_is_found_beside_what_an_exif_block_has_wrong(has_next, others):
    block = exif(*others, (274, 6), has_next=has_next)
    files = [png([(b"eXIf", block)]), saved(RGB, "WEBP", lossless=True, exif=block)]
    for content in files:
        assert np.array_equal(read(content), TURNED)
    content = saved(SMOOTH, "JPEG", exif=b"Exif\0\0" + block)
    assert read(content).shape == (40, 32, 3)


def test_two_orientations_in_one_block_are_refused():
    with pytest.raises(ImageError, match="two orientations"):
        read(png([(b"eXIf", exif((274, 6), (274, 1)))]))


PACKET = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {}/>'
SAYS_6 = (PACKET.format('tiff:Orientation="6"'), "<tiff:Orientation>6</tiff:Orientation>")


@pytest.mark.parametrize("packet", SAYS_6)
def test_an_orientation_that_xmp_alone_says_is_refused(packet):
    """Pillow turns by it and OpenCV does not; where EXIF says one, all agree."""
    xmp, upright = packet.encode(), packet.replace("6", "1").encode()

    def files(xmp, **options):
        yield png([(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + xmp)])
        yield saved(RGB, "WEBP", lossless=True, xmp=xmp, **options)
        yield saved(SMOOTH, "JPEG", xmp=xmp, **options)

    for content in files(xmp):
        with pytest.raises(ImageError, match="XMP says orientation 6 and its EXIF none"):
            read(content)
    for content in files(upright):
        read(content)
    turned = [*files(xmp, exif=exif((274, 3)))][1]
    assert np.array_equal(read(turned), RGB[::-1, ::-1])


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_xmp_of_a_tiff_is_no_other(tile):
    """Pillow turns by it too, and neither OpenCV nor tifffile; the tag of orientation counts where it stands."""
    pixels = np.full((300, 200), 7, np.uint8)
    for says, tags in (("6", []), ("1", []), ("6", [(274, 3, 1, 3, True)])):
        file = io.BytesIO()
        packet = PACKET.format(f'tiff:Orientation="{says}"').encode()
        extra = [(700, 1, len(packet), packet, True), *tags]
        with tifffile.TiffWriter(file) as writer:
            writer.write(pixels, tile=tile, extratags=extra)
            writer.write(pixels[::2, ::2], tile=tile, subfiletype=1)  # an overview
        if says == "6" and not tags:
            for reading in (read, ImagePyramid.read):
                with pytest.raises(ImageError, match="XMP says orientation 6"):
                    reading(file.getvalue())
        else:
            assert read(file.getvalue()).shape == (300, 200, 3)


def raw_profile(content):
    """Write a profile in hexadecimal digits, as ImageMagick does."""
    digits = content.hex().encode()
    rows = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    return b"\nexif\n%8d\n" % len(content) + b"\n".join(rows) + b"\n"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, b"Raw profile type exif") for kind in (b"tEXt", b"zTXt", b"iTXt")),
        (b"zTXt", b"Raw profile type APP1"),
        (b"iTXt", b"XML:com.adobe.xmp"),
    ],
)
def test_an_orientation_in_another_text_of_a_png_is_refused(kind, name):
    """Compressed too, and before or behind the pixels; as in PNGs that were made from photos of phones."""

    def text(orientation):
        if name == b"XML:com.adobe.xmp":
            words = PACKET.format(f'tiff:Orientation="{orientation}"').encode()
        else:
            words = raw_profile(b"Exif\0\0" + exif((271, 1), (274, orientation)))
        packed = zlib.compress(words)
        body = {b"tEXt": words, b"zTXt": b"\0" + packed, b"iTXt": b"\1\0en\0\0" + packed}[kind]
        return kind, name + b"\0" + body

    for place in ("before", "after"):
        with pytest.raises(ImageError, match=r"says orientation 6 and its EXIF none"):
            read(png(**{place: [text(6)]}))
    assert np.array_equal(read(png([text(1)])), RGB)
    assert np.array_equal(read(png([(b"eXIf", exif((274, 6))), text(6)])), TURNED)
    torn = kind, name + b"\0\1\0\0\0torn"
    assert np.array_equal(read(png([torn])), RGB)


def test_exif_with_its_prefix_twice_is_read():
    """As Pillow wrote it, and reads it."""
    block = b"Exif\0\0" + exif((274, 6))
    assert np.array_equal(read(saved(RGB, "WEBP", lossless=True, exif=b"Exif\0\0" + block)), TURNED)
    content = saved(SMOOTH, "JPEG", exif=block)
    twice = content.replace(
        struct.pack(">H", len(block) + 2) + block,
        struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block,
    )
    assert len(twice) == len(content) + 6
    assert read(twice).shape == (40, 32, 3)


# PNG


ANIMATION = (b"acTL", struct.pack(">II", 2, 0))
PALETTE = (b"PLTE", bytes(range(256)) * 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png([(b"ABCD", b"")]), "without its chunk ABCD"),
        (png([PALETTE], [(b"tRNS", b"\0")], 3, RGB[..., 0]), "tRNS stands behind"),
        (png((), [PALETTE], 3, RGB[..., 0]), "PLTE stands behind"),
        (png([(b"PLTE", bytes(771))], (), 3, RGB[..., 0]), "palette"),
        (png([ANIMATION]), "none of its frames"),
        (png([(b"acTL", struct.pack(">II", 1, 0))]), "none of its frames"),
    ],
)
def test_chunks_that_are_read_in_two_ways_are_refused(content, message):
    with pytest.raises(ImageError, match=message):
        read(content, page=0)


def test_two_pngs_one_behind_the_other_are_a_choice():
    """As pipes of video tools write them into one file."""
    first, second = png(), png(pixels=RGB[::-1])
    with pytest.raises(ImageError, match=r"2 pictures, one behind the other.*--data\.page 0"):
        read(first + second)
    assert np.array_equal(read(first + second, page=0), RGB)
    assert np.array_equal(read(first + b"\0" + second[:7]), RGB)


def test_later_frames_of_a_palette_are_refused():
    frames = [Image.fromarray(RGB[..., k] // 16).convert("P") for k in range(2)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(read(file.getvalue(), page=0), np.array(frames[0].convert("RGB")))
    with pytest.raises(ImageError, match="a palette; save"):
        read(file.getvalue(), page=1)


def test_frames_of_16_bits_are_not_brought_to_8():
    frames = [Image.fromarray(RGB[..., 0].astype(np.uint16) * 257 * k) for k in (1, 0)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(read(file.getvalue(), page=0)[..., 0], np.array(frames[0]))
    with pytest.raises(ImageError, match="16 bits"):
        read(file.getvalue(), page=1)


def test_a_webp_of_two_images_is_refused():
    whole = saved(RGB, "WEBP", lossless=True)
    twice = b"RIFF" + struct.pack("<I", 2 * len(whole) - 20) + whole[8:] + whole[12:]
    with pytest.raises(ImageError, match="two images"):
        read(twice)


# JPEG


def adobe(transform):
    return b"\xff\xee\0\x0eAdobe\0d\0\0\0\0" + bytes([transform])


JFIF = saved(SMOOTH, "JPEG", quality=95)
AS_RGB = imagecodecs.jpeg8_encode(SMOOTH, colorspace="RGB", outcolorspace="RGB")  # Adobe's marker 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (JFIF[:20] + adobe(0) + JFIF[20:], "JFIF"),
        (AS_RGB[:2] + JFIF[2:20] + AS_RGB[18:], "JFIF"),  # components called R, G and B
        (JFIF[:2] + adobe(0) + adobe(1) + JFIF[20:], "two Adobe markers"),
    ],
)
def test_markers_that_say_other_colours_are_refused(content, message):
    with pytest.raises(ImageError, match=message):
        read(content)


@pytest.mark.parametrize(
    "content", [JFIF[:20] + adobe(1) + JFIF[20:], AS_RGB, JFIF[:2] + JFIF[20:]]
)
def test_markers_that_agree_are_read(content):
    assert np.abs(read(content).astype(int) - SMOOTH).max() < 8


# TIFF


def tiff(pictures, photometric=2):
    """Write uncompressed pictures: (pixels, further tags, pictures that hang below)."""
    out = bytearray(struct.pack("<2sHI", b"II", 42, 0))

    def write(pixels, tags, below):
        offsets = [write(*each) for each in below]
        height, width, num = pixels.shape
        start = len(out)
        out.extend(pixels.tobytes() + bytes(pixels.size % 2))
        known = {256: width, 257: height, 258: 8, 259: 1, 262: photometric, 273: start, 277: num}
        entries = known | {278: height, 279: pixels.size} | tags
        entries |= {330: offsets[0]} if offsets else {}
        place = len(out)
        packed = [
            struct.pack("<HHII", code, 4, 1, value) for code, value in sorted(entries.items())
        ]
        out.extend(struct.pack("<H", len(packed)) + b"".join(packed) + bytes(4))
        return place

    out[4:8] = struct.pack("<I", write(*pictures))
    return bytes(out)


def test_a_picture_below_a_preview_is_turned_as_the_preview_says():
    inner = (RGB, {254: 0}, [])
    assert np.array_equal(read(tiff((RGB[:6, :5], {254: 1, 274: 6}, [inner]))), TURNED)
    own = (RGB, {254: 0, 274: 1}, [])
    assert np.array_equal(read(tiff((RGB[:6, :5], {254: 1, 274: 6}, [own]))), RGB)


def test_a_preview_that_nobody_marked_is_not_taken_for_the_image():
    content = tiff((RGB[:6, :5], {}, [(RGB, {}, [])]))
    with pytest.raises(ImageError, match="2 pages"):
        read(content)
    assert np.array_equal(read(content, page=1), RGB)
    assert np.array_equal(read(tiff((RGB, {}, [(RGB[:6, :5], {}, [])]))), RGB)


def test_inks_counted_the_other_way_round_are_refused():
    inks = np.concatenate([RGB, RGB[..., :1]], 2)
    file = io.BytesIO()
    tifffile.imwrite(file, inks, photometric="separated", extratags=[(336, 3, 2, (255, 0), True)])
    with pytest.raises(ImageError, match="DotRange"):
        read(file.getvalue())
    file = io.BytesIO()
    tifffile.imwrite(file, inks, photometric="separated", extratags=[(336, 3, 2, (0, 255), True)])
    assert read(file.getvalue()).shape == RGB.shape


def test_a_jpeg_of_other_colours_than_its_tag_is_refused():
    strip = np.frombuffer(AS_RGB, np.uint8)[None, :, None]
    tags = {256: 40, 257: 32, 259: 7, 277: 3, 278: 32}
    assert read(tiff((strip, tags, []))).shape == SMOOTH.shape
    with pytest.raises(ImageError, match=r"6 \(YCbCr\), and a JPEG in it holds RGB"):
        read(tiff((strip, tags, []), photometric=6))
    ycc = saved(SMOOTH, "JPEG", subsampling=2)
    bare = ycc[:2] + ycc[20:]  # without the marker that says YCbCr, as scanners of slides write it
    strip = np.frombuffer(bare, np.uint8)[None, :, None]
    assert np.array_equal(read(tiff((strip, tags, []), photometric=6)), read(ycc))
    with pytest.raises(ImageError, match=r"2 \(RGB\), and a JPEG in it holds YCbCr"):
        read(tiff((strip, tags, [])))


def test_a_predictor_that_does_not_fit_is_told_from_those_that_do():
    tags = {259: 8, 317: 3}
    with pytest.raises(ImageError, match=r"allowed: 1 \(NONE\), 2 \(HORIZONTAL\);"):
        read(tiff((RGB, tags, [])))
