import cv2
import numpy as np
import pytest

from assay.data.images.pyramid import ImagePyramid
from assay.data.near.sketch import CONTRAST, SIDE_PX, mirrored, sketch, standardise, thumbnail


def scene(seed, height=300, width=400):
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def test_a_thumbnail_has_one_mean_and_contrast_whatever_the_light():
    image = scene(1)
    thumb = standardise(image)
    assert thumb.shape == (96, SIDE_PX)
    assert thumb.mean() == pytest.approx(128, abs=1)
    assert thumb.std() == pytest.approx(CONTRAST, rel=0.02)
    darker = standardise((image * 0.5 + 20).astype(np.uint8))
    assert np.abs(darker.astype(int) - thumb).max() <= 3
    deep = standardise(image.astype(np.uint16) * 200)
    assert np.abs(deep.astype(int) - thumb).max() <= 1


def test_a_thumbnail_is_read_of_a_level_that_is_large_enough():
    image = scene(2, 600, 800)
    entry = ImagePyramid.of(image)
    assert [max(level.shape) for level in entry.levels] == [800, 400, 200, 100]
    np.testing.assert_array_equal(thumbnail(entry), standardise(entry.levels[2]))
    small = ImagePyramid.of(scene(3, 30, 40))
    np.testing.assert_array_equal(thumbnail(small), standardise(small.levels[0]))


def test_descriptors_of_the_mirror_image_are_a_permutation():
    """A permutation of the whole table finds what SIFT computes of the mirrored pixels."""
    thumb = standardise(scene(4))
    here, there = sketch(thumb), sketch(np.ascontiguousarray(thumb[:, ::-1]))
    cosines = mirrored(here.units) @ there.units.T
    best = cosines.max(1)
    assert np.median(best) > 0.98
    agreeing = np.flatnonzero(best > 0.98)
    x = thumb.shape[1] - 1 - here.points[agreeing, 0]
    found = there.points[cosines.argmax(1)[agreeing]]
    assert np.median(np.abs(found[:, 0] - x)) < 0.6
    np.testing.assert_array_equal(mirrored(mirrored(here.descriptors)), here.descriptors)


def test_a_blank_image_has_no_keypoints():
    blank = sketch(standardise(np.full((50, 60, 3), 7, np.uint8)))
    assert blank.points.shape == (0, 2)
    assert blank.units.shape == (0, 128)
