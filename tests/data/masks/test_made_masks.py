"""Masks that a rule makes of the grey values, and its settings."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from assay.data.masks.rules import MaskConfig, make
from assay.errors import ConfigError

MAKERS = ("fixed", "otsu", "adaptive", "vote")
CONFIG = MaskConfig()
PLAIN = MaskConfig(open_px=0, close_px=0, min_area_px=0)
GREYS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)))
PICTURES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))


def iou(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("seed", range(3))
def test_planted_discs_are_found(discs, grey, maker, seed):
    plane, truth = discs(seed)
    mask, agreement = make(grey(plane), replace(CONFIG, maker=maker))
    assert iou(mask, truth) > 0.9
    assert 0.8 < agreement <= 1


def test_vote_outvotes_a_lighting_that_sees_something_else(discs):
    plane, truth = discs()
    shadow = plane.copy()
    shadow[:, :60] //= 12
    mask, agreement = make(np.dstack([plane, shadow, plane]), CONFIG)
    assert iou(mask, truth) > 0.9
    assert agreement < 0.5


def test_voters_of_lightings_by_hand():
    channels = [[0, 0, 0, 9, 255], [0, 0, 9, 9, 255], [0, 9, 9, 200, 255]]
    pixels = np.array(channels, dtype=np.uint8).T[None]
    mask, agreement = make(pixels, replace(PLAIN, threshold=5))
    assert mask.tolist() == [[True, True, False, False, False]]
    assert agreement == pytest.approx(1 / 3)


@given(PICTURES, st.sampled_from(MAKERS))
def test_bright_is_dark_inverted(pixels, maker):
    for config in (PLAIN, replace(CONFIG, min_area_px=3)):
        config = replace(config, maker=maker)
        dark = make(pixels, config)
        bright = make(255 - pixels, replace(config, dark=False))
        assert np.array_equal(bright[0], dark[0])
        assert bright[1] == dark[1]


@given(GREYS, st.sampled_from(MAKERS), st.integers(0, 9))
def test_no_small_component_is_left(grey, plane, maker, least):
    config = replace(CONFIG, maker=maker, open_px=0, min_area_px=least)
    mask, agreement = make(grey(plane), config)
    assert 0 <= agreement <= 1
    assert all(size >= least for size in components(mask))


def components(mask):
    """Count the pixels of 8-connected marks, by flood filling."""
    marked, sizes = set(map(tuple, np.argwhere(mask))), []
    while marked:
        stack, size = [marked.pop()], 0
        while stack:
            y, x = stack.pop()
            size += 1
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & marked
            marked -= near
            stack += near
        sizes.append(size)
    return sizes


@given(GREYS, st.sampled_from(MAKERS))
def test_16_bits_of_the_same_picture_give_the_same_mask(grey, plane, maker):
    config = replace(CONFIG, maker=maker)
    wide = make(grey(plane.astype(np.uint16) * 257), config)
    assert np.array_equal(wide[0], make(grey(plane), config)[0])


@pytest.mark.parametrize("maker", MAKERS)
def test_finer_levels_change_little(discs, grey, maker):
    plane, _ = discs()
    fine = plane.astype(np.uint16) * 16 + np.random.default_rng(1).integers(0, 16, plane.shape)
    config = replace(CONFIG, maker=maker)
    wide = make(grey(fine.astype(np.uint16)), config)[0]
    assert iou(wide, make(grey(plane), config)[0]) > 0.97


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("value", [0, 77, 255])
@pytest.mark.parametrize("dark", [True, False])
def test_a_constant_image_marks_nothing(maker, value, dark):
    pixels = np.full((30, 20, 3), value, dtype=np.uint8)
    mask, agreement = make(pixels, replace(PLAIN, maker=maker, dark=dark))
    assert not mask.any()
    assert agreement == 1


@pytest.mark.parametrize("maker", MAKERS)
def test_voters_that_are_equal_agree(grey, maker):
    plane = np.full((60, 60), 255, dtype=np.uint8)
    plane[20:30, 20:30] = 0
    mask, agreement = make(grey(plane), replace(PLAIN, maker=maker))
    assert agreement == 1
    assert np.array_equal(mask, plane == 0)


def test_opening_removes_what_is_thin_and_closing_fills(grey):
    plane = np.full((40, 40), 255, dtype=np.uint8)
    plane[5:25, 5:25] = 0
    plane[15, 15] = 255
    plane[30:32, 5:35] = 0
    mask, _ = make(grey(plane), replace(CONFIG, maker="fixed", min_area_px=0))
    expected = np.zeros_like(mask)
    expected[5:25, 5:25] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("a", "A")}, "masks.classes"),
        ({"classes": ("a,b",)}, "write them apart, without commas: a b"),
        ({"classes": ("a", " ")}, "masks.classes"),
        ({"classes": ()}, "masks.classes"),
        ({"classes": ("a", "b")}, "only one class"),
        ({"classes": ("a", "b"), "files": "{name}.png"}, "only one class"),
        ({"files": "{stem}.png"}, "{stem}"),
        ({"files": "{folder}/m/" * 5 + "{name}.png"}, "{folder} 4 times"),
        ({"files": "{kind}/{name}.png", "values": "index"}, "twice"),
        ({"block_px": 50}, "block-px is 50"),
        ({"files": "{kind}/{name}.json"}, "twice"),
        ({"void": 1}, "the number of the class 'defect'"),
        ({"void": -1}, "void is -1"),
        ({"threshold": 0}, "threshold is 0"),
        ({"offset": 0}, "offset is 0"),
        ({"open_px": -1}, "open-px is -1"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MaskConfig(**settings)
