import os
from dataclasses import replace
from math import pi, sqrt

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf

from assay.data.inputs.augment import IDENTITY
from assay.data.inputs.photometric import photometric

RNG = np.random.default_rng(11)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (61, 61, 3), dtype=np.uint8), (0, 0), 2)
PATCHES = RNG.integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(PATCHES).permute(0, 3, 1, 2) / 255


def to_uint8(tensor):
    return (255 * tensor).permute(0, 2, 3, 1).numpy()


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


# CLAHE
