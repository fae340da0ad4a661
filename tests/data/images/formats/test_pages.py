"""Files of several pictures: which one is read, and what is none."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from assay.data.images.decode import probe, read, read_plane
from assay.errors import ImageError

RNG = np.random.default_rng(4)
HEIGHT, WIDTH = 21, 34
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def stack(*pages, **options):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        for page in pages:
            out.write(page, photometric="rgb", metadata=None, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def animation(saved):
    """Makes an animation of three frames, each rolled by a row."""

    def make(form):
        frames = [Image.fromarray(np.roll(RGB, i, 0)) for i in range(3)]
        return saved(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)

    return make


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP"])
def test_of_several_pages_one_is_named(animation, form):
    frames = [np.roll(RGB, i, 0) for i in range(3)]
    content = stack(*frames) if form == "TIFF" else animation(form)
    with pytest.raises(ImageError, match=r"holds 3 (pages|frames).*pass --data\.page 0"):
        read(content)
    with pytest.raises(ImageError, match="holds 3"):
        probe(content)
    for page, frame in enumerate(frames):
        np.testing.assert_array_equal(read(content, page=page), frame)
        np.testing.assert_array_equal(read_plane(content, "level", page=page), frame.max(2))
        assert probe(content, page=page) == RGB.shape[:2]
    with pytest.raises(ImageError, match=r"holds 3 .*--data\.page 3 counts from 0"):
        read(content, page=3)


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP", "BMP", "JPEG"])
def test_of_one_page_the_first_is_it(saved, form):
    content = saved(RGB, form)
    np.testing.assert_array_equal(read(content, page=0), read(content))
    with pytest.raises(ImageError, match=r"it holds 1 page, and --data\.page 1"):
        read(content, page=1)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("place", ["before", "behind", "below", "above", "mask"])
def test_previews_and_masks_are_no_pages(place, old):
    small = RGB[::2, ::2].copy()
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        how = {"photometric": "rgb", "metadata": None}
        if place == "before":
            out.write(small, subfiletype=1, **how)
            out.write(RGB, **how)
        elif place == "behind":
            out.write(RGB, **how)
            out.write(small, subfiletype=1, **how)
        elif place == "above":  # as in raw files of cameras
            out.write(small, subfiletype=1, subifds=1, **how)
            out.write(RGB, **how)
        elif place == "below":
            out.write(RGB, subifds=1, **how)
            out.write(small, subfiletype=1, **how)
        else:
            out.write(RGB, **how)
            out.write(RGB[..., 0] > 9, photometric="mask", subfiletype=4, metadata=None)
    content = (
        with_old_subfile_types(file.getvalue()) if old and place != "mask" else file.getvalue()
    )
    np.testing.assert_array_equal(read(content), RGB)
    np.testing.assert_array_equal(read(content, page=0), RGB)
    assert probe(content) == RGB.shape[:2]


def with_old_subfile_types(content):
    """The file with tag 255 (2: reduced, 1: full) in the place of 254."""
    changed = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = [*file.pages, *(file.pages.first.pages or ())]
        for page in pages:
            tag = page.tags.get(254)
            if tag is not None:
                value = 2 if tag.value == 1 else 1
                changed[tag.offset : tag.offset + 12] = struct.pack("<HHIHH", 255, 3, 1, value, 0)
    return bytes(changed)


def test_a_preview_alone_is_refused():
    with pytest.raises(ImageError, match=r"NewSubfileType \(254\) marks every picture"):
        read(stack(RGB, subfiletype=1))


def test_frames_of_imagej_without_directories_are_counted():
    file = io.BytesIO()
    frames = RNG.integers(0, 65536, (4, 9, 11), dtype=np.uint16)
    tifffile.imwrite(file, frames, imagej=True)
    content = file.getvalue()
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        first = tiff.pages.first
        after = first.offset + 2 + 12 * len(first.tags)
        num = len(tiff.pages)
    content = content[:after] + bytes(4) + content[after + 4 :] if num > 1 else content
    with pytest.raises(ImageError, match=r"holds 4 frames of ImageJ.*--data\.page 0"):
        read(content)
    np.testing.assert_array_equal(read(content, page=0)[..., 0], frames[0])
    with pytest.raises(ImageError, match="4 frames of ImageJ"):
        read(content, page=2)


@pytest.mark.parametrize("shape", [(5, 9, 11), (5, 9, 11, 3), (5, 1, 9, 11)])
def test_frames_of_tifffile_without_directories_are_counted(shape):
    frames = RNG.integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    photometric = "rgb" if shape[-1] == 3 else "minisblack"
    with tifffile.TiffWriter(file) as out:
        out.write(frames, photometric=photometric, truncate=True)
    with pytest.raises(ImageError, match=r"holds 5 frames of tifffile.*--data\.page 0"):
        read(file.getvalue())
    np.testing.assert_array_equal(
        read(file.getvalue(), page=0), np.broadcast_to(frames[0].reshape(9, 11, -1), (9, 11, 3))
    )
    one = io.BytesIO()
    with tifffile.TiffWriter(one) as out:
        out.write(frames[0], photometric=photometric, truncate=True)
    np.testing.assert_array_equal(read(one.getvalue()), read(file.getvalue(), page=0))


def test_planes_of_metamorph_are_counted():
    """Its stacks have one directory, and a tag with as many values as planes."""
    planes = RNG.integers(0, 65536, (4, 9, 11), dtype=np.uint16)
    for num in (1, 4):
        file = io.BytesIO()
        told = (33629, 5, num, (1, 1) * num, True)
        tifffile.imwrite(file, planes[0], photometric="minisblack", metadata=None, extratags=[told])
        content = file.getvalue() + planes[1:].tobytes()
        if num > 1:
            with pytest.raises(ImageError, match="holds 4 frames of MetaMorph"):
                read(content)
        np.testing.assert_array_equal(read(content, page=0)[..., 0], planes[0])


def test_a_picture_below_one_of_its_size_is_a_page():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        out.write(255 - RGB, photometric="rgb", subifds=1, metadata=None)
        out.write(RGB, photometric="rgb", metadata=None)
    with pytest.raises(ImageError, match="holds 2 pages"):
        read(file.getvalue())
    np.testing.assert_array_equal(read(file.getvalue(), page=1), RGB)
