import albumentations
import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from assay.config import from_dict, to_dict
from assay.data.images.clahe import Clahe
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs import augment
from assay.data.inputs.augment import Augment, AugmentConfig
from assay.data.inputs.cells import (
    best_cells,
    informative_cells,
    iterative_cells,
    lattice_cells,
    tile_cells,
)
from assay.data.inputs.patches import Canvas, PatchConfig, blank_mask, cell_corners
from assay.errors import ConfigError
from assay.nn.topk import hard_topk

GRID = 12
SMALL = PatchConfig(image_px=240, overview_px=80, patch_px=48, clahe_clip=0.0)
CORNERS = cell_corners(np.arange(GRID * GRID), GRID, SMALL)
SHAPES = [(240, 240), (480, 480), (300, 200), (90, 310), (701, 333), (120, 120)]


def smooth(height, width, sigma=6.0, seed=0):
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigma)
    return cv2.normalize(blurred, None, 10, 245, cv2.NORM_MINMAX).astype(np.uint8)


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
def test_dense_and_sparse_cuts_are_the_same(shape, clahe):
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


def test_no_corners_make_no_patches():
    canvas = Canvas(ImagePyramid.of(smooth(50, 60)), SMALL)
    assert canvas.patches(np.zeros((0, 2), np.int64)).shape == (0, 48, 48, 3)


# Equalisation


def equalise(image):
    whole = albumentations.CLAHE(clip_limit=(3.0, 3.0), tile_grid_size=(8, 8), p=1)
    return whole(image=image)["image"]


