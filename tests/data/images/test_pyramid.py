import struct
from itertools import pairwise

import albumentations
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.images.affine import crop_matrix, warp
from assay.data.images.clahe import Clahe
from assay.data.images.entry import open_entry, write_entry
from assay.data.images.pyramid import (
    SMALLEST_LEVEL,
    ImagePyramid,
    pyramid,
    pyramid_bytes,
    signature,
)
from assay.data.images.white import White

CONTENT = "ab12" * 8
RNG = np.random.default_rng(5)
NOISE = RNG.integers(0, 256, (150, 210, 3), dtype=np.uint8)
NOISE16 = RNG.integers(0, 65536, (150, 210, 3), dtype=np.uint16)


def smooth(height, width, sigma=12.0, seed=0):
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigma)
    return cv2.normalize(blurred, None, 10, 245, cv2.NORM_MINMAX).astype(np.uint8)


def stored(folder, pixels):
    path = folder / f"{CONTENT}.pixels"
    write_entry(path, ImagePyramid.of(pixels))
    return path


# Cutting

BOXES = st.tuples(
    st.integers(-300, 300), st.integers(-300, 300), st.integers(1, 300), st.integers(1, 300)
)


def sliced(pixels, box):
    """Cut the box by numpy alone: a frame of zeros wide enough, then a slice."""
    x0, y0, x1, y1 = (side + 400 for side in box)
    return np.pad(pixels, ((400, 700), (400, 700), (0, 0)))[y0:y1, x0:x1]


@given(BOXES, st.integers(0, 1))
def test_a_cut_is_a_slice_with_zeros_outside(box, level):
    x, y, width, height = box
    box = (x, y, x + width, y + height)
    entry = ImagePyramid.of(NOISE)
    cut = entry.cut(box, level)
    np.testing.assert_array_equal(cut, sliced(entry.levels[level], box))


def test_a_cut_of_16_bits_has_8():
    entry = ImagePyramid.of(NOISE16)
    cut = entry.cut((10, 20, 60, 50))
    np.testing.assert_array_equal(cut, np.rint(NOISE16[20:50, 10:60] / 257))
    assert cut.dtype == np.uint8


def test_a_cut_can_be_written_to(tmp_path):
    entry = open_entry(stored(tmp_path, NOISE))
    entry.cut((0, 0, 20, 20))[:] = 0
    np.testing.assert_array_equal(entry.levels[0], NOISE)


@pytest.mark.parametrize(
    "box", [(0, 0, 210, 150), (40, 30, 110, 90), (-20, -30, 60, 50), (180, 140, 260, 200)]
)
def test_a_cut_is_equalised_as_the_whole_image_is(box):
    image = smooth(150, 210, sigma=4)
    equalise = albumentations.CLAHE(clip_limit=(3.0, 3.0), tile_grid_size=(8, 8), p=1)
    whole = sliced(equalise(image=image)["image"], box)
    cut = ImagePyramid.of(image).cut(box, clahe=Clahe(3.0, 8))
    np.testing.assert_array_equal(cut, whole)
    assert np.abs(whole.astype(int) - sliced(image, box)).max() > 20  # it does something


# Views


def linear(turn, scale, mirror):
    return scale * np.array(
        [[np.cos(turn), -mirror * np.sin(turn)], [np.sin(turn), mirror * np.cos(turn)]]
    )


