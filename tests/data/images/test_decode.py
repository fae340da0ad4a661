import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from assay.data.images.decode import SUFFIXES, probe, read, read_plane, write_png
from assay.errors import ImageError

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (13, 18, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (13, 18, 3), dtype=np.uint16)
GREY, GREY16 = RGB[..., 0], RGB16[..., 0]
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 3)

# Exif 2.32, tag 0x0112: the visual side on which row 0 and column 0 of the stored image lie.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored_from_upright(upright, orientation):
    row0, column0 = SIDES[orientation]
    stored = upright if row0 in ("top", "bottom") else upright.swapaxes(0, 1)
    stored = stored[::-1] if row0 in ("bottom", "right") else stored
    return stored[:, ::-1] if column0 in ("bottom", "right") else stored


def pil_bytes(image, format, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def cv2_bytes(suffix, rgb):
    bgr = rgb[..., [2, 1, 0, 3][: rgb.shape[2]]] if rgb.ndim == 3 else rgb
    return cv2.imencode(suffix, np.ascontiguousarray(bgr))[1].tobytes()


def replicate(grey):
    return np.stack([grey] * 3, -1)


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width, height, body, bits=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def tiff16(rgb, orientation):
    """Write an uncompressed little-endian 16-bit RGB TIFF, which Pillow cannot write."""
    height, width, _ = rgb.shape
    content = rgb.astype("<u2").tobytes()
    bits_at = 8 + 2 + 12 * 10 + 4
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, bits_at + 6),
        (274, 3, 1, orientation),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(content)),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, 10) + entries + struct.pack("<I", 0)
    return head + struct.pack("<3H", 16, 16, 16) + content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(pil_bytes(RGB, "PNG"), RGB, id="png"),
        pytest.param(pil_bytes(RGB, "BMP"), RGB, id="bmp"),
        pytest.param(pil_bytes(RGB, "TIFF"), RGB, id="tiff"),
        pytest.param(pil_bytes(RGB, "TIFF", compression="tiff_lzw"), RGB, id="tiff-lzw"),
        pytest.param(pil_bytes(RGB, "WEBP", lossless=True), RGB, id="webp"),
        pytest.param(pil_bytes(GREY, "PNG"), replicate(GREY), id="grey"),
        pytest.param(
            pil_bytes(GREY, "PNG", transparency=int(GREY[0, 0])), replicate(GREY), id="grey-trns"
        ),
        pytest.param(pil_bytes(GREY, "BMP"), replicate(GREY), id="grey-bmp"),
        pytest.param(cv2_bytes(".png", GREY16), replicate(GREY16), id="grey16"),
        pytest.param(cv2_bytes(".tif", GREY16), replicate(GREY16), id="grey16-tiff"),
        pytest.param(
            pil_bytes(Image.fromarray(GREY16), "TIFF"), replicate(GREY16), id="grey16-tiff-pil"
        ),
        pytest.param(cv2_bytes(".png", RGB16), RGB16, id="rgb16"),
        pytest.param(cv2_bytes(".tif", RGB16), RGB16, id="rgb16-tiff"),
        pytest.param(
            cv2_bytes(".png", np.concatenate([RGB16, 0 * RGB16[..., :1]], 2)), RGB16, id="rgba16"
        ),
        pytest.param(
            pil_bytes(np.concatenate([RGB, 0 * RGB[..., :1]], 2), "PNG"), RGB, id="rgba-clear"
        ),
        pytest.param(
            pil_bytes(np.stack([GREY, 0 * GREY], 2), "PNG"), replicate(GREY), id="la-clear"
        ),
        pytest.param(
            pil_bytes(np.where(GREY > 99, np.uint8(255), np.uint8(0)), "PNG", bits=1),
            replicate(np.where(GREY > 99, np.uint8(255), np.uint8(0))),
            id="two-valued",
        ),
        pytest.param(
            pil_bytes(Image.fromarray(GREY > 99), "PNG"),
            replicate(np.where(GREY > 99, np.uint8(255), np.uint8(0))),
            id="one-bit",
        ),
    ],
)
def test_lossless_pixels_are_exact(content, expected):
    image = read(content)
    assert image.dtype == expected.dtype
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)
    assert probe(content) == expected.shape[:2]


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255, 0])])
def test_palette_keeps_the_colours_under_transparency(transparency):
    palette = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 100], [1, 2, 3]], np.uint8)
    index = RNG.integers(0, 4, (6, 9), dtype=np.uint8)
    image = Image.frombytes("P", (9, 6), index.tobytes())
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(read(pil_bytes(image, "PNG", **options)), palette[index])


def test_16_bit_grey_with_alpha_keeps_16_bits():
    rows = b"".join(
        b"\0" + np.stack([line, 0 * line], -1).astype(">u2").tobytes() for line in GREY16
    )
    content = png(18, 13, chunk(b"IDAT", zlib.compress(rows)), bits=16, colour=4)
    np.testing.assert_array_equal(read(content), replicate(GREY16))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_close_to_what_was_saved(options):
    image = read(pil_bytes(SMOOTH, "JPEG", quality=98, **options))
    assert np.abs(image.astype(int) - SMOOTH).mean() < 1.5


