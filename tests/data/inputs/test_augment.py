import os
import pickle
from dataclasses import fields, replace
from math import atan2, degrees, pi, sqrt

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"


import albumentations
import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.images.affine import compose, crop_matrix, fit, warp
from assay.data.inputs.augment import IDENTITY, Augment, AugmentConfig, draw_augment
from assay.data.inputs.photometric import photometric
from assay.errors import ConfigError
from assay.train.recipes import reference_recipes

PRESETS = {name: recipe.augment for name, recipe in reference_recipes().items()}
"""What the task changes, by preset."""


RNG = np.random.default_rng(11)
NOISY = RNG.integers(0, 256, (61, 61, 3), dtype=np.uint8)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (61, 61, 3), dtype=np.uint8), (0, 0), 2)
PATCHES = RNG.integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
SHIFTS = st.floats(-40, 40, allow_nan=False)


def rng(seed=0):
    return np.random.default_rng(seed)


def whole(image, augment):
    return warp(image, augment.matrix, *image.shape[:2])


def bilinear(image, matrix, height, width):
    """Float bilinear sampling with zeros outside, written apart from OpenCV."""
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)))
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    u, v = np.einsum("ij,jhw->ihw", matrix, np.stack([x, y, np.ones_like(x)])) + 1
    u, v = np.clip(u, 0, padded.shape[1] - 1), np.clip(v, 0, padded.shape[0] - 1)
    i, j = (
        np.minimum(u.astype(int), padded.shape[1] - 2),
        np.minimum(v.astype(int), padded.shape[0] - 2),
    )
    a, b = (u - i)[..., None], (v - j)[..., None]
    upper = padded[j, i] * (1 - a) + padded[j, i + 1] * a
    lower = padded[j + 1, i] * (1 - a) + padded[j + 1, i + 1] * a
    return upper * (1 - b) + lower * b


@st.composite
def affines(draw_):
    turn = draw_(st.floats(-pi, pi))
    scale = draw_(st.floats(0.5, 2))
    mirror = draw_(st.sampled_from([-1.0, 1.0]))
    linear = scale * np.array(
        [[np.cos(turn), -mirror * np.sin(turn)], [np.sin(turn), mirror * np.cos(turn)]]
    )
    centre = np.array([30 + draw_(SHIFTS) / 3, 30 + draw_(SHIFTS) / 3])
    return np.column_stack([linear, centre - linear @ [30.0, 30.0]])


# Geometry


@pytest.mark.parametrize("side", [60, 61])
def test_flips_copy_pixels(side):
    image = NOISY[:side, :side]
    left_right = draw_augment(AugmentConfig(hflip=1.0), side, rng())
    top_bottom = draw_augment(AugmentConfig(vflip=1.0), side, rng())
    np.testing.assert_array_equal(whole(image, left_right), image[:, ::-1])
    np.testing.assert_array_equal(whole(image, top_bottom), image[::-1])


@pytest.mark.parametrize("seed", range(5))
def test_translation_copies_pixels_and_pads_with_zeros(seed):
    augment = draw_augment(AugmentConfig(translate=0.25), 61, rng(seed))
    x, y = (-augment.matrix[:, 2]).astype(int)
    expected = np.zeros_like(NOISY)
    expected[max(y, 0) : 61 + min(y, 0), max(x, 0) : 61 + min(x, 0)] = NOISY[
        max(-y, 0) : 61 - max(y, 0), max(-x, 0) : 61 - max(x, 0)
    ]
    assert max(abs(x), abs(y)) <= round(0.25 * 61)
    np.testing.assert_array_equal(whole(NOISY, augment), expected)


@pytest.mark.parametrize("seed", range(4))
def test_rotation_and_scale_agree_with_torchvision(seed):
    config = AugmentConfig(
        rotation_deg=180.0,
        rotation_p=1.0,
        scale_low=0.6,
        scale_high=1.6,
        scale_p=1.0,
        translate=0.2,
    )
    augment = draw_augment(config, 61, rng(seed))
    linear = augment.matrix[:, :2]
    scale = 1 / sqrt(np.linalg.det(linear))
    # torchvision's forward map: rotate by the angle and zoom about the centre, then shift.
    angle = degrees(atan2(-linear[1, 0], linear[0, 0]))
    shift = -np.linalg.inv(linear) @ (augment.matrix[:, 2] + linear @ [30, 30] - 30)
    expected = tvf.affine(
        torch.from_numpy(SMOOTH).permute(2, 0, 1).float(),
        angle=angle,
        translate=np.rint(shift).astype(int).tolist(),
        scale=scale,
        shear=[0.0, 0.0],
        interpolation=tvf.InterpolationMode.BILINEAR,
    )
    difference = whole(SMOOTH, augment) - expected.permute(1, 2, 0).numpy()
    assert np.abs(difference).max() < 1.1
    np.testing.assert_allclose(shift, np.rint(shift), atol=1e-9)


