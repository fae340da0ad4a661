"""Files that are cut short, damaged or of another format are refused by their name, whatever their suffix."""

import io
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from assay.data.images.decode import SUFFIXES, probe, read
from assay.errors import ImageError

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (13, 18, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (13, 18, 3), dtype=np.uint16)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 3)


def pil_bytes(image, format, **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def cv2_bytes(suffix, rgb):
    bgr = rgb[..., [2, 1, 0, 3][: rgb.shape[2]]] if rgb.ndim == 3 else rgb
    return cv2.imencode(suffix, np.ascontiguousarray(bgr))[1].tobytes()


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