@pytest.mark.parametrize("shape", [(240, 240), (256, 200), (251, 197)])
def test_patches_are_equalised_as_the_whole_image_is(shape):
    sizes = PatchConfig(image_px=260, overview_px=65, patch_px=48, clahe_grid=8, fit="pad")
    image = smooth(*shape, sigma=3)
    corners = cell_corners(np.arange(100), 10, sizes)
    patches = Canvas(ImagePyramid.of(image), sizes).patches(corners)
    top, left = ((260 - side) // 2 for side in shape)
    whole = np.zeros((460, 460, 3), np.uint8)
    whole[100 + top : 100 + top + shape[0], 100 + left : 100 + left + shape[1]] = equalise(image)
    for cut in (
        patches,
        np.stack([Canvas(ImagePyramid.of(image), sizes).patches(c[None])[0] for c in corners]),
    ):
        for patch, (x, y) in zip(cut, corners, strict=True):
            expected = whole[y + 100 : y + 148, x + 100 : x + 148]
            np.testing.assert_array_equal(patch, expected)


def test_equalisation_is_that_of_the_config():
    assert PatchConfig(clahe_clip=0.0).clahe is None
    assert PatchConfig(clahe_clip=2.0, clahe_grid=16).clahe == Clahe(2.0, 16)


# Overview


def test_an_overview_is_the_area_mean_of_the_canvas():
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
def test_statistics_are_those_of_the_image(shape):
    image = smooth(*shape, sigma=15)
    values = image.reshape(-1, 3) / 255
    _, mean, std = Canvas(ImagePyramid.of(image), SMALL).overview()
    np.testing.assert_allclose(mean, values.mean(0), atol=0.01)
    np.testing.assert_allclose(std, values.std(0), atol=0.01)


def test_an_image_moved_off_the_canvas_keeps_its_own_statistics():
    entry = ImagePyramid.of(smooth(300, 300))
    canvas = Canvas(entry, SMALL, Augment(matrix=about_centre(shift=(10_000, 0))))
    overview, mean, std = canvas.overview()
    assert not overview.any()
    np.testing.assert_array_equal(mean, entry.mean.astype(np.float32))
    np.testing.assert_array_equal(std, entry.std.astype(np.float32))


def test_photometric_changes_reach_overview_patches_and_statistics():
    image = np.full((240, 240, 3), 100, np.uint8)
    canvas = Canvas(ImagePyramid.of(image), SMALL, Augment(matrix=np.eye(2, 3), brightness=1.5))
    overview, mean, _ = canvas.overview()
    assert set(np.unique(overview)) == {150}
    assert set(np.unique(canvas.patches(np.array([[96, 96]])))) == {150}
    np.testing.assert_allclose(mean, 150 / 255)


def test_contrast_turns_about_the_mean_of_the_whole_image():
    image = np.full((240, 240, 3), 100, np.uint8)
    image[:, 120:] = 200
    canvas = Canvas(ImagePyramid.of(image), SMALL, Augment(matrix=np.eye(2, 3), contrast=0.5))
    dark, bright = canvas.patches(np.array([[10, 96], [180, 96]]))
    assert set(np.unique(dark)) == {125}
    assert set(np.unique(bright)) == {175}


def test_a_drawn_augmentation_is_repeatable():
    entry = ImagePyramid.of(smooth(300, 200))
    config = AugmentConfig(
        hflip=0.5, rotation_deg=180.0, rotation_p=1.0, noise_p=1.0, noise_max=0.1
    )
    change = augment.draw_augment(config, 240, np.random.default_rng(4))
    for _ in range(2):
        one, other = Canvas(entry, SMALL, change), Canvas(entry, SMALL, change)
        np.testing.assert_array_equal(one.overview()[0], other.overview()[0])
        np.testing.assert_array_equal(one.patches(CORNERS[:7]), other.patches(CORNERS[:7]))


def test_overview_and_patches_get_different_noise():
    sizes = PatchConfig(image_px=48, overview_px=48, patch_px=48, clahe_clip=0.0)
    change = Augment(matrix=np.eye(2, 3), noise="gaussian", noise_strength=0.1, noise_seed=7)
    canvas = Canvas(ImagePyramid.of(np.full((48, 48, 3), 128, np.uint8)), sizes, change)
    seen, patch = canvas.overview()[0].astype(float), canvas.patches(np.array([[0, 0]]))[0]
    assert abs(np.corrcoef(seen.ravel(), patch.ravel())[0, 1]) < 0.05


# Informative cells


def patch_means(overview, grid, sizes):
    """Mean of each cell's patch on a canvas drawn in full, zero outside."""
    factor = sizes.image_px // sizes.overview_px
    canvas = np.kron(overview.mean(-1), np.ones((factor, factor))) / 255
    pad = sizes.patch_px
    padded = np.pad(canvas, pad)
    return np.array(
        [
            padded[y + pad : y + 2 * pad, x + pad : x + 2 * pad].mean()
            for x, y in cell_corners(np.arange(grid * grid), grid, sizes)
        ]
    )


def with_part(rows, columns, level=220):
    overview = np.zeros((80, 80, 3), np.uint8)
    overview[rows, columns] = level
    return overview


@settings(max_examples=60)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(12, 40),
    st.integers(60, 255),
    st.integers(1, 4),
)
def test_dark_cells_are_never_drawn_while_bright_ones_are_enough(y, x, side, level, k):
    overview = with_part(slice(y, y + side), slice(x, x + side), level)
    means = patch_means(overview, GRID, SMALL)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cells = informative_cells(overview, GRID, SMALL, k, rng)
        assert len(set(cells.tolist())) == k
        assert cells.tolist() == sorted(cells.tolist())
        if (means > 0.13).sum() >= k:  # a thirtieth for whole overview pixels and grey levels
            assert (means[cells] > 0.07).all()


def test_every_bright_cell_is_drawn_alike():
    overview = with_part(slice(20, 60), slice(20, 60))
    rng = np.random.default_rng(0)
    drawn = np.bincount(
        np.concatenate([informative_cells(overview, GRID, SMALL, 4, rng) for _ in range(2000)]),
        minlength=GRID * GRID,
    )
    means = patch_means(overview, GRID, SMALL)
    assert (drawn[means > 0.13] > 0).all()
    assert (drawn[means < 0.07] == 0).all()
    expected = 8000 / (drawn > 0).sum()
    assert np.abs(drawn[drawn > 0] / expected - 1).max() < 0.4  # 4.5 standard deviations


def test_the_bar_falls_until_enough_cells_pass():
    # a part at a mean of about 0.06 (below 0.1, above 0.1 / 2) on a table at about 0.02
    overview = np.full((80, 80, 3), 5, np.uint8)
    overview[:, 40:] = 15
    means = patch_means(overview, GRID, SMALL)
    for seed in range(20):
        cells = informative_cells(overview, GRID, SMALL, 10, np.random.default_rng(seed))
        assert (means[cells] > 0.045).all()