def test_resampling_above_1_is_enlarging_and_cutting_the_centre():
    image = SMOOTH[:60, :60]
    augment = draw_augment(
        AugmentConfig(resample_p=1.0, resample_low=1.2, resample_high=1.2), 60, rng()
    )
    tensor = torch.from_numpy(image).permute(2, 0, 1).float()[None]
    larger = torch.nn.functional.interpolate(tensor, size=(72, 72), mode="bilinear")
    expected = tvf.center_crop(larger, [60, 60])[0].permute(1, 2, 0).numpy()
    assert augment.resample == 1
    assert np.abs(whole(image, augment) - expected).max() < 1.1


@pytest.mark.parametrize(("height", "width"), [(40, 51), (61, 33), (60, 60), (7, 8)])
def test_fit_pad_is_albumentations_pad(height, width):
    image = NOISY[:height, :width]
    pad = albumentations.PadIfNeeded(62, 62, border_mode=cv2.BORDER_CONSTANT, fill=0)
    expected = pad(image=image)["image"]
    np.testing.assert_array_equal(warp(image, fit(height, width, 62, "pad"), 62, 62), expected)


@pytest.mark.parametrize("canvas", [16, 17, 60])
def test_fit_pad_cuts_the_centre_of_what_is_too_large(canvas):
    expected = albumentations.CenterCrop(canvas, canvas)(image=NOISY)["image"]
    np.testing.assert_array_equal(warp(NOISY, fit(61, 61, canvas, "pad"), canvas, canvas), expected)


@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 3000))
def test_fit_scale_spans_the_canvas_by_the_longer_side(height, width, canvas):
    matrix = fit(height, width, canvas, "scale")
    first, middle, last = (matrix @ [at, at, 1] for at in (-0.5, (canvas - 1) / 2, canvas - 0.5))
    longer = int(height > width)
    np.testing.assert_allclose(middle, [(width - 1) / 2, (height - 1) / 2], atol=1e-6)
    np.testing.assert_allclose(first[longer], -0.5, atol=1e-6)
    np.testing.assert_allclose(last[longer], max(height, width) - 0.5, atol=1e-6)
    assert matrix[0, 0] == matrix[1, 1] > 0
    assert matrix[0, 1] == matrix[1, 0] == 0


@given(affines(), affines(), SHIFTS, SHIFTS)
def test_compose_applies_inner_first(outer, inner, x, y):
    between = inner @ [x, y, 1]
    np.testing.assert_allclose(compose(outer, inner) @ [x, y, 1], outer @ [*between, 1], atol=1e-9)


