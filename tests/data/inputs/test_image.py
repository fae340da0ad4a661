"""Whole images in their frame, against geometry computed by hand and planted marks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.config import from_dict, to_dict
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.image import ImageConfig, ImageInput
from assay.data.inputs.normalise import EPS, IMAGENET_MEAN, IMAGENET_STD
from assay.errors import ConfigError

FITS = ("scale", "crop", "stretch", "pad")
SIDES = st.one_of(st.integers(1, 64), st.integers(1, 2000))
FRAMES = st.integers(1, 80)


def frame_of(fit: Any, height: int, width: int, **fields: Any) -> ImageInput:
    return ImageInput(ImageConfig(fit=fit, height_px=height, width_px=width, **fields))


def enlargement(fit: str, image: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Frame pixels per image pixel, across and down."""
    each = frame / image
    if fit == "scale":  # a side never comes to less than one pixel
        return np.maximum(each.min(), 1 / image)
    return {"crop": np.full(2, each.max()), "stretch": each, "pad": np.ones(2)}[fit]


def places(fit: str, image: np.ndarray, frame: np.ndarray) -> list[np.ndarray]:
    """Where the middle of each column and of each row of the frame lies in the image, from its edge."""
    scale, offset = enlargement(fit, image, frame), np.zeros(2)
    if fit == "pad":  # whole pixels: half a pixel of an odd remainder goes behind
        offset = np.where((frame - image) % 2 == 1, np.where(frame > image, -0.5, 0.5), 0)
    return [
        (np.arange(frame[axis]) + 0.5 - frame[axis] / 2 - offset[axis]) / scale[axis]
        + image[axis] / 2
        for axis in (0, 1)
    ]


def depth(position: np.ndarray, low: float, high: float) -> np.ndarray:
    """How far within an interval; below 0 outside."""
    return np.minimum(position - low, high - position)


@settings(max_examples=150)
@given(st.sampled_from(FITS), SIDES, SIDES, FRAMES, FRAMES, st.data())
def test_a_rectangle_lands_where_it_must_within_a_pixel(
    fit: str, height: int, width: int, frame_height: int, frame_width: int, data: st.DataObject
) -> None:
    image, frame = np.array([width, height]), np.array([frame_width, frame_height])
    pixels = np.zeros((height, width, 3), np.uint8)
    x0, x1 = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    y0, y1 = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    pixels[y0:y1, x0:x1] = 255
    shown = frame_of(fit, frame_height, frame_width).show(ImagePyramid.of(pixels))
    assert shown.shape == (frame_height, frame_width, 3)
    across, down = places(fit, image, frame)
    # a pixel of the frame, or two of what OpenCV divides a pixel of the image into
    near = np.maximum(1 / enlargement(fit, image, frame), 1 / 16) + 1e-6
    inside = np.minimum(
        depth(across, x0, x1)[None] / near[0], depth(down, y0, y1)[:, None] / near[1]
    )
    assert (shown[inside >= 1] > 127).all()
    assert (shown[inside <= -1] < 128).all()


@settings(max_examples=150)
@given(st.sampled_from(FITS), SIDES, SIDES, FRAMES, FRAMES)
def test_covered_is_where_a_white_image_is_white(
    fit: str, height: int, width: int, frame_height: int, frame_width: int
) -> None:
    view = frame_of(fit, frame_height, frame_width)
    pyramid = ImagePyramid.of(np.full((height, width, 3), 255, np.uint8))
    covered = view.covered(pyramid)
    assert covered.any()  # however long and narrow
    np.testing.assert_array_equal(view.show(pyramid), 255 * covered[..., None].repeat(3, axis=2))
    across, down = places(fit, np.array([width, height]), np.array([frame_width, frame_height]))
    reach = np.minimum(depth(across, 0, width)[None], depth(down, 0, height)[:, None])
    assert covered[reach > 1e-6].all()
    assert not covered[reach < -1e-6].any()
    if fit in ("crop", "stretch"):
        assert covered.all()


