"""Equalisation, photometric changes and noise of patches, which are those of the whole image."""

import albumentations
import numpy as np
import pytest

from assay.data.images.clahe import Clahe
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs import augment
from assay.data.inputs.augment import Augment, AugmentConfig
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners

GRID = 12
SMALL = PatchConfig(image_px=240, overview_px=80, patch_px=48, clahe_clip=0.0)
CORNERS = cell_corners(np.arange(GRID * GRID), GRID, SMALL)


def equalise(image):
    whole = albumentations.CLAHE(clip_limit=(3.0, 3.0), tile_grid_size=(8, 8), p=1)
    return whole(image=image)["image"]


@pytest.mark.parametrize("shape", [(240, 240), (256, 200), (251, 197)])
def test_patches_are_equalised_as_the_whole_image_is(shape, smooth):
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


def test_a_drawn_augmentation_is_repeatable(smooth):
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