def test_a_black_image_draws_from_all_cells():
    black = np.zeros((80, 80, 3), np.uint8)
    rng = np.random.default_rng(0)
    drawn = {
        cell for _ in range(300) for cell in informative_cells(black, GRID, SMALL, 8, rng).tolist()
    }
    assert drawn == set(range(GRID * GRID))
    every = informative_cells(black, GRID, SMALL, GRID * GRID, rng)
    assert every.tolist() == list(range(GRID * GRID))


def test_cells_are_drawn_by_the_generator_alone():
    overview = smooth(80, 80)
    one, other = (
        informative_cells(overview, GRID, SMALL, 8, np.random.default_rng(3)) for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)


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


# Cells without a scorer


@given(
    grid=st.integers(1, 40),
    stride=st.integers(1, 30),
    patch=st.integers(8, 200),
    extra=st.integers(0, 39),
)
def test_tiles_cover_the_canvas_with_few_patches(grid, stride, patch, extra):
    image = grid * stride + min(extra, grid - 1)
    assume(stride <= patch <= image and image >= 8)
    config = PatchConfig(image_px=image, overview_px=8, patch_px=patch)
    cells = tile_cells(grid, config)
    assert (np.diff(cells) > 0).all()
    seen = np.zeros((image, image), dtype=bool)
    for x, y in cell_corners(cells, grid, config):
        seen[max(y, 0) : max(y + patch, 0), max(x, 0) : max(x + patch, 0)] = True
    # what lies beyond the last cell's own patch no cell reaches
    end = (
        image
        if (patch - stride) // 2 >= image - grid * stride
        else (grid - 1) * stride + patch - (patch - stride) // 2
    )
    assert seen[:end, :end].all()
    assert np.sqrt(len(cells)) <= image / (patch // stride * stride) + 2


@given(grid=st.integers(1, 30), data=st.data())
def test_a_lattice_has_k_different_cells_evenly_spread(grid, data):
    k = data.draw(st.integers(1, max(1, grid * grid // 4)))
    assume(int(np.sqrt(k)) + 2 <= grid)
    cells = lattice_cells(grid, k)
    assert len(set(cells.tolist())) == k
    assert (np.diff(cells) > 0).all()
    rows, columns = np.divmod(cells, grid)
    for places in (rows, columns):
        assert abs(places.mean() + 0.5 - grid / 2) <= 1


@given(
    scores=st.lists(st.integers(-3, 3).map(float), min_size=25, max_size=25),
    k=st.integers(1, 25),
    apart=st.integers(0, 6),
)
def test_cells_without_torch_are_those_with_torch(scores, k, apart):
    expected = hard_topk(torch.tensor([scores]), k, apart)[0].tolist()
    assert best_cells(np.array(scores), k, 5, apart).tolist() == expected


@given(
    num=st.integers(1, 30), k=st.integers(1, 6), chunk=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_iterative_cells_are_the_best_of_all_with_little_in_memory(num, k, chunk, seed):
    """Where attention is a fixed order of features, the few at a time are the best of all."""
    assume(k <= num)
    worth = np.random.default_rng(seed).permutation(2 * num).reshape(2, num).astype(float)
    held = []

    def embed(cells):
        held.append(cells.shape[1])
        return np.take_along_axis(worth, cells, axis=1)[..., None]

    def attend(features):
        held.append(features.shape[1])
        return features[..., 0]

    found = iterative_cells(np.arange(num), 2, k, chunk, embed, attend)
    assert found.tolist() == np.sort(np.argsort(-worth, axis=1)[:, :k], axis=1).tolist()
    assert max(held) <= k + chunk


def test_blanks_of_an_overview_are_those_of_the_canvas_in_small():
    """Patches of 48 canvas pixels at an overview of a third."""
    corners = np.array([[[[9.0, 30.0], [200.0, -20.0]]]])
    canvas = blank_mask(corners, 48, 1.0, 240)[0, 0]
    assert canvas.sum() == 48 * 48 + 40 * 28
    assert canvas[30:78, 9:57].all()
    assert canvas[:28, 200:].all()
    small = blank_mask(corners, 48, 1 / 3, 80)[0, 0]
    assert (small == canvas[1::3, 1::3]).all()