def bilinear(image, matrix, height, width):
    """Sample bilinearly in float with zeros outside, written apart from OpenCV."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    u, v = np.einsum("ij,jhw->ihw", matrix, np.stack([x, y, np.ones_like(x)]).astype(float))
    padded = np.pad(image.astype(float), ((1, 2), (1, 2), (0, 0)))
    u = np.clip(u + 1, 0, image.shape[1] + 1)
    v = np.clip(v + 1, 0, image.shape[0] + 1)
    i, j = u.astype(int), v.astype(int)
    a, b = (u - i)[..., None], (v - j)[..., None]
    upper = padded[j, i] * (1 - a) + padded[j, i + 1] * a
    lower = padded[j + 1, i] * (1 - a) + padded[j + 1, i + 1] * a
    return upper * (1 - b) + lower * b


@settings(max_examples=80)
@given(
    st.floats(-np.pi, np.pi),
    st.floats(0.3, 1.99),
    st.sampled_from([-1.0, 1.0]),
    st.floats(-80, 260),
    st.floats(-80, 200),
    st.integers(1, 70),
    st.integers(1, 70),
)
def test_a_view_shows_what_a_warp_of_the_whole_image_shows(
    turn, scale, mirror, x, y, height, width
):
    image = smooth(150, 210, sigma=3)
    matrix = np.column_stack([linear(turn, scale, mirror), [x, y]])
    view = ImagePyramid.of(image).view(matrix, height, width)
    expected = bilinear(image, matrix, height, width)
    # OpenCV rounds positions to 1/32 pixel; the step to zero at the image's edge is the steepest
    assert np.abs(view - expected).max() <= 1 + 245 / 32 * 2
    assert np.abs(view - expected).mean() <= 1
    warped = warp(image, matrix, height, width).astype(int)
    assert np.abs(view - warped).mean() <= 0.5


@given(st.integers(-60, 220), st.integers(-60, 160), st.booleans(), st.booleans())
def test_whole_pixels_and_flips_are_copied(x, y, hflip, vflip):
    a, b = (-1.0 if hflip else 1.0), (-1.0 if vflip else 1.0)
    matrix = np.array([[a, 0.0, x + 39 * hflip], [0.0, b, y + 29 * vflip]])
    view = ImagePyramid.of(NOISE).view(matrix, 30, 40)
    expected = sliced(NOISE, (x, y, x + 40, y + 30))
    np.testing.assert_array_equal(view, expected[:: int(b), :: int(a)])


@pytest.mark.parametrize("shape", [(512, 512), (801, 1003), (300, 900), (1000, 333), (60, 2000)])
@pytest.mark.parametrize("step", [1.5, 2.0, 3.0, 4.1, 7.9])
def test_an_overview_is_the_area_mean(shape, step):
    image = smooth(*shape, sigma=3 * step)
    height, width = (round(side / step) for side in shape)
    x, y = shape[1] / width, shape[0] / height
    matrix = np.array([[x, 0.0, (x - 1) / 2], [0.0, y, (y - 1) / 2]])
    view = ImagePyramid.of(image).view(matrix, height, width)
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    error = np.abs(view.astype(int) - expected)[1:-1, 1:-1]
    assert error.max() <= 5
    assert error.mean() <= 1


SIZES = pytest.mark.parametrize("shape", [(1024, 1024), (1023, 1021), (1000, 777)])
STEPS = pytest.mark.parametrize("step", [1.0, 2.0, 3.0, 4.0, 8.0])


def seen_at(step, shape):
    """Return full-size positions of a view's pixels, and its matrix: the square of each begins at (50, 60)."""
    side = int((min(shape) - 100) / step)
    x, y = np.meshgrid(*(start + (np.arange(side) + 0.5) * step - 0.5 for start in (50, 60)))
    return x, y, crop_matrix(np.eye(2, 3), 50, 60, step)


@SIZES
@STEPS
def test_a_ramp_stays_the_same_ramp_on_every_level(shape, step):
    def ramp(x, y):
        return np.stack([x / 5 + 20, y / 5 + 20, 235 - (x + y) / 10], -1)

    image = np.rint(ramp(*np.meshgrid(np.arange(shape[1]), np.arange(shape[0])))).astype(np.uint8)
    x, y, matrix = seen_at(step, shape)
    view = ImagePyramid.of(image).view(matrix, *x.shape)
    # one rounding on each level and one of the view
    assert np.abs(view - ramp(x, y)).max() <= 1 + 0.25 * np.log2(step)


@SIZES
@STEPS
def test_levels_are_not_shifted(shape, step):
    def waves(x, y):
        return np.stack([np.sin(2 * np.pi * x / 97), np.sin(2 * np.pi * y / 83)], -1)

    def slopes(x, y):
        x, y = 2 * np.pi * x / 97, 2 * np.pi * y / 83
        return np.stack([np.cos(x) * 2 * np.pi / 97, np.cos(y) * 2 * np.pi / 83], -1)

    full = waves(*np.meshgrid(np.arange(shape[1]), np.arange(shape[0])))
    image = np.rint(128 + 100 * full[..., [0, 1, 1]]).astype(np.uint8)
    x, y, matrix = seen_at(step, shape)
    error = (ImagePyramid.of(image).view(matrix, *x.shape)[..., :2] - 128.0) / 100 - waves(x, y)
    # least squares: how far along x and y the view would have to move
    shift = (error * slopes(x, y)).sum((0, 1)) / (slopes(x, y) ** 2).sum((0, 1))
    # levels aligned at corners instead of edges would be off by (step - 1) / 2
    assert np.abs(shift).max() <= 0.05


def test_fine_textures_do_not_alias_in_an_overview():
    x, y = np.meshgrid(np.arange(1024), np.arange(1024))
    image = np.stack([((x + y) % 2 * 200).astype(np.uint8)] * 3, -1)
    for step in (2.0, 4.0, 8.0):
        view = ImagePyramid.of(image).view(crop_matrix(np.eye(2, 3), 0, 0, step), 100, 100)
        assert np.abs(view.astype(int) - 100).max() <= 1