@settings(max_examples=80)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_pad_copies_pixels(height: int, width: int, frame_height: int, frame_width: int) -> None:
    rng = np.random.default_rng(height * 61 + width)
    pixels = rng.integers(1, 256, (height, width, 3), dtype=np.uint8)
    shown = frame_of("pad", frame_height, frame_width).show(ImagePyramid.of(pixels))
    short = np.maximum(np.array([frame_height - height, frame_width - width]), 0)
    before = short // 2
    padded = np.pad(pixels, [*zip(before, short - before, strict=True), (0, 0)])
    top, left = (np.array(padded.shape[:2]) - (frame_height, frame_width)) // 2
    np.testing.assert_array_equal(
        shown, padded[top : top + frame_height, left : left + frame_width]
    )


@st.composite
def boxes(draw: st.DrawFn, side: int) -> tuple[int, int]:
    """Two different places along a side."""
    low = draw(st.integers(0, side - 1))
    return low, draw(st.integers(low + 1, side))


@settings(max_examples=150)
@given(st.sampled_from(FITS), SIDES, SIDES, FRAMES, FRAMES, st.data())
def test_a_part_of_an_image_is_framed_as_an_image_of_its_own(
    fit: str, height: int, width: int, frame_height: int, frame_width: int, data: st.DataObject
) -> None:
    (left, right), (top, bottom) = data.draw(boxes(width)), data.draw(boxes(height))
    shares = (left / width, top / height, right / width, bottom / height)
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[top:bottom, left:right] = 0
    whole, part = ImagePyramid.of(pixels), ImagePyramid.of(pixels[top:bottom, left:right])
    view = frame_of(fit, frame_height, frame_width, box=shares)
    alone = frame_of(fit, frame_height, frame_width)
    assert view.looked_at(whole).tolist() == [left, top, right, bottom]
    np.testing.assert_array_equal(view.covered(whole), alone.covered(part))
    np.testing.assert_allclose(view.frame_box(whole), alone.frame_box(part), atol=1e-9)
    moved = alone.source_box(part) + np.array([left, top, left, top])
    np.testing.assert_allclose(view.source_box(whole), moved, atol=1e-9)
    image, frame = np.array([right - left, bottom - top]), np.array([frame_width, frame_height])
    across, down = places(fit, image, frame)
    # the part's edge cuts through pixels of a smaller level, and each shown one blends two of these, or two of the image
    near = np.maximum(2 / enlargement(fit, image, frame), 1)
    inside = np.minimum(
        depth(across, 0, right - left)[None] / near[0],
        depth(down, 0, bottom - top)[:, None] / near[1],
    )
    assert (view.show(whole)[inside >= 1] == 0).all()


def test_a_part_at_its_own_size_is_cut_out() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    view = frame_of("crop", 20, 40, box=(0.25, 0.5, 0.75, 1.0))
    np.testing.assert_array_equal(view.show(ImagePyramid.of(pixels)), pixels[20:40, 20:60])


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0.7, 1, 0.2), (1, 0, 0, 1)])
def test_an_empty_part_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"image\.box is .*, in which nothing lies"):
        ImageConfig(box=box)


