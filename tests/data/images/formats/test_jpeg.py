"""JPEGs of layouts that no writer at hand makes: sampling factors, spare bytes, several pictures, other kinds."""

import io
import struct
from itertools import product

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from assay.data.images.decode import probe, read
from assay.errors import ImageError

FACTORS = [(across, down) for across in range(1, 5) for down in range(1, 5)]
NOISE = np.random.default_rng(7).integers(0, 256, (90, 120, 3), dtype=np.uint8)
SMOOTH = cv2.GaussianBlur(NOISE, (0, 0), 3)


def saved(image, **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def sampled(content, factors):
    """The file with other sampling factors in its frame's header."""
    changed, place = bytearray(content), content.index(b"\xff\xc0") + 11
    for i, (across, down) in enumerate(factors):
        changed[place + 3 * i] = across << 4 | down
    return bytes(changed)


def is_known(content):
    """Whether TurboJPEG tells which sampling it is; simplejpeg has no name for one that it does."""
    try:
        simplejpeg.decode_jpeg_header(content, strict=False)
    except KeyError:
        return True
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_sampling_factors_that_the_decoder_does_not_know_are_named(mode):
    content = saved(Image.fromarray(SMOOTH).convert(mode))
    num = {"L": 1, "RGB": 3, "CMYK": 3}[mode]
    known = 0
    for factors in product(FACTORS, repeat=num):
        factors = [*factors, factors[0]] if mode == "CMYK" else factors
        other = sampled(content, factors)
        if is_known(other):
            known += 1
            assert probe(other) == (90, 120)
        else:
            text = ", ".join(f"{across}x{down}" for across, down in factors)
            with pytest.raises(ImageError, match=f"sampled {text}, which is not read; save it as"):
                probe(other)
    assert known == {"L": 16, "RGB": 12, "CMYK": 12}[mode]


def test_blocks_that_are_left_over_are_damage():
    """Of a header that is changed, or of lost blocks; libjpeg reads on and shows a picture that is shifted or cut."""
    content = saved(NOISE[:48, :64], quality=90)
    frame = content.index(b"\xff\xc0")
    narrow = content[: frame + 7] + (40).to_bytes(2, "big") + content[frame + 9 :]
    assert np.array(Image.open(io.BytesIO(narrow))).shape == (48, 40, 3)  # read in silence
    with pytest.raises(ImageError, match="its header is of another size"):
        read(narrow)
    tall = saved(NOISE[:, :64], quality=30)
    frame = tall.index(b"\xff\xc0")
    for height in (64, 72, 80):  # the last lacks a row of blocks
        lower = tall[: frame + 5] + height.to_bytes(2, "big") + tall[frame + 7 :]
        with pytest.raises(ImageError, match="go on for"):
            read(lower)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_encoders_fill_up_with_is_no_damage(progressive):
    content = saved(SMOOTH, quality=80, progressive=progressive)
    for filler in (b"\0" * 3000, b"\xff" * 700, b"Z" * 100, b"\x12\x34\x56", bytes(range(16))):
        np.testing.assert_array_equal(read(content[:-2] + filler + content[-2:]), read(content))
    with pytest.raises(ImageError, match="go on for"):
        read(content[:-2] + bytes(range(1, 41)) + content[-2:])


def test_a_larger_picture_behind_the_first_is_a_choice():
    """The first is then the preview."""
    small, large = saved(SMOOTH[::2, ::2]), saved(SMOOTH)
    with pytest.raises(ImageError, match=r"a second picture of its size or larger.*--data\.page 0"):
        read(small + large)
    np.testing.assert_array_equal(read(small + large, page=0), read(small))
    np.testing.assert_array_equal(read(large + small), read(large))


def test_an_index_of_pictures_is_compared_with_the_file():
    """Tools that edit the first picture leave out the others, or move them, and keep the index."""
    file = io.BytesIO()
    pictures = [Image.fromarray(each) for each in (SMOOTH, SMOOTH[::-1].copy())]
    pictures[0].save(file, "MPO", save_all=True, append_images=pictures[1:])
    content = file.getvalue()
    second = content.index(b"\xff\xd9\xff\xd8") + 2
    kind = content.index(struct.pack("<I", second - content.index(b"MPF\0") - 4)) - 8
    views = content[:kind] + struct.pack("<I", 0x020002) + content[kind + 4 :]
    for whole in (content, views):
        with pytest.raises(ImageError, match="it holds 2 pictures"):
            read(whole)
        np.testing.assert_array_equal(read(whole[:second]), read(content, page=0))
        with pytest.raises(ImageError, match="a second picture of its size"):
            read(whole[:second] + bytes(40) + whole[second:])


def test_jpeg_ls_and_a_height_behind_the_pixels_are_named():
    content = saved(SMOOTH)
    frame = content.index(b"\xff\xc0")
    with pytest.raises(ImageError, match="JPEG-LS"):
        probe(content[: frame + 1] + b"\xf7" + content[frame + 2 :])
    with pytest.raises(ImageError, match="DNL"):
        probe(content[: frame + 5] + bytes(2) + content[frame + 7 :])


def test_what_libjpeg_finds_wrong_is_said():
    content = saved(SMOOTH)
    table = content.index(b"\xff\xdb")
    without = (
        content[:table]
        + content[table + 2 + int.from_bytes(content[table + 2 : table + 4], "big") :]
    )
    with pytest.raises(ImageError, match="Quantization table 0x00 was not defined"):
        read(without)
    unknown = content[:table] + b"\xff\xf3\0\4ab" + content[table:]
    with pytest.raises(ImageError, match="header is damaged, or has a marker that is not read"):
        read(unknown)
    frame = content.index(b"\xff\xc0")
    with pytest.raises(ImageError, match="65535 x 90 pixels, sides up to 65500"):
        probe(content[: frame + 7] + b"\xff\xff" + content[frame + 9 :])