def test_grey_jpeg_has_three_equal_channels():
    image = read(pil_bytes(SMOOTH[..., 1], "JPEG", quality=98))
    assert not np.ptp(image, axis=-1).any()
    assert np.abs(image[..., 0].astype(int) - SMOOTH[..., 1]).max() < 4


@pytest.mark.parametrize("cmyk", [(0, 0, 0, 0), (255, 0, 0, 0), (30, 180, 90, 60), (0, 0, 0, 200)])
def test_adobe_cmyk_jpeg(cmyk):
    content = pil_bytes(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=100)
    assert b"Adobe" in content
    expected = [(255 - ink) * (255 - cmyk[3]) / 255 for ink in cmyk[:3]]
    assert np.abs(read(content) - np.array(expected)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_undone(format, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    stored = stored_from_upright(RGB, orientation)
    content = pil_bytes(
        stored, format, exif=exif, **({"lossless": True} if format == "WEBP" else {})
    )
    np.testing.assert_array_equal(read(content), RGB)
    assert probe(content) == RGB.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_orientation_agrees_with_pillow(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = pil_bytes(stored_from_upright(SMOOTH, orientation), "JPEG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(read(content), expected)
    assert np.abs(read(content).astype(int) - SMOOTH).mean() < 4
    assert probe(content) == SMOOTH.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_tiff_orientation(orientation):
    content = tiff16(stored_from_upright(RGB16, orientation), orientation)
    np.testing.assert_array_equal(read(content), RGB16)
    assert probe(content) == RGB16.shape[:2]


def test_png_orientation_behind_the_pixels_is_found():
    exif = Image.Exif()
    exif[274] = 6
    content = pil_bytes(stored_from_upright(RGB, 6), "PNG")
    content = content[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + content[-12:]
    np.testing.assert_array_equal(read(content), RGB)
    assert probe(content) == RGB.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_unreadable_exif_is_ignored(exif):
    content = pil_bytes(SMOOTH, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    with_exif = content[:2] + segment + content[2:]
    np.testing.assert_array_equal(read(with_exif), read(content))


WHOLE = {
    "jpeg": pil_bytes(SMOOTH, "JPEG"),
    "progressive": pil_bytes(SMOOTH, "JPEG", progressive=True),
    "png": pil_bytes(SMOOTH, "PNG"),
    "palette png": pil_bytes(Image.fromarray(SMOOTH).quantize(16), "PNG"),
    "png16": cv2_bytes(".png", RGB16),
    "webp": pil_bytes(SMOOTH, "WEBP"),
    "bmp": pil_bytes(SMOOTH, "BMP"),
    "tiff": pil_bytes(SMOOTH, "TIFF"),
}


@pytest.mark.filterwarnings("ignore:(Corrupt EXIF data|Truncated File Read):UserWarning")
@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
def test_any_truncation_is_refused(name, data):
    content = WHOLE[name]
    # Pillow writes a TIFF's pixels last, with its header in front and one byte of padding at most.
    length = data.draw(st.integers(0, len(content) - (2 if name == "tiff" else 1)))
    read(content)
    with pytest.raises(ImageError, match=r"<bytes> cannot be read: ."):
        read(content[:length])


def test_truncation_behind_a_thumbnail_is_refused():
    thumbnail = b"Exif\0\0" + pil_bytes(SMOOTH[:20, :20], "JPEG")
    content = pil_bytes(SMOOTH, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = content[:2] + segment + content[2:]
    assert read(whole).shape == SMOOTH.shape
    with pytest.raises(ImageError, match="truncated, its end marker is missing"):
        read(whole[:-200])


def test_zero_filled_tail_is_refused():
    content = WHOLE["jpeg"]
    with pytest.raises(ImageError, match="truncated"):
        read(content[: len(content) // 2] + bytes(len(content) // 2))


def test_bytes_after_the_end_do_not_matter():
    for name in ("jpeg", "png"):
        np.testing.assert_array_equal(read(WHOLE[name] + bytes(100)), read(WHOLE[name]))


@given(position=st.integers(0, len(WHOLE["png"]) - 13), flip=st.integers(1, 255))
def test_a_damaged_png_is_refused_or_unharmed(position, flip):
    damaged = bytearray(WHOLE["png"])
    damaged[position] ^= flip
    try:
        image = read(bytes(damaged))
    except ImageError:
        return
    np.testing.assert_array_equal(image, SMOOTH)


@given(position=st.integers(0, len(WHOLE["jpeg"]) - 1), flip=st.integers(1, 255))
def test_a_damaged_jpeg_gives_pixels_or_an_image_error(position, flip):
    damaged = bytearray(WHOLE["jpeg"])
    damaged[position] ^= flip
    try:
        assert read(bytes(damaged), max_pixels=10**6).shape[2] == 3
    except ImageError:
        return


def test_too_many_pixels_are_refused_from_the_header():
    bomb = png(30_000, 30_000, chunk(b"IDAT", zlib.compress(bytes(100))))
    with pytest.raises(
        ImageError, match=r"30000 x 30000 = 900000000 pixels, the limit is 400000000"
    ):
        read(bomb)
    assert probe(bomb) == (30_000, 30_000)
    with pytest.raises(ImageError, match="234 pixels, the limit is 233"):
        read(pil_bytes(RGB, "PNG"), max_pixels=233)
    assert read(pil_bytes(RGB, "PNG"), max_pixels=234).shape == RGB.shape


def test_the_limit_is_ours_and_not_pillows():
    before = Image.MAX_IMAGE_PIXELS
    assert before is not None
    side = int((2 * before) ** 0.5) + 100
    content = png(side, side, chunk(b"IDAT", zlib.compress(bytes(100))))
    with pytest.raises(ImageError, match="truncated or damaged"):
        read(content)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"\xff\xd8",
        b"hello",
        b"RIFF\0\0\0\0WAVEfmt ",
        pil_bytes(RGB, "GIF"),
        b"%PDF-1.7 ....",
    ],
)
def test_other_formats_are_refused(content):
    with pytest.raises(ImageError, match="only JPEG, PNG, BMP, TIFF and WebP files are read"):
        read(content)
    with pytest.raises(ImageError):
        probe(content)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "part_7.jpg"
    with pytest.raises(ImageError, match=r"part_7\.jpg cannot be read"):
        read(path)
    path.touch()
    with pytest.raises(ImageError, match=r"part_7\.jpg cannot be read: it is empty\."):
        read(path)
    path.write_bytes(WHOLE["jpeg"][:-50])
    with pytest.raises(ImageError, match=r"part_7\.jpg cannot be read: it is truncated"):
        read(str(path))
    path.write_bytes(WHOLE["jpeg"])
    np.testing.assert_array_equal(read(path), read(WHOLE["jpeg"]))


def test_the_suffix_does_not_choose_the_format(tmp_path):
    path = tmp_path / f"image{SUFFIXES[0]}"
    path.write_bytes(pil_bytes(RGB, "PNG"))
    np.testing.assert_array_equal(read(path), RGB)


# Planes of masks


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_index_of_a_grey_file(format):
    assert np.array_equal(read_plane(pil_bytes(GREY, format), "index"), GREY)


def test_index_of_palette_and_bits():
    palette = Image.fromarray(GREY)
    palette.putpalette(RGB.tobytes()[:768].ljust(768, b"\x09"))
    assert np.array_equal(read_plane(pil_bytes(palette, "PNG"), "index"), GREY)
    colours = np.array(palette.convert("RGB"))
    assert np.array_equal(read_plane(pil_bytes(palette, "PNG"), "level"), colours.max(2))
    bits = pil_bytes(Image.fromarray(GREY > 99), "PNG")
    assert np.array_equal(read_plane(bits, "index"), GREY > 99)
    assert np.array_equal(read_plane(bits, "level"), (GREY > 99) * 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_planes_keep_16_bits(suffix):
    for plane in ("index", "level"):
        assert np.array_equal(read_plane(cv2_bytes(suffix, GREY16), plane), GREY16)


def test_level_and_alpha_of_colours():
    rgba = np.dstack([RGB, GREY[::-1]])
    for content in (cv2_bytes(".png", rgba), pil_bytes(rgba, "TIFF")):
        assert np.array_equal(read_plane(content, "level"), RGB.max(2))
        assert np.array_equal(read_plane(content, "alpha"), GREY[::-1])
    grey = pil_bytes(Image.fromarray(np.dstack([GREY, GREY[::-1]]), "LA"), "PNG")
    assert np.array_equal(read_plane(grey, "level"), GREY)
    assert np.array_equal(read_plane(grey, "alpha"), GREY[::-1])
    assert np.array_equal(read_plane(cv2_bytes(".png", replicate(GREY)), "index"), GREY)


def test_planes_that_are_not_there_are_refused():
    with pytest.raises(ImageError, match="no alpha"):
        read_plane(cv2_bytes(".png", RGB), "alpha")
    for content in (cv2_bytes(".png", RGB), cv2_bytes(".png", replicate(GREY16))):
        with pytest.raises(ImageError, match="no class numbers"):
            read_plane(content, "index")
    with pytest.raises(ImageError):
        read_plane(cv2_bytes(".png", GREY)[:-30], "index")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_planes_are_upright(orientation):
    stored = Image.fromarray(np.ascontiguousarray(stored_from_upright(GREY, orientation)))
    exif = Image.Exif()
    exif[274] = orientation
    assert np.array_equal(read_plane(pil_bytes(stored, "PNG", exif=exif), "index"), GREY)


@pytest.mark.parametrize("pixels", [GREY, GREY16, RGB, RGB16], ids=["8", "16", "8x3", "16x3"])
def test_written_pixels_come_back(tmp_path, pixels):
    path = tmp_path / "deep" / "x.png"
    write_png(path, pixels)
    expected = pixels if pixels.ndim == 3 else replicate(pixels)
    assert np.array_equal(read(path), expected)
    assert read(path).dtype == pixels.dtype
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]