def test_a_frame_of_the_images_size_is_the_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    for fit in FITS:
        np.testing.assert_array_equal(frame_of(fit, 37, 53).show(ImagePyramid.of(pixels)), pixels)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_frame_smaller_by_a_power_of_two_is_the_mean_of_blocks(factor: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    height, width = 256 // factor, 512 // factor
    blocks = pixels.reshape(height, factor, width, factor, 3).mean((1, 3))
    for fit in FITS[:3]:
        shown = frame_of(fit, height, width).show(ImagePyramid.of(pixels))
        assert np.abs(shown - blocks).max() <= 2  # each halving rounds


def test_stretching_averages_the_side_that_shrinks_more_and_blurs_no_other() -> None:
    stripes = np.zeros((64, 1024, 3), np.uint8)
    stripes[:, ::2] = 255  # vanish where 16 columns are one
    stripes[:32] //= 2
    shown = frame_of("stretch", 64, 64).show(ImagePyramid.of(stripes)).astype(int)
    assert np.abs(shown[:32] - 63.5).max() <= 2
    assert np.abs(shown[32:] - 127.5).max() <= 2


@settings(max_examples=100)
@given(st.sampled_from(FITS), SIDES, SIDES, FRAMES, FRAMES)
def test_the_source_box_is_what_of_the_image_is_seen(
    fit: str, height: int, width: int, frame_height: int, frame_width: int
) -> None:
    view = frame_of(fit, frame_height, frame_width)
    pyramid = ImagePyramid.of(np.zeros((height, width, 3), np.uint8))
    image, frame = np.array([width, height]), np.array([frame_width, frame_height])
    scale = enlargement(fit, image, frame)
    box, part = view.source_box(pyramid).reshape(2, 2), view.frame_box(pyramid).reshape(2, 2)
    seen = np.minimum(frame / scale, image)
    slack = 0.5 + 1e-6 if fit == "pad" else 1e-6  # the odd pixel
    np.testing.assert_allclose(box[1] - box[0], seen, atol=1e-6)
    np.testing.assert_allclose(box.sum(0), image, atol=2 * slack)
    np.testing.assert_allclose((part[1] - part[0]) * frame, seen * scale, atol=1e-6)
    np.testing.assert_allclose(part.sum(0) * frame, frame, atol=2 * slack)


def test_the_mean_and_deviation_of_the_image_are_those_of_what_it_covers() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    view, pyramid = frame_of("pad", 60, 60), ImagePyramid.of(pixels)
    mean, std = view.statistics(view.show(pyramid), view.covered(pyramid))
    np.testing.assert_allclose(mean, pixels.mean((0, 1)) / 255, rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 1)) / 255, rtol=1e-5)


def test_a_blank_image_stays_finite_and_has_the_deviation_of_a_grey_level() -> None:
    view, pyramid = frame_of("scale", 32, 32), ImagePyramid.of(np.full((9, 17, 3), 200, np.uint8))
    mean, std = view.statistics(view.show(pyramid), view.covered(pyramid))
    np.testing.assert_allclose(mean, np.full(3, 200 / 255), rtol=1e-6)
    np.testing.assert_allclose(std, np.full(3, 1 / 255), rtol=1e-6)
    array = view.array(pyramid)
    assert np.isfinite(array).all()
    assert np.abs(array[:, view.covered(pyramid) == 1]).max() < 1e-3


@pytest.mark.parametrize("kind", ["image", "imagenet", "constants"])
def test_an_array_is_the_frame_normalised_by_hand(kind: Any) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (45, 31, 3), dtype=np.uint8)
    constants = {"mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7)}
    view = frame_of("scale", 24, 40, normalise=kind, **constants)
    pyramid = ImagePyramid.of(pixels)
    shown = view.show(pyramid) / 255
    inside = shown[view.covered(pyramid) == 1]
    mean, std = {
        "image": (inside.mean(0), inside.std(0)),
        "imagenet": (np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)),
        "constants": (np.array(constants["mean"]), np.array(constants["std"])),
    }[kind]
    expected = ((shown - mean) / (std + EPS)).transpose(2, 0, 1)
    array = view.array(pyramid)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, expected, atol=1e-4)
    assert (IMAGENET_MEAN[0], IMAGENET_STD[2]) == (0.485, 0.225)


def test_equalisation_comes_before_everything_else() -> None:
    dark = np.random.default_rng(4).integers(100, 110, (64, 64, 3), dtype=np.uint8)
    plain, equalised = (
        frame_of("scale", 64, 64, clahe_clip=clip, clahe_grid=2).show(ImagePyramid.of(dark))
        for clip in (0.0, 40.0)
    )
    assert np.ptp(plain) < 10
    assert np.ptp(equalised) > 60


def test_settings_travel_and_are_checked() -> None:
    config = ImageConfig(fit="crop", mean=(0.0, 0.5, 1.0), clahe_clip=2.0)
    assert from_dict(ImageConfig, to_dict(config)) == config
    nan = (0.5, float("nan"), 0.5)
    for wrong in ({"std": (0.5, 0.0, 0.5)}, {"std": nan}, {"mean": nan}, {"height_px": 0}):
        with pytest.raises(ConfigError, match=r"image\."):
            replace(config, **wrong)
