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

from assay.data.augment import (
    IDENTITY,
    PRESETS,
    Augment,
    AugmentConfig,
    clahe,
    clahe_region,
    compose,
    crop_matrix,
    draw,
    fit,
    normalise,
    photometric,
    warp,
)
from assay.errors import ConfigError

RNG = np.random.default_rng(11)
NOISY = RNG.integers(0, 256, (61, 61, 3), dtype=np.uint8)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (61, 61, 3), dtype=np.uint8), (0, 0), 2)
PATCHES = RNG.integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(PATCHES).permute(0, 3, 1, 2) / 255
SHIFTS = st.floats(-40, 40, allow_nan=False)


def rng(seed=0):
    return np.random.default_rng(seed)


def to_uint8(tensor):
    return (255 * tensor).permute(0, 2, 3, 1).numpy()


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
    left_right = draw(AugmentConfig(hflip=1.0), side, rng())
    top_bottom = draw(AugmentConfig(vflip=1.0), side, rng())
    np.testing.assert_array_equal(whole(image, left_right), image[:, ::-1])
    np.testing.assert_array_equal(whole(image, top_bottom), image[::-1])


@pytest.mark.parametrize("seed", range(5))
def test_translation_copies_pixels_and_pads_with_zeros(seed):
    augment = draw(AugmentConfig(translate=0.25), 61, rng(seed))
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
    augment = draw(config, 61, rng(seed))
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
    augment = draw(AugmentConfig(resample_p=1.0, resample_low=1.2, resample_high=1.2), 60, rng())
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
        augment = draw(AugmentConfig(), 100, rng(seed))
        np.testing.assert_array_equal(replace(augment, noise_seed=0).to_row(), IDENTITY.to_row())
        assert photometric(PATCHES, augment, 0.5, seed) is not None
        np.testing.assert_array_equal(photometric(PATCHES, augment, 0.5, seed), PATCHES)


@pytest.mark.parametrize("name", PRESETS)
def test_draw_is_decided_by_the_seed(name):
    config = replace(PRESETS[name], noise_max=0.1)
    first, second, other = (draw(config, 100, rng(seed)).to_row() for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize("name", ["readme", "main"])
def test_factors_fill_their_ranges(name):
    config = replace(PRESETS[name], noise_max=0.1)
    generator = rng(5)
    drawn = [draw(config, 1000, generator) for _ in range(1500)]
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
    shifts = np.array([draw(config, 1000, generator).matrix[:, 2] for _ in range(2000)])
    assert 130 < np.abs(shifts).max() <= 150
    # Variance of a sum of uniforms on +-a and +-b: (a^2 + b^2) / 3.
    assert shifts.std() == pytest.approx(sqrt((100**2 + 50**2) / 3), rel=0.05)


def test_flips_come_at_their_probability():
    generator = rng(7)
    drawn = [draw(AugmentConfig(hflip=0.5, vflip=0.2), 9, generator).matrix for _ in range(2000)]
    assert np.mean([matrix[0, 0] < 0 for matrix in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([matrix[1, 1] < 0 for matrix in drawn]) == pytest.approx(0.2, abs=0.05)


def test_an_augment_survives_packing_and_pickling():
    for seed in range(20):
        augment = draw(replace(PRESETS["readme"], noise_max=0.2), 333, rng(seed))
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
    with pytest.raises(ConfigError, match=r"give|name a kind"):
        AugmentConfig(**wrong)


# Photometry


@pytest.mark.parametrize("factor", [0.3, 0.75, 1.25, 3.0])
def test_brightness_agrees_with_torchvision(factor):
    changed = photometric(PATCHES, replace(IDENTITY, brightness=factor), 0.5, 0)
    expected = to_uint8(tvf.adjust_brightness(TENSOR, factor))
    assert np.abs(changed - expected).max() <= 0.51


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.4])
@pytest.mark.parametrize("brightness", [0.5, 1.0])
def test_contrast_agrees_with_torchvision(factor, brightness):
    image = TENSOR[:1]
    mean = float(tvf.rgb_to_grayscale(image).mean())
    augment = replace(IDENTITY, contrast=factor, brightness=brightness)
    changed = photometric(PATCHES[:1], augment, mean, 0)
    expected = tvf.adjust_contrast(tvf.adjust_brightness(image, brightness), factor)
    assert np.abs(changed - to_uint8(expected)).max() <= 0.51


@pytest.mark.parametrize("gamma", [0.5, 0.9, 2.0])
def test_gamma_agrees_with_torchvision(gamma):
    changed = photometric(PATCHES, replace(IDENTITY, gamma=gamma), 0.5, 0)
    assert np.abs(changed - to_uint8(tvf.adjust_gamma(TENSOR, gamma))).max() <= 0.51


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.3])
def test_saturation_agrees_with_torchvision(factor):
    changed = photometric(PATCHES, replace(IDENTITY, saturation=factor), 0.5, 0)
    assert np.abs(changed - to_uint8(tvf.adjust_saturation(TENSOR, factor))).max() <= 1.1


def test_resampling_agrees_with_torch():
    def interpolate(tensor, size):
        return torch.nn.functional.interpolate(tensor, size=size, mode="bilinear")

    changed = photometric(PATCHES, replace(IDENTITY, resample=0.5), 0.5, 0)
    expected = to_uint8(interpolate(interpolate(TENSOR, (6, 5)), (12, 10)))
    assert np.abs(changed - expected).max() <= 1.5


