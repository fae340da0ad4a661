"""JPEGs by their markers: early ends, colours, several pictures, restarts."""

import io
import re
import struct
from contextlib import suppress
from itertools import product
from unittest.mock import patch

import cv2
import imagecodecs
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from assay.data.images.decode import probe, read
from assay.errors import ImageError

decode_jpeg = simplejpeg.decode_jpeg
RNG = np.random.default_rng(4)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 3)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_whose_data_end_early_is_refused_whatever_its_end(saved, mode, progressive, options):
    content = saved(
        Image.fromarray(SMOOTH).convert(mode),
        "JPEG",
        quality=98,
        progressive=progressive,
        **options,
    )
    image = read(content)
    right = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(image, right)
    first, last = content.index(b"\xff\xda") + 14, len(content) - 2
    for stop in np.linspace(first, last - 60, 25, dtype=int).tolist():
        for end in (b"\xff\xd9", b"\0\0\xff\xd9", b""):
            cut = content[:stop].rstrip(b"\xff") + end
            with pytest.raises(ImageError, match=r"end early|truncated|damaged"):
                read(cut)


@pytest.mark.parametrize(
    ("mode", "progressive"),
    [("RGB", False), ("RGB", True), ("L", False), ("L", True), ("CMYK", False)],
)
def test_a_jpeg_whose_data_go_on_after_its_height_is_refused(saved, mode, progressive):
    noise = np.random.default_rng(0).integers(0, 255, (384, 288, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    content = saved(image, "JPEG", quality=95, progressive=progressive)
    at = content.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    assert content[at : at + 2] == (384).to_bytes(2, "big")
    lower = content[:at] + (192).to_bytes(2, "big") + content[at + 2 :]
    assert np.array(Image.open(io.BytesIO(lower))).shape[:2] == (192, 288)  # read in silence
    with pytest.raises(ImageError, match="go on for"):
        read(lower)
    for filled in (content[:-2] + b"\0" * 2000 + content[-2:], content + b"another file" * 200):
        np.testing.assert_array_equal(read(filled), read(content))


def test_jpeg_kinds_that_are_not_read_are_named(saved):
    content = saved(SMOOTH, "JPEG")
    frame = content.index(b"\xff\xc0")
    kinds = {0xC3: "lossless", 0xC9: "arithmetic", 0xC5: "hierarchical"}
    for kind, word in kinds.items():
        other = content[: frame + 1] + bytes([kind]) + content[frame + 2 :]
        with pytest.raises(ImageError, match=word):
            probe(other)
    deep = content[: frame + 4] + b"\x0c" + content[frame + 5 :]
    with pytest.raises(ImageError, match="12 bits per sample"):
        probe(deep)
    lossless = imagecodecs.jpeg8_encode(SMOOTH, lossless=True)
    with pytest.raises(ImageError, match="lossless"):
        read(bytes(lossless))


def test_jpeg_colours_by_adobes_marker(saved):
    smooth = np.ascontiguousarray(SMOOTH)
    plain = imagecodecs.jpeg8_encode(smooth, 100, colorspace="RGB", outcolorspace="RGB")
    assert b"Adobe" in plain
    assert np.abs(read(bytes(plain)).astype(int) - SMOOTH).max() <= 3
    unknown = bytes(plain).replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\7")
    with pytest.raises(ImageError, match="colour transform 7"):
        read(unknown)
    inks = saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG")
    place = inks.index(b"Adobe")
    with pytest.raises(ImageError, match="no Adobe marker"):
        read(inks[:place] + b"Other" + inks[place + 5 :])


def test_a_jpeg_of_several_pictures(saved):
    file = io.BytesIO()
    pictures = [Image.fromarray(each) for each in (SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1])]
    pictures[0].save(file, "MPO", save_all=True, append_images=pictures[1:], quality=98)
    content = bytearray(file.getvalue())
    with Image.open(io.BytesIO(content)) as image:
        starts = [entry["DataOffset"] for entry in image.mpinfo[0xB002]]
    block = content.index(b"MPF\0") + 4
    for kind in (0, 0x020003):  # none, as Pillow writes it; views of one object
        for entry in range(3):
            place = content.index(struct.pack("<I", starts[1]), block) - 24 + 16 * entry
            content[place : place + 4] = struct.pack("<I", kind)
        with pytest.raises(ImageError, match=r"it holds 3 pictures.*--data\.page 0"):
            read(bytes(content))
    np.testing.assert_array_equal(
        read(bytes(content), page=0), read(saved(SMOOTH, "JPEG", quality=98))
    )
    for page, picture in enumerate(pictures):
        right = np.array(picture).astype(int)
        assert np.abs(read(bytes(content), page=page) - right).mean() < 2
        assert probe(bytes(content), page=page) == SMOOTH.shape[:2]


def test_jpegs_that_lack_their_last_bytes_are_refused(saved):
    """Or decode to the same pixels."""
    rng, passed, num = np.random.default_rng(2), 0, 0
    for mode, options in product(("RGB", "L", "CMYK"), ({}, {"progressive": True})):
        for quality in (60, 90):
            noise = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
            image = Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2)).convert(mode)
            content = saved(image, "JPEG", quality=quality, **options)
            right = read(content)
            for lost in range(1, 40, 2):
                num += 1
                with suppress(ImageError):
                    passed += not np.array_equal(read(content[: -2 - lost] + b"\xff\xd9"), right)
    assert (num, passed) == (240, 0)