@pytest.mark.parametrize("shape", [(40, 4000), (4000, 40)])
def test_a_thin_image_does_not_alias_either(shape):
    x, y = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]))
    image = np.stack([((x + y) % 2 * 200).astype(np.uint8)] * 3, -1)
    view = ImagePyramid.of(image).view(
        crop_matrix(np.eye(2, 3), 0, 0, 20.0), *(s // 20 for s in shape)
    )
    assert np.abs(view.astype(int) - 100).max() <= 20


def test_a_view_reads_little_of_a_huge_entry(tmp_path):
    """A window at a coarse step must not touch full-size pixels: planted, they would show."""
    path = stored(tmp_path, smooth(512, 512, sigma=20))
    whole = bytearray(path.read_bytes())
    begin = 20 + struct.unpack("<I", whole[8:12])[0]
    clean = open_entry(path).view(crop_matrix(np.eye(2, 3), 0, 0, 4.0), 128, 128)
    whole[begin : begin + 512 * 512 * 3] = bytes(512 * 512 * 3)
    path.write_bytes(whole)
    view = open_entry(path).view(crop_matrix(np.eye(2, 3), 0, 0, 4.0), 128, 128)
    np.testing.assert_array_equal(view, clean)


@pytest.mark.parametrize("far", [-5000.0, 300.0, 1e5])
def test_a_view_beside_the_image_is_zero(far):
    for x, y in ((far, 0.0), (0.0, far), (far, far)):
        matrix = np.array([[1.0, 0.0, x], [0.0, 1.0, y]])
        view = ImagePyramid.of(NOISE).view(matrix, 20, 30)
        assert view.shape == (20, 30, 3)
        assert not view.any()


# What an entry says of the image


@pytest.mark.parametrize("shape", [(1, 1), (127, 127), (128, 300), (900, 700), (30, 3000)])
def test_a_pyramid_halves_until_it_is_small(shape):
    levels = pyramid(np.zeros((*shape, 3), np.uint8))
    for fine, coarse in pairwise(levels):
        assert coarse.shape[:2] == tuple(max(side // 2, 1) for side in fine.shape[:2])
        assert max(fine.shape[:2]) >= 2 * SMALLEST_LEVEL
    assert max(levels[-1].shape[:2]) < 2 * SMALLEST_LEVEL
    assert sum(level.nbytes for level in levels) <= pyramid_bytes(*shape)


def test_levels_of_16_bits_keep_them():
    levels = pyramid(np.full((256, 256, 3), 40_001, np.uint16))
    assert {level.dtype for level in levels} == {np.dtype(np.uint16)}
    assert {int(value) for level in levels for value in np.unique(level)} == {40_001}


@pytest.mark.parametrize("image", [smooth(700, 900), NOISE, smooth(100, 1000)])
def test_statistics_are_those_of_the_image(image):
    entry, values = ImagePyramid.of(image), image.reshape(-1, 3) / 255
    np.testing.assert_allclose(entry.mean, values.mean(0), atol=0.005)
    np.testing.assert_allclose(entry.std, values.std(0), atol=0.01)


@pytest.mark.parametrize(("step", "white"), [(257, None), (16, 255.0 * 16), (3, 255.0 * 3)])
def test_deeper_images_are_shown_as_their_white_level_says(step, white):
    narrow = smooth(300, 300)
    deep = narrow.astype(np.uint16) * step
    level = None if white is None else White(value=white)
    shallow = ImagePyramid.of(narrow)
    for wide in (deep, deep.astype(np.float32)):
        if level is None and wide.dtype == np.float32:
            continue
        entry = ImagePyramid.of(wide, level)
        np.testing.assert_allclose(entry.mean, shallow.mean, atol=0.005)
        np.testing.assert_allclose(entry.std, shallow.std, atol=0.005)
        np.testing.assert_array_equal(entry.cut((10, 10, 90, 80)), narrow[10:80, 10:90])
        assert np.abs(entry.small(100).astype(int) - shallow.small(100)).max() <= 1
        differing = np.unpackbits(np.frombuffer(entry.signature, np.uint8)) != np.unpackbits(
            np.frombuffer(shallow.signature, np.uint8)
        )
        assert (
            differing.sum() <= 16
        )  # rounding turns a sign where a cell is near its neighbours' mean


@pytest.mark.parametrize("number", range(8))
def test_a_signature_turns_with_the_image(number):
    def turned(array):
        return np.ascontiguousarray(np.rot90(array[:, ::-1] if number >= 4 else array, number % 4))

    image = smooth(100, 140)
    bits, moved = (
        np.unpackbits(np.frombuffer(signature(i), np.uint8)).reshape(16, 16)
        for i in (image, turned(image))
    )
    assert (moved != turned(bits)).sum() <= 2
    assert 80 < bits.sum() < 176


# The image in small


def test_in_small_an_image_is_a_mean_in_its_colours():
    image = np.zeros((1000, 2000, 3), dtype=np.uint8)
    image[:, :1000] = (200, 100, 50)
    small = ImagePyramid.of(image).small(480)
    assert small.shape == (240, 480, 3)
    assert small[:, :230].reshape(-1, 3).mean(0) == pytest.approx([200, 100, 50], abs=1)
    assert small[:, 250:].max() == 0


def test_a_small_image_is_not_enlarged():
    assert ImagePyramid.of(np.zeros((30, 50, 3), dtype=np.uint8)).small(480).shape == (30, 50, 3)