def test_gaussian_noise_has_the_drawn_strength_and_is_clamped():
    augment = replace(IDENTITY, noise="gaussian", noise_strength=0.1, noise_seed=5)
    grey, black = (np.full((20, 48, 48, 3), value, np.uint8) for value in (128, 0))
    noise = photometric(grey, augment, 0.5, 0).astype(float) - 128
    assert abs(noise.mean()) < 0.3
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    # Mean of max(0, N(0, s)) is s / sqrt(2 pi).
    assert photometric(black, augment, 0.0, 0).mean() == pytest.approx(
        25.5 / sqrt(2 * pi), rel=0.02
    )


def test_salt_and_pepper_hit_half_each_and_whole_pixels():
    augment = replace(IDENTITY, noise="salt_pepper", noise_strength=0.2, noise_seed=5)
    noisy = photometric(np.full((20, 48, 48, 3), 128, np.uint8), augment, 0.5, 0)
    assert (noisy == 255).all(-1).mean() == pytest.approx(0.1, rel=0.05)
    assert (noisy == 0).all(-1).mean() == pytest.approx(0.1, rel=0.05)
    assert (noisy == 128).all(-1).mean() == pytest.approx(0.8, rel=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "salt_pepper"])
def test_noise_is_decided_by_seed_and_key(kind):
    augment = replace(IDENTITY, noise=kind, noise_strength=0.3, noise_seed=5)
    first = photometric(PATCHES, augment, 0.5, 1)
    np.testing.assert_array_equal(first, photometric(PATCHES, augment, 0.5, 1))
    assert (first != photometric(PATCHES, augment, 0.5, 2)).any()
    assert (first != photometric(PATCHES, replace(augment, noise_seed=6), 0.5, 1)).any()


def test_patches_given_are_left_alone():
    before = PATCHES.copy()
    change = replace(IDENTITY, brightness=0.5, saturation=0.5, resample=0.5)
    for augment in (replace(change, noise="gaussian"), replace(IDENTITY, noise="salt_pepper")):
        photometric(PATCHES, replace(augment, noise_strength=0.5), 0.5, 0)
    np.testing.assert_array_equal(PATCHES, before)


def test_no_patches_give_no_patches():
    none = PATCHES[:0]
    assert photometric(none, replace(IDENTITY, brightness=2.0), 0.5, 0).shape == none.shape
    assert normalise(none, np.full(3, 0.5), np.full(3, 0.1)).shape == none.shape


# CLAHE and normalisation


@pytest.mark.parametrize(("height", "width", "grid"), [(61, 61, 8), (64, 64, 8), (40, 61, 16)])
def test_clahe_agrees_with_albumentations(height, width, grid):
    image = cv2.resize(SMOOTH, (width, height))
    equalise = albumentations.CLAHE(clip_limit=(3.0, 3.0), tile_grid_size=(grid, grid), p=1)
    np.testing.assert_array_equal(clahe(image, 3.0, grid), equalise(image=image)["image"])


def equalise_lightness(image, clip_limit, num_x, num_y):
    lightness = cv2.extractChannel(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), 0)
    return np.stack([cv2.createCLAHE(clip_limit, (num_x, num_y)).apply(lightness)] * 3, -1)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), height=st.integers(1, 90), width=st.integers(1, 90), grid=st.integers(1, 20))
@pytest.mark.parametrize(("only_lightness", "tolerance"), [(True, 1), (False, 3)])
def test_a_region_is_the_crop_of_the_equalised_whole(
    only_lightness, tolerance, data, height, width, grid
):
    image = cv2.resize(SMOOTH, (width, height))
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))

    def read(left, top, right, bottom):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        return image[top:bottom, left:right]

    with pytest.MonkeyPatch.context() as patch:
        if only_lightness:
            patch.setattr("assay.data.augment._equalise", equalise_lightness)
        region = clahe_region(read, height, width, x0, y0, x1, y1, 3.0, grid)
        expected = clahe(image, 3.0, grid)[y0:y1, x0:x1]
    assert np.abs(region.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("side", [2560, 2550])
def test_a_region_reads_less_than_a_tile_and_a_half_around_it(side):
    boxes = []

    def read(left, top, right, bottom):
        boxes.append((left, top, right, bottom))
        return np.zeros((bottom - top, right - left, 3), np.uint8)

    region = clahe_region(read, side, side, 1000, 700, 1448, 1148, 3.0, 64)
    ((left, top, right, bottom),) = boxes
    assert region.shape == (448, 448, 3)
    assert 0 <= 1000 - left < 60
    assert 0 <= 700 - top < 60
    assert 0 <= right - 1448 < 60
    assert 0 <= bottom - 1148 < 60


def test_normalise_agrees_with_albumentations():
    values = SMOOTH.reshape(-1, 3).astype(np.float64) / 255
    mean, std = values.mean(0), values.std(0)
    # Albumentations adds its 1e-4 to the deviation of values in 0..255.
    changed = normalise(SMOOTH[None], mean, std, 1e-4 / 255)[0]
    expected = albumentations.Normalize(normalization="image_per_channel")(image=SMOOTH)["image"]
    assert changed.dtype == np.float32
    np.testing.assert_allclose(changed, expected, atol=1e-4)


def test_normalise_of_one_colour_is_zero():
    patch = np.full((1, 4, 4, 3), 77, np.uint8)
    np.testing.assert_array_equal(normalise(patch, np.full(3, 77 / 255), np.zeros(3)), 0)
