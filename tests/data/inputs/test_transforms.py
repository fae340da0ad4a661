"""Changes of an image and its mask, against planted marks."""

import colorsys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.inputs.transforms import TransformConfig, change, change_colours
from assay.errors import ConfigError

NOTHING: dict[str, Any] = {
    "hflip": 0.0,
    "vflip": 0.0,
    "degrees": 0.0,
    "scale": 0.0,
    "affine": 0.0,
    "translate": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "noise": 0.0,
}
WIDE = np.full(3, 0.5), np.full(3, 1.0)
"""Mean and deviation of an image in whose terms amounts are those of full scale."""
NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def marked(x: int, y: int, side: int = 21) -> tuple[np.ndarray, np.ndarray]:
    """A bright square on dark ground, and its mask."""
    mask = np.zeros((101, 121), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return np.repeat(40 + 160 * mask[..., None], 3, axis=2), mask


def moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre, and covariance of the places, of what is marked."""
    places = np.argwhere(mask).astype(float)
    return places.mean(0), np.cov(places.T)


SETTINGS = st.builds(
    TransformConfig,
    hflip=st.floats(0, 1),
    vflip=st.floats(0, 1),
    degrees=st.floats(0, 180),
    scale=st.floats(0, 0.5),
    affine=st.floats(0, 1),
    translate=st.floats(0, 0.3),
    brightness=st.floats(0, 0.2),
    contrast=st.floats(0, 0.2),
)


@settings(max_examples=100)
@given(SETTINGS, st.integers(0, 2**31 - 1), st.integers(10, 90), st.integers(10, 70))
def test_the_mask_moves_with_the_image(config: TransformConfig, seed: int, x: int, y: int) -> None:
    image, mask = marked(x, y)
    moved, moved_mask = change(config, image, mask, seed, *WIDE)
    assert (moved.shape, moved_mask.shape) == (image.shape, mask.shape)
    assert set(np.unique(moved_mask)) <= {0, 1}
    if np.ptp(moved) < 80:  # moved out of sight
        assert moved_mask.all() or not moved_mask.any()
        return
    bright = moved[..., 0] > (int(moved.min()) + int(moved.max())) / 2
    # all but the pixels at the edge of the square, which two samplers may see differently
    assert (bright != moved_mask).sum() <= 4 * np.sqrt(max(moved_mask.sum(), 1)) + 8


@given(st.integers(0, 2**31 - 1))
def test_nothing_asked_changes_nothing(seed: int) -> None:
    mask = NOISE[..., 0] % 3
    for affine in (0.0, 1.0):
        image, other = change(
            TransformConfig(**NOTHING | {"affine": affine}), NOISE, mask, seed, *WIDE
        )
        np.testing.assert_array_equal(image, NOISE)
        np.testing.assert_array_equal(other, mask)


def test_changes_follow_from_the_seed_alone() -> None:
    config, mask = TransformConfig(noise=0.1, affine=1.0), NOISE[..., 0]
    results = []
    for seed in (5, 6, 5):
        results.append(change(config, NOISE, mask, seed, *WIDE))
        for other in range(6):  # settings come and go between
            change(TransformConfig(degrees=float(other)), NOISE, mask, 1, *WIDE)
    for first, again in zip(results[0], results[2], strict=True):
        np.testing.assert_array_equal(first, again)
    assert not np.array_equal(results[0][0], results[1][0])


def test_flips_are_flips() -> None:
    mask = NOISE[..., 1]
    for axis, name in ((1, "hflip"), (0, "vflip")):
        image, other = change(TransformConfig(**NOTHING | {name: 1.0}), NOISE, mask, 3, *WIDE)
        np.testing.assert_array_equal(image, np.flip(NOISE, axis))
        np.testing.assert_array_equal(other, np.flip(mask, axis))


def test_scaling_keeps_its_bounds_in_either_direction() -> None:
    _, mask = marked(50, 40)
    image = np.zeros((101, 121, 3), np.uint8)
    config = TransformConfig(**NOTHING | {"affine": 1.0, "scale": 0.4})
    factors = []
    for seed in range(60):
        _, moved = change(config, image, mask, seed, *WIDE)
        spread = np.sqrt(np.diag(moments(moved)[1])) / np.sqrt(np.diag(moments(mask)[1]))
        factors.append(spread)
    # within a pixel of the square's side, and drawn for height and width apart
    assert (np.min(factors, axis=0) > 0.55).all()
    assert (np.min(factors, axis=0) < 0.75).all()
    assert (np.max(factors, axis=0) > 1.25).all()
    assert (np.max(factors, axis=0) < 1.45).all()
    assert max(abs(tall / wide - 1) for tall, wide in factors) > 0.2


def test_a_shift_keeps_its_bounds_and_its_size() -> None:
    image, mask = marked(50, 40)
    config = TransformConfig(**NOTHING | {"affine": 1.0, "translate": 0.2})
    (y, x), _ = moments(mask)
    shifts = []
    for seed in range(60):
        _, moved = change(config, image, mask, seed, *WIDE)
        assert abs(int(moved.sum()) - int(mask.sum())) <= 42  # a row or column of the square
        shifts.append((moments(moved)[0] - (y, x)) / mask.shape)
    low, high = np.min(shifts, axis=0), np.max(shifts, axis=0)
    assert (low > -0.21).all()
    assert (low < -0.15).all()
    assert (high < 0.21).all()
    assert (high > 0.15).all()


@given(st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 2**31 - 1))
def test_colours_change_and_grey_and_masks_stay(saturation: float, hue: float, seed: int) -> None:
    """Saturation moves colours towards their grey or away from it; hue keeps the largest and smallest channel."""
    config = TransformConfig(**NOTHING | {"saturation": saturation, "hue": hue})
    mask = NOISE[..., 0] % 3
    grey = np.repeat(NOISE[..., :1], 3, axis=2)
    for image in (grey, NOISE):
        changed, other = change(config, image, mask, seed, *WIDE)
        np.testing.assert_array_equal(other, mask)
        if image is grey:
            assert np.abs(changed.astype(int) - grey).max() <= 1
    if not saturation:
        spread, before = (np.sort(a.astype(int), 2)[..., [0, 2]] for a in (changed, NOISE))
        # whole turns are 180 steps and saturation 255 in 8 bits
        assert np.abs(spread - before).max() <= 3


def test_hue_turns_within_its_bounds() -> None:
    red = np.zeros((4, 4, 3), np.uint8) + np.array([200, 20, 20], np.uint8)
    config = TransformConfig(**NOTHING | {"hue": 0.2})
    turns = []
    for seed in range(60):
        image, _ = change(config, red, red[..., 0], seed, *WIDE)
        turn = colorsys.rgb_to_hsv(*(image[0, 0] / 255))[0]
        turns.append((turn + 0.5) % 1 - 0.5)
    assert -0.21 < min(turns) < -0.15
    assert 0.15 < max(turns) < 0.21


def test_rotation_keeps_its_bounds() -> None:
    mask = np.zeros((101, 101), np.uint8)
    mask[48:53, 20:81] = 1
    image = np.zeros((101, 101, 3), np.uint8)
    config = TransformConfig(**NOTHING | {"affine": 1.0, "degrees": 20.0})
    angles = []
    for seed in range(60):
        centre, spread = moments(change(config, image, mask, seed, *WIDE)[1])
        assert np.abs(centre - 50).max() < 1  # about the middle
        axis = np.linalg.eigh(spread)[1][:, 1]
        angles.append(np.degrees(np.arctan2(axis[0] * np.sign(axis[1]), abs(axis[1]))))
    assert -20.6 < min(angles) < -15
    assert 15 < max(angles) < 20.6


def test_brightness_contrast_and_noise_keep_their_bounds() -> None:
    grey, mask = np.full((64, 64, 3), 128, np.uint8), np.ones((64, 64), np.uint8)
    levels = [
        int(
            change(TransformConfig(**NOTHING | {"brightness": 0.2}), grey, mask, seed, *WIDE)[0][
                0, 0, 0
            ]
        )
        for seed in range(80)
    ]
    assert 128 - 52 <= min(levels) < 90
    assert 166 < max(levels) <= 128 + 52
    steps = grey.copy()
    steps[:32] = 64
    ratios = []
    for seed in range(80):
        image = change(TransformConfig(**NOTHING | {"contrast": 0.3}), steps, mask, seed, *WIDE)[0]
        ratios.append((int(image[40, 0, 0]) - int(image[0, 0, 0])) / 64)
    assert 0.68 <= min(ratios) < 0.8
    assert 1.2 < max(ratios) <= 1.32
    deviations = np.array(
        [
            change(TransformConfig(**NOTHING | {"noise": 0.1}), grey, mask, seed, *WIDE)[0].std()
            / 255
            for seed in range(80)
        ]
    )
    assert 0.08 < deviations.max() < 0.105
    assert 20 < (deviations == 0).sum() < 60  # half of the samples


def test_light_changes_by_the_contrast_of_the_image_and_about_its_mean() -> None:
    """A tenth of the deviation is a tenth of the change, and the mean stays where contrast alone changes."""
    steps, mask = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.uint8)
    steps[:4] = 140
    mean, std = np.full(3, 120 / 255), np.full(3, 20 / 255)
    for amount, unit in ((1.0, 20), (0.5, 20)):
        config = TransformConfig(**NOTHING | {"brightness": amount})
        shifts = [
            int(change(config, steps, mask, seed, mean, std)[0][0, 0, 0]) - 140
            for seed in range(80)
        ]
        assert 0.8 * amount * unit < max(shifts) <= amount * unit + 1
        assert -amount * unit - 1 <= min(shifts) < -0.8 * amount * unit
    config = TransformConfig(**NOTHING | {"contrast": 0.5})
    for seed in range(20):
        lit = change(config, steps, mask, seed, mean, std)[0]
        assert abs(int(lit[0, 0, 0]) + int(lit[-1, 0, 0]) - 240) <= 1


def test_colours_stay_where_nothing_is_asked_and_follow_the_seed() -> None:
    np.testing.assert_array_equal(change_colours(NOISE, 0.0, 0.0, 0.0, 0.0, 3), NOISE)
    grey = change_colours(NOISE, 0.0, 1.0, 0.0, 0.0, 3)
    assert (np.ptp(grey, axis=2) == 0).all()
    luma = NOISE @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[..., 0] - luma).max() <= 1
    first, other, again = (change_colours(NOISE, 0.8, 0.2, 0.5, 0.2, seed) for seed in (4, 5, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    solarised = change_colours(NOISE, 0.0, 0.0, 0.0, 1.0, 3)
    np.testing.assert_array_equal(solarised, np.where(NOISE < 128, NOISE, 255 - NOISE))


@pytest.mark.parametrize("name", ["hflip", "contrast"])
def test_what_is_no_share_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"transform\.{name} is 1\.5"):
        TransformConfig(**{name: 1.5})