def in_front(content, code, block):
    """The file with a segment more behind its first marker."""
    segment = struct.pack(">BBH", 255, code, len(block) + 2) + block
    return content[:2] + segment + content[2:]


def test_what_means_nothing_for_the_pixels_is_passed_over(saved):
    """Profiles cut off, a revision to come, and limits of a sequential scan that many cameras write as 0."""
    content = saved(SMOOTH, "JPEG", quality=98)
    profile = in_front(content, 0xE2, b"ICC_PROFILE\0\2\5" + bytes(40))
    newer = content.replace(b"JFIF\0\1", b"JFIF\0\7")
    limits = content.index(b"\xff\xda") + 11
    assert content[limits : limits + 3] == b"\0\x3f\0"
    camera = content[:limits] + bytes(3) + content[limits + 3 :]
    for other in (profile, newer, camera, in_front(content, 0xFE, b"a comment")):
        assert other != content
        np.testing.assert_array_equal(read(other), read(content))


@pytest.mark.parametrize("between", [b"", bytes(9)])
def test_two_jpegs_one_behind_the_other_are_a_choice(saved, between):
    first, second = saved(SMOOTH, "JPEG", quality=98), saved(SMOOTH[::-1], "JPEG")
    joined = first + between + second
    with pytest.raises(ImageError, match=r"a second picture of its size.*--data\.page 0"):
        read(joined)
    np.testing.assert_array_equal(read(joined, page=0), read(first))
    smaller = saved(SMOOTH[::2], "JPEG")
    for behind in (between + smaller, b"ftypmp42" + second):  # a preview; a film
        np.testing.assert_array_equal(read(first + behind), read(first))


def test_smaller_pictures_of_no_type_are_none_of_the_pages(saved):
    """As phones put a map of gain behind a photo."""
    file = io.BytesIO()
    small = Image.fromarray(SMOOTH[::2, ::2].copy())
    Image.fromarray(SMOOTH).save(file, "MPO", save_all=True, append_images=[small], quality=98)
    content = file.getvalue()
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(read(content), read(saved(SMOOTH, "JPEG", quality=98)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_restart_markers_out_of_turn_are_damage(saved, mode):
    """Decoders take what stands between for lost, and fill it with what was before, in silence."""
    image = Image.fromarray(SMOOTH).convert(mode)
    content = saved(image, "JPEG", quality=90, restart_marker_blocks=2)
    at = content.index(b"\xff\xd2")
    for number in (0, 1, 3, 7):
        damaged = content[: at + 1] + bytes([0xD0 + number]) + content[at + 2 :]
        assert np.array(Image.open(io.BytesIO(damaged))).shape[:2] == SMOOTH.shape[:2]
        with pytest.raises(
            ImageError, match=f"restart marker 2 of a scan has the number {number}, not 2"
        ):
            read(damaged)
    swapped = bytearray(content)
    for first, second in ((b"\xff\xd3", 0xD4), (b"\xff\xd4", 0xD3)):
        swapped[content.index(first) + 1] = second
    with pytest.raises(ImageError, match="number 4, not 3"):
        read(bytes(swapped))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("filling", [b"\xff\0", b"\0", b"\xff\0" * 3])
def test_filling_before_restart_markers_is_passed_over(saved, mode, filling):
    """As webcams write it; what is no filling, or stands there for blocks that are missing, is damage."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise).convert(mode), "JPEG", restart_marker_blocks=2)
    begin = content.rindex(b"\xff\xda")
    marks = [m.start() for m in re.finditer(rb"\xff[\xd0-\xd7]", content) if m.start() > begin]
    filled, odd = content, content
    for at in marks[::-2]:
        filled = filled[:at] + filling + filled[at:]
        odd = odd[:at] + b"spare bytes" + odd[at:]
    np.testing.assert_array_equal(read(filled), read(content))
    short = content[: (marks[2] + marks[3]) // 2] + filling + content[marks[3] :]
    for damaged in (odd, short):
        with pytest.raises(ImageError, match=r"damaged|end early"):
            read(damaged)


def test_what_is_filled_up_in_many_parts_costs_no_more_than_a_few_decodings(saved):
    """Else a file of 14 MB would hold a server up for half a minute."""
    content = saved(Image.new("L", (1600, 1600)), "JPEG", restart_marker_blocks=1)  # 40,000 parts
    begin = content.rindex(b"\xff\xda") + 10
    filled = re.sub(rb"(\xff[\xd0-\xd7])", b"\xff\0" * 9 + rb"\1", content[begin:])
    calls = 0

    def count(*args, **options):
        nonlocal calls
        calls += 1
        return decode_jpeg(*args, **options)

    with (
        patch.object(simplejpeg, "decode_jpeg", count),
        pytest.raises(ImageError, match="go on for"),
    ):
        read(content[:begin] + filled)
    assert calls < 5
