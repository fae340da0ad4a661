"""Corruptions against their own definitions: what each does to an image is measured."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from assay.data.inputs.corrupt import AMOUNTS, KINDS, corrupt

rng = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8), (0, 0), 2.0)
STRENGTHS = range(1, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_follows_from_the_seed_alone(kind):
    for strength in STRENGTHS:
        first, again = (corrupt(SMOOTH, kind, strength, 5) for _ in range(2))
        assert first.shape == SMOOTH.shape
        assert first.dtype == np.uint8
        assert np.array_equal(first, again)
    seeds = [corrupt(SMOOTH, kind, 3, seed) for seed in range(8)]
    assert (len({image.tobytes() for image in seeds}) > 1) == (
        kind in ("light", "rotation", "noise")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_strength_changes_more(kind):
    changes = [
        np.mean([np.abs(corrupt(SMOOTH, kind, s, seed) - 1.0 * SMOOTH).mean() for seed in range(8)])
        for s in STRENGTHS
    ]
    assert all(low < high for low, high in pairwise(changes))


def test_light_shifts_grey_by_its_share_of_full_scale():
    grey = np.full((8, 8, 3), 128, np.uint8)
    for strength, amount in zip(STRENGTHS, AMOUNTS["light"], strict=True):
        shifts = [corrupt(grey, "light", strength, seed).mean() - 128 for seed in range(12)]
        ends = min(shifts), max(shifts)
        assert ends == (
            pytest.approx(-255 * amount, abs=1),
            pytest.approx(min(255 * amount, 127), abs=1),
        )


def test_blur_has_the_stated_deviation():
    point = np.zeros((41, 41, 3), np.uint8)
    point[18:23, 18:23] = 255
    row = np.arange(41) - 20.0
    for strength, sigma in zip(STRENGTHS, AMOUNTS["blur"], strict=True):
        profile = corrupt(point, "blur", strength, 0)[..., 0].sum(axis=0).astype(float)
        variance = (profile * row**2).sum() / profile.sum()
        assert variance == pytest.approx(2.0 + sigma**2, rel=0.12)  # of the square, and of the blur


def test_rotation_turns_by_the_stated_angle_to_either_side():
    bar = np.zeros((81, 81, 3), np.uint8)
    bar[36:45, 15:66] = 255
    for strength, degrees in zip(STRENGTHS, AMOUNTS["rotation"], strict=True):
        angles = set()
        for seed in range(10):
            y, x = np.nonzero(corrupt(bar, "rotation", strength, seed)[..., 0] > 127)
            axes = np.linalg.eigh(np.cov(x, y))[1]
            angles.add(round(float(np.degrees(np.arctan2(*axes[::-1, 1])))) % 180)
        assert {min(angle, 180 - angle) for angle in angles} == {degrees}
        assert len(angles) == (1 if degrees == 90 else 2)


def test_noise_has_the_stated_deviation():
    grey = np.full((128, 128, 3), 128, np.uint8)
    for strength, amount in zip(STRENGTHS[:4], AMOUNTS["noise"][:4], strict=True):
        noise = corrupt(grey, "noise", strength, 1) - 128.0
        assert abs(noise.mean()) < 1
        assert noise.std() == pytest.approx(255 * amount, rel=0.1)


def test_jpeg_of_a_grey_image_is_what_opencv_writes_at_that_quality():
    grey = np.repeat(SMOOTH[..., :1], 3, axis=2)
    for strength, quality in zip(STRENGTHS, AMOUNTS["jpeg"], strict=True):
        encoded = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
        expected = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert np.array_equal(corrupt(grey, "jpeg", strength, 0), expected)
