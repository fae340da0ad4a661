"""Patches and the overview of a canvas show what geometry computed by hand and planted dots say."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.config import from_dict, to_dict
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs import augment
from assay.data.inputs.augment import Augment
from assay.data.inputs.patches import Canvas, PatchConfig, blank_mask, cell_corners
from assay.errors import ConfigError

GRID = 12
SMALL = PatchConfig(image_px=240, overview_px=80, patch_px=48, clahe_clip=0.0)
CORNERS = cell_corners(np.arange(GRID * GRID), GRID, SMALL)
SHAPES = [(240, 240), (480, 480), (300, 200), (90, 310), (701, 333), (120, 120)]


def about_centre(turn=0.0, zoom=1.0, mirror=1.0, shift=(0.0, 0.0), side=240):
    """Matrix of an augmentation that mirrors, turns and zooms about the centre, then shifts."""
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror, 1.0])
    centre = np.full(2, (side - 1) / 2)
    return np.column_stack([linear, centre - linear @ (centre + np.array(shift))])


def on_canvas(point, shape, side=240):
    """Where a source pixel lies on an un-augmented canvas whose side the longer side fills."""
    scale = side / max(shape)
    centres = (np.array(shape[::-1]) - 1) / 2
    return (np.array(point) - centres) * scale + (side - 1) / 2


def moved(point, matrix):
    """Where an augmentation moves a canvas point: its matrix maps back."""
    return np.linalg.solve(matrix[:, :2], np.array(point) - matrix[:, 2])


def centroid(pixels):
    weight = pixels.astype(float).sum(-1)
    y, x = np.indices(weight.shape)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


# Geometry


def test_corners_are_those_of_the_reference():
    # seed 000: stride 2550 // 52 = 49, padding (448 - 49) // 2 = 199 at the left and the top
    sizes = PatchConfig(image_px=2550, patch_px=448)
    corners = cell_corners(np.array([0, 1, 52, 52 * 52 - 1]), 52, sizes)
    assert corners.tolist() == [[-199, -199], [-150, -199], [-199, -150], [2300, 2300]]


@given(st.integers(1, 60), st.integers(8, 100), st.integers(100, 700))
def test_a_patch_is_centred_on_its_cell(grid, patch, image):
    sizes = PatchConfig(image_px=image, patch_px=patch, overview_px=64)
    stride = image // grid
    corners = cell_corners(np.arange(grid * grid), grid, sizes)
    centres = corners + patch / 2
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    middle = (np.stack([columns, rows], 1) + 0.5) * stride
    assert np.abs(centres - middle).max() <= 0.5


@st.composite
def planted_dots(draw):
    """An image shape, an augmentation, and a source point that it leaves on the canvas."""
    shape = draw(st.sampled_from(SHAPES))
    turn = draw(st.sampled_from([0.0, np.pi / 2, np.pi]) | st.floats(-np.pi, np.pi))
    matrix = about_centre(
        turn,
        draw(st.floats(0.7, 1.3)),
        draw(st.sampled_from([-1.0, 1.0])),
        (draw(st.integers(-30, 30)), draw(st.integers(-30, 30))),
    )
    if draw(st.booleans()):
        matrix = np.eye(2, 3)
    part = st.floats(0.15, 0.85)
    return shape, matrix, (round(draw(part) * shape[1]), round(draw(part) * shape[0]))


@settings(max_examples=60)
@given(planted_dots())
def test_a_dot_appears_in_the_patch_that_covers_it(dot):
    shape, matrix, point = dot
    radius = max(max(shape) / 240 * 4, 3.0)
    y, x = np.ogrid[: shape[0], : shape[1]]
    image = np.zeros((*shape, 3), np.uint8)
    distance = np.hypot(x - point[0], y - point[1])
    image[:] = np.rint(255 * np.clip(1 - distance / radius, 0, 1))[..., None]
    place = moved(on_canvas(point, shape), matrix)
    stride = 240 // GRID
    cell = np.clip((place // stride).astype(int), 0, GRID - 1)
    if (np.abs(place - (cell + 0.5) * stride) > stride / 2 + 4).any():
        return  # moved off the canvas
    corner = cell_corners(np.array([cell[1] * GRID + cell[0]]), GRID, SMALL)
    canvas = Canvas(ImagePyramid.of(image), SMALL, Augment(matrix=matrix))
    patch = canvas.patches(corner)[0]
    assert np.abs(centroid(patch) + corner[0] - place).max() < 0.5
    x0, y0, x1, y1 = canvas.source_boxes(corner)[0]
    assert x0 <= point[0] <= x1
    assert y0 <= point[1] <= y1
    if (place > 12).all() and (place < 228).all():
        seen = centroid(canvas.overview()[0])  # three canvas pixels a side
        assert np.abs((seen + 0.5) * 3 - 0.5 - place).max() < 1.5


@pytest.mark.parametrize("shape", SHAPES)
def test_source_boxes_in_closed_form(shape):
    canvas = Canvas(ImagePyramid.of(np.zeros((*shape, 3), np.uint8)), SMALL)
    step = max(shape) / 240
    offset = (np.array(shape[::-1]) - max(shape)) / 2  # the centred image's own origin
    corners = np.array([[0, 0], [-20, 40], [192, 192]])
    expected = np.hstack([corners * step + offset, (corners + 48) * step + offset])
    np.testing.assert_allclose(canvas.source_boxes(corners), expected, atol=1e-9)


def test_source_boxes_of_a_turned_image():
    canvas = Canvas(
        ImagePyramid.of(np.zeros((240, 240, 3), np.uint8)),
        SMALL,
        Augment(matrix=about_centre(turn=np.pi / 2)),
    )
    # a quarter turn about the middle: (x, y) was at (240 - y, x)
    np.testing.assert_allclose(
        canvas.source_boxes(np.array([[10, 30]])), [[240 - 78, 10, 240 - 30, 58]], atol=1e-9
    )


def test_a_patch_of_an_image_that_fills_the_canvas_is_a_slice():
    image = np.random.default_rng(1).integers(0, 256, (240, 240, 3), dtype=np.uint8)
    padded = np.pad(image, ((60, 60), (60, 60), (0, 0)))
    patches = Canvas(ImagePyramid.of(image), SMALL).patches(CORNERS)
    for patch, (x, y) in zip(patches, CORNERS, strict=True):
        np.testing.assert_array_equal(patch, padded[y + 60 : y + 108, x + 60 : x + 108])


def test_padding_keeps_pixels_and_cuts_what_does_not_fit():
    sizes = PatchConfig(image_px=240, overview_px=80, patch_px=48, clahe_clip=0.0, fit="pad")
    image = np.random.default_rng(1).integers(0, 256, (300, 100, 3), dtype=np.uint8)
    whole = Canvas(ImagePyramid.of(image), sizes)
    expected = np.pad(image[30:270], ((0, 0), (70, 70), (0, 0)))
    for x, y in ((0, 0), (60, 100), (150, 192)):
        patch = whole.patches(np.array([[x, y]]))[0]
        np.testing.assert_array_equal(patch, expected[y : y + 48, x : x + 48])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clahe", [0.0, 3.0])
def test_dense_and_sparse_cuts_are_the_same(shape, clahe, smooth):
    sizes = PatchConfig(image_px=240, overview_px=80, patch_px=48, clahe_clip=clahe, clahe_grid=8)
    change = Augment(
        matrix=about_centre(turn=0.3, zoom=1.1, mirror=-1.0, shift=(7, -12)),
        brightness=1.2,
        contrast=0.8,
        gamma=1.3,
        saturation=0.7,
        resample=0.8,
    )
    for augmented in (augment.IDENTITY, change):
        canvas = Canvas(ImagePyramid.of(smooth(*shape)), sizes, augmented)
        dense = canvas.patches(CORNERS)
        sparse = np.concatenate([canvas.patches(corner[None]) for corner in CORNERS])
        error = np.abs(dense.astype(int) - sparse)
        # positions are rounded to 1/32 pixel from other origins; steepest at the image's edge
        assert error.mean() < 0.1
        assert np.quantile(error, 0.999) <= 3


@pytest.mark.parametrize("shape", [(1, 1), (5, 400), (400, 5), (1, 900), (17, 23)])
def test_images_of_any_aspect(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    for sizes in (SMALL, PatchConfig(image_px=240, overview_px=80, patch_px=48, fit="pad")):
        canvas = Canvas(ImagePyramid.of(image), sizes)
        patches = canvas.patches(CORNERS)
        overview, mean, std = canvas.overview()
        assert patches.shape == (144, 48, 48, 3)
        assert overview.shape == (80, 80, 3)
        # what is thinner than a canvas pixel may fall between two
        assert patches.any() or min(shape) / max(shape) < 1 / 240
        assert np.isfinite([mean, std]).all()
        assert (std > 0).all()


@pytest.mark.parametrize("far", [-(10**6), -5000, 241, 5000, 10**6])
def test_a_patch_far_outside_is_black(far):
    canvas = Canvas(ImagePyramid.of(np.full((300, 200, 3), 255, np.uint8)), SMALL)
    corners = np.array([[far, 0], [0, far], [far, far]])
    assert not canvas.patches(corners).any()
    # beside one that is not
    assert [p.any() for p in canvas.patches(np.array([[far, 0], [96, 96]]))] == [False, True]


def test_no_corners_make_no_patches(smooth):
    canvas = Canvas(ImagePyramid.of(smooth(50, 60)), SMALL)
    assert canvas.patches(np.zeros((0, 2), np.int64)).shape == (0, 48, 48, 3)


def test_blanks_of_an_overview_are_those_of_the_canvas_in_small():
    """Patches of 48 canvas pixels at an overview of a third."""
    corners = np.array([[[[9.0, 30.0], [200.0, -20.0]]]])
    canvas = blank_mask(corners, 48, 1.0, 240)[0, 0]
    assert canvas.sum() == 48 * 48 + 40 * 28
    assert canvas[30:78, 9:57].all()
    assert canvas[:28, 200:].all()
    small = blank_mask(corners, 48, 1 / 3, 80)[0, 0]
    assert (small == canvas[1::3, 1::3]).all()


# Overview


def test_an_overview_is_the_area_mean_of_the_canvas(smooth):
    image = smooth(720, 480, sigma=20)
    overview, _, _ = Canvas(ImagePyramid.of(image), SMALL).overview()
    fitted = np.pad(image, ((0, 0), (120, 120), (0, 0)))
    expected = cv2.resize(fitted, (80, 80), interpolation=cv2.INTER_AREA)
    inside = np.zeros((80, 80), bool)
    inside[1:-1, 15:65] = True
    assert np.abs(overview.astype(int) - expected)[inside].max() <= 4
    assert not overview[:, :13].any()
    assert not overview[:, 67:].any()


@pytest.mark.parametrize("fit", ["scale", "pad"])
@pytest.mark.parametrize("shape", [(240, 240), (230, 60), (50, 200), (199, 231)])
@pytest.mark.parametrize("turn", [0.0, 0.4, np.pi / 2])
def test_statistics_ignore_padding(fit, shape, turn):
    sizes = PatchConfig(image_px=240, overview_px=80, patch_px=48, clahe_clip=0.0, fit=fit)
    canvas = Canvas(
        ImagePyramid.of(np.full((*shape, 3), (40, 120, 220), np.uint8)),
        sizes,
        Augment(matrix=about_centre(turn, zoom=0.6)),
    )
    overview, mean, std = canvas.overview()
    assert (overview == 0).all(-1).any()  # there is padding
    np.testing.assert_allclose(mean, np.array([40, 120, 220]) / 255, atol=1e-9)
    np.testing.assert_allclose(std, 1 / 255)  # of a blank image, one grey level


@pytest.mark.parametrize("shape", [(480, 480), (700, 350), (350, 700)])
def test_statistics_are_those_of_the_image(shape, smooth):
    image = smooth(*shape, sigma=15)
    values = image.reshape(-1, 3) / 255
    _, mean, std = Canvas(ImagePyramid.of(image), SMALL).overview()
    np.testing.assert_allclose(mean, values.mean(0), atol=0.01)
    np.testing.assert_allclose(std, values.std(0), atol=0.01)


def test_an_image_moved_off_the_canvas_keeps_its_own_statistics(smooth):
    entry = ImagePyramid.of(smooth(300, 300))
    canvas = Canvas(entry, SMALL, Augment(matrix=about_centre(shift=(10_000, 0))))
    overview, mean, std = canvas.overview()
    assert not overview.any()
    np.testing.assert_array_equal(mean, entry.mean.astype(np.float32))
    np.testing.assert_array_equal(std, entry.std.astype(np.float32))


# Settings


@pytest.mark.parametrize(
    "values",
    [
        {"patch_px": 4},
        {"patch_px": 3000},
        {"overview_px": 3000},
        {"overview_px": 0},
        {"clahe_clip": -1.0},
        {"clahe_grid": 0},
        {"clahe_grid": 1024},
    ],
)
def test_sizes_that_contradict_each_other_are_refused(values):
    with pytest.raises(ConfigError) as caught:
        from_dict(PatchConfig, to_dict(PatchConfig()) | values)
    assert str(next(iter(values.values()))) in str(caught.value)