@settings(deadline=None)
@given(affines(), st.integers(-5, 50), st.integers(-5, 50), st.integers(1, 20), st.integers(1, 20))
def test_a_patch_is_the_crop_of_the_warped_whole(matrix, x, y, height, width):
    canvas = warp(SMOOTH, matrix, 80, 80)
    canvas = np.pad(canvas, ((5, 0), (5, 0), (0, 0)))
    canvas[:5] = warp(SMOOTH, crop_matrix(matrix, -5, -5), 5, 85)
    canvas[:, :5] = warp(SMOOTH, crop_matrix(matrix, -5, -5), 85, 5)
    patch = warp(SMOOTH, crop_matrix(matrix, x, y), height, width)
    expected = canvas[y + 5 : y + 5 + height, x + 5 : x + 5 + width]
    assert np.abs(patch.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("step", [2, 3, 5])
def test_overview_pixels_stand_at_the_middle_of_their_squares(step):
    x, y = np.meshgrid(np.arange(60), np.arange(60))
    ramp = np.stack([4 * x, 4 * y, x + y], -1).astype(np.uint8)
    expected = cv2.resize(ramp, (60 // step, 60 // step), interpolation=cv2.INTER_AREA)
    matrix = crop_matrix(IDENTITY.matrix, 0, 0, float(step))
    overview = warp(ramp, matrix, 60 // step, 60 // step)
    assert np.abs(overview.astype(int) - expected).max() <= 1


@settings(deadline=None)
@given(affines(), st.booleans())
def test_warp_is_bilinear_with_zeros_outside(matrix, is_deep):
    image = NOISY.astype(np.uint16) * 257 if is_deep else NOISY
    patch = warp(image, matrix, 31, 41)
    assert patch.dtype == image.dtype
    tolerance = 3 if is_deep else 0.6
    assert np.abs(patch - bilinear(image, matrix, 31, 41)).max() < tolerance


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_whole_pixel_moves_are_exact_on_long_images(dtype):
    image = RNG.integers(0, np.iinfo(dtype).max, (8, 40_000, 3), dtype=dtype)
    flipped = np.array([[-1.0, 0.0, 39_990.0], [0.0, 1.0, 2.0]])
    np.testing.assert_array_equal(warp(image, flipped, 6, 20), image[2:, 39_990:39_970:-1])


def test_warp_far_outside_is_zero():
    assert not warp(NOISY, crop_matrix(IDENTITY.matrix, 500, -500), 9, 9).any()


# Drawing


def test_nothing_is_drawn_by_default():
    for seed in range(20):
        augment = draw_augment(AugmentConfig(), 100, rng(seed))
        np.testing.assert_array_equal(replace(augment, noise_seed=0).to_row(), IDENTITY.to_row())
        assert photometric(PATCHES, augment, 0.5, seed) is not None
        np.testing.assert_array_equal(photometric(PATCHES, augment, 0.5, seed), PATCHES)


@pytest.mark.parametrize("name", PRESETS)
def test_draw_is_decided_by_the_seed(name):
    config = replace(PRESETS[name], noise_max=0.1)
    first, second, other = (draw_augment(config, 100, rng(seed)).to_row() for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize("name", ["readme", "main"])
def test_factors_fill_their_ranges(name):
    config = replace(PRESETS[name], noise_max=0.1)
    generator = rng(5)
    drawn = [draw_augment(config, 1000, generator) for _ in range(1500)]
    for factor in ("brightness", "contrast", "gamma", "saturation"):
        low, high = config.range(factor)
        values = np.array([getattr(augment, factor) for augment in drawn])
        assert low <= values.min() <= low + 0.02 * (high - low)
        assert high >= values.max() >= high - 0.02 * (high - low)
        if low < high:
            assert np.mean(values != 1) == pytest.approx(config.exposure_p, abs=0.05)
    noisy = [augment for augment in drawn if augment.noise != "none"]
    gaussian = [augment.noise_strength for augment in noisy if augment.noise == "gaussian"]
    assert len(noisy) / len(drawn) == pytest.approx(config.noise_p, abs=0.05)
    assert len(gaussian) / len(noisy) == pytest.approx(0.5, abs=0.1)
    assert np.mean(gaussian) == pytest.approx(0.05, abs=0.01)
    assert {augment.noise_strength for augment in noisy if augment.noise == "salt_pepper"} == {0.1}
    resampled = [augment.resample for augment in drawn if augment.resample < 1]
    assert len(resampled) / len(drawn) == pytest.approx(config.resample_p / 2, abs=0.03)
    assert min(resampled, default=1) >= config.resample_low


def test_main_preset_moves_by_the_sum_of_two_shifts():
    generator = rng(6)
    config = replace(PRESETS["main"], rotation_p=0.0, scale_p=0.0, hflip=0.0, vflip=0.0)
    shifts = np.array([draw_augment(config, 1000, generator).matrix[:, 2] for _ in range(2000)])
    assert 130 < np.abs(shifts).max() <= 150
    # Variance of a sum of uniforms on +-a and +-b: (a^2 + b^2) / 3.
    assert shifts.std() == pytest.approx(sqrt((100**2 + 50**2) / 3), rel=0.05)


def test_flips_come_at_their_probability():
    generator = rng(7)
    drawn = [
        draw_augment(AugmentConfig(hflip=0.5, vflip=0.2), 9, generator).matrix for _ in range(2000)
    ]
    assert np.mean([matrix[0, 0] < 0 for matrix in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([matrix[1, 1] < 0 for matrix in drawn]) == pytest.approx(0.2, abs=0.05)


def test_an_augment_survives_packing_and_pickling():
    for seed in range(20):
        augment = draw_augment(replace(PRESETS["readme"], noise_max=0.2), 333, rng(seed))
        for copy in (Augment.from_row(augment.to_row()), pickle.loads(pickle.dumps(augment))):
            for field in fields(Augment):
                np.testing.assert_array_equal(
                    getattr(copy, field.name), getattr(augment, field.name)
                )


@pytest.mark.parametrize(
    "wrong",
    [
        {"hflip": 1.5},
        {"noise_p": -0.1},
        {"scale_low": 1.2},
        {"gamma_low": 0.0},
        {"noise_kinds": ()},
    ],
)
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"augment\..*(give low|it must)"):
        AugmentConfig(**wrong)
