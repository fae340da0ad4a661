"""Crops of an image, whose boxes are read off images that show where each pixel stands."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.image import ImageConfig, ImageInput
from assay.data.inputs.views import ViewConfig, ViewInput
from assay.errors import ConfigError

UNCHANGED: dict[str, Any] = {
    "jitter": 0.0,
    "grey": 0.0,
    "blur": 0.0,
    "blur_global": (0.0, 0.0),
    "solarise": 0.0,
}
STILL: dict[str, Any] = {**UNCHANGED, "hflip": 0.0, "vflip": 0.0}


def ramp(height: int, width: int) -> ImagePyramid:
    """Red is the column and green the row, of sides up to 256."""
    y, x = np.mgrid[:height, :width]
    return ImagePyramid.of(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def box_of(crop: np.ndarray) -> np.ndarray:
    """First and last position that a crop of a ramp shows across and down, as x0, y0, x1, y1."""
    ends = []
    for values in (crop[..., 0].mean(0), crop[..., 1].mean(1)):
        inner = slice(len(values) // 8, -(len(values) // 8))  # edges repeat where they are enlarged
        slope, start = np.polyfit(np.arange(len(values))[inner], values[inner], 1)
        ends.append((start - slope / 2 + 0.5, start + slope * (len(values) - 0.5) + 0.5))
    return np.array(ends).T.ravel()


def sides(box: np.ndarray) -> np.ndarray:
    return np.abs(box[2:] - box[:2])


def test_sizes_and_numbers_are_as_asked() -> None:
    config = ViewConfig(num_global=3, num_local=5, global_px=40, local_px=24)
    large, small = ViewInput(config).draw(ramp(100, 150), 1)
    assert large.shape == (3, 40, 40, 3)
    assert small.shape == (5, 24, 24, 3)
    without = ViewConfig(num_global=3, num_local=0, global_px=40, local_px=24)
    again, none = ViewInput(without).draw(ramp(100, 150), 1)
    assert none.shape == (0, 24, 24, 3)
    # the large ones come first, so the number of small ones does not change them
    np.testing.assert_array_equal(again, large)


def test_crops_follow_from_image_and_key_alone() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    pyramid, config = ImagePyramid.of(noise), ViewConfig(global_px=32, local_px=16)
    first = ViewInput(config).draw(pyramid, 2**63)
    ViewInput(ViewConfig(global_px=48)).draw(ramp(50, 50), 7)  # what happens between is no matter
    for one, other in zip(first, ViewInput(config).draw(pyramid, 2**63), strict=True):
        np.testing.assert_array_equal(one, other)
    large, small = ViewInput(config).draw(pyramid, 2**63 + 1)
    assert not np.array_equal(large, first[0])
    assert not np.array_equal(small, first[1])
    assert len({crop.tobytes() for crop in first[0]}) == 2
    assert len({crop.tobytes() for crop in first[1]}) == 8


@settings(max_examples=100)
@given(
    st.integers(120, 256),
    st.integers(120, 256),
    st.tuples(st.floats(0.2, 1.0), st.floats(0.2, 1.0)).map(sorted),
    st.floats(1.0, 2.0),
    st.integers(0, 2**64 - 1),
)
def test_area_ratio_and_place_are_within_bounds(
    height: int, width: int, area: list[float], ratio: float, key: int
) -> None:
    low, high = area
    config = ViewConfig(
        num_global=4, num_local=0, global_px=96, global_area=(low, high), ratio=ratio, **UNCHANGED
    )
    large, _ = ViewInput(config).draw(ramp(height, width), key)
    most = ratio * min(height, width) / max(height, width)
    for box in map(box_of, large):
        across, down = sides(box)
        # in a long image no box of that ratio has all of the area
        assert across * down >= 0.96 * min(low, most) * height * width
        assert across * down <= 1.04 * high * height * width
        assert 0.97 / ratio <= across / down <= 1.03 * ratio
        xs, ys = box[[0, 2]], box[[1, 3]]
        assert min(xs.min(), ys.min()) >= -1.5
        assert xs.max() <= width + 1.5
        assert ys.max() <= height + 1.5


def test_small_crops_show_little_and_large_ones_much() -> None:
    config = ViewConfig(num_global=40, num_local=40, global_px=64, local_px=64, **UNCHANGED)
    large, small = ViewInput(config).draw(ramp(240, 240), 3)
    shares = [
        np.array([sides(box_of(crop)).prod() / 240**2 for crop in crops])
        for crops in (large, small)
    ]
    for share, (low, high) in zip(shares, ((0.32, 1.0), (0.05, 0.32)), strict=True):
        assert 0.94 * low <= share.min() < low + 0.1
        assert high - 0.1 < share.max() <= 1.02 * high
        # uniform between: the mean of 40 lies within four standard errors
        assert abs(share.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * 40)


def test_all_of_a_square_image_is_all_of_it() -> None:
    config = ViewConfig(num_global=5, num_local=0, global_px=96, global_area=(1.0, 1.0), **STILL)
    pixels = np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    for crop in ViewInput(config).draw(ImagePyramid.of(pixels), 5)[0]:
        np.testing.assert_allclose(crop.astype(int), pixels, atol=1)


def test_crops_are_of_the_part_that_is_looked_at() -> None:
    pixels = np.full((400, 600, 3), 255, np.uint8)
    pixels[100:300, 300:600] = 0
    config = ViewConfig(num_local=4, **STILL)
    frame = ImageInput(ImageConfig(box=(0.5, 0.25, 1.0, 0.75)))
    for key in range(8):
        for views in ViewInput(config, frame).draw(ImagePyramid.of(pixels), key):
            assert (views[:, 2:-2, 2:-2] == 0).all()
        whole, _ = ViewInput(config).draw(ImagePyramid.of(pixels), key)
        assert whole.max() == 255


def test_crops_are_turned_about_their_middle() -> None:
    """A turned ramp rises in another direction, as steeply as before, about the place where the unturned crop lies."""
    config = ViewConfig(
        num_global=60, num_local=0, global_px=64, global_area=(0.1, 0.1), ratio=1.0, **STILL
    )
    turned = dataclasses.replace(config, degrees=50.0)
    angles = []
    for crop in ViewInput(turned).draw(ramp(240, 240), 5)[0].astype(float):
        inner = crop[12:-12, 12:-12, 0]  # what lies within the image, whatever the turn
        down, across = (slope.mean() for slope in np.gradient(inner))
        angles.append(np.rad2deg(np.arctan2(-down, across)))
        assert np.hypot(down, across) == pytest.approx(np.sqrt(0.1) * 240 / 64, abs=0.05)
    assert max(np.abs(angles)) <= 52
    assert min(angles) < -40
    assert max(angles) > 40
    first, second = (ViewInput(each).draw(ramp(240, 240), 9)[0][0] for each in (config, turned))
    np.testing.assert_allclose(
        first[31:33, 31:33].mean((0, 1)), second[31:33, 31:33].mean((0, 1)), atol=1
    )


def test_flips_are_drawn_as_often_as_asked() -> None:
    for hflip, vflip in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.5)):
        config = ViewConfig(
            num_global=64, num_local=0, global_px=16, **UNCHANGED | {"hflip": hflip, "vflip": vflip}
        )
        boxes = np.stack([*map(box_of, ViewInput(config).draw(ramp(200, 200), 9)[0])])
        flipped = (boxes[:, 2:] < boxes[:, :2]).mean(0)
        for share, probability in zip(flipped, (hflip, vflip), strict=True):
            assert abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability) / 64)


def test_a_flipped_crop_is_the_crop_flipped() -> None:
    noise = ImagePyramid.of(
        np.random.default_rng(2).integers(0, 256, (130, 170, 3), dtype=np.uint8)
    )
    crops = [
        ViewInput(ViewConfig(num_global=1, num_local=0, global_px=48, **UNCHANGED | flips))
        .draw(noise, 4)[0][0]
        .astype(int)
        for flips in ({"hflip": 0.0, "vflip": 0.0}, {"hflip": 1.0, "vflip": 1.0})
    ]
    # OpenCV rounds positions to 1/32 of a pixel
    assert np.abs(crops[0] - crops[1][::-1, ::-1]).mean() <= 6


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_a_white_image_gives_white_crops_however_much_it_is_enlarged(
    height: int, width: int, key: int
) -> None:
    white = ImagePyramid.of(np.full((height, width, 3), 255, np.uint8))
    config = ViewConfig(global_px=48, local_px=16, num_local=2, **UNCHANGED)
    for crops in ViewInput(config).draw(white, key):
        assert (crops == 255).all()


def test_a_small_crop_of_a_large_image_shows_its_finest_structure() -> None:
    stripes = np.zeros((1600, 1600, 3), np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 255
    config = ViewConfig(
        num_global=1,
        num_local=4,
        global_px=100,
        local_px=100,
        local_area=(0.0035, 0.0039),
        ratio=1.0,
        **UNCHANGED,
    )
    large, small = ViewInput(config).draw(ImagePyramid.of(stripes), 6)
    assert small.std() > 100  # a hundred columns of the image are a hundred of the crop
    assert large.std() < 30  # ten and more are one


def test_colours_change_as_often_as_asked() -> None:
    noise = ImagePyramid.of(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole: dict[str, Any] = {
        "num_global": 61,
        "num_local": 0,
        "global_px": 64,
        "global_area": (1.0, 1.0),
    }
    for name in ("jitter", "grey", "solarise", "blur_global"):
        for probability in (0.0, 0.3, 1.0):
            value = (0.0, probability) if name == "blur_global" else probability
            config = ViewConfig(**whole, **{**STILL, name: value})
            crops = ViewInput(config).draw(noise, 8)[0][1:].astype(int)
            changed = (np.abs(crops - noise.pixels).max((1, 2, 3)) > 2).mean()
            if name == "grey":
                changed = (np.ptp(crops, axis=3).max((1, 2)) <= 1).mean()
            # blur and jitter may come out as next to nothing
            assert abs(changed - probability) <= 0.1 + 4 * np.sqrt(
                probability * (1 - probability) / 60
            )


def changed_share(config: ViewConfig) -> np.ndarray:
    """Whether each of 30 draws changed the first, the second large and the small crop."""
    noise = ImagePyramid.of(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    changed = []
    for key in range(30):
        crops = [crop for crops in ViewInput(config).draw(noise, key) for crop in crops]
        changed.append([np.abs(crop.astype(int) - noise.pixels).max() > 9 for crop in crops])
    return np.mean(changed, axis=0)


def test_each_crop_has_the_blur_and_the_solarisation_that_dinov2_gives_it() -> None:
    """The first large crop is always blurred, the second in a tenth, and it alone is solarised."""
    whole: dict[str, Any] = {
        "num_local": 1,
        "global_px": 64,
        "local_px": 64,
        "global_area": (1.0, 1.0),
        "local_area": (1.0, 1.0),
    }
    official = ViewConfig()
    assert (official.blur_global, official.blur, official.solarise) == ((1.0, 0.1), 0.5, 0.2)
    blurred = changed_share(ViewConfig(**whole, **STILL | {"blur_global": (1.0, 0.0)}))
    assert blurred[0] > 0.8  # a blur may be next to nothing
    assert blurred[1:].tolist() == [0, 0]
    assert changed_share(ViewConfig(**whole, **STILL | {"blur": 1.0}))[2] > 0.8
    solarised = changed_share(ViewConfig(**whole, **STILL | {"solarise": 1.0}))
    assert solarised.tolist() == [0, 1, 0]
    config = ViewConfig(**whole, **STILL | {"solarise": 1.0})
    levels = np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)
    shown = ViewInput(config).draw(ImagePyramid.of(np.stack([levels] * 3, -1)), 1)[0][1]
    np.testing.assert_array_equal(shown[..., 0], np.where(levels >= 128, 255 - levels, levels))


def test_large_crops_after_the_first_may_be_of_another_image() -> None:
    dark, bright = (ImagePyramid.of(np.full((40, 50, 3), level, np.uint8)) for level in (10, 200))
    config = ViewConfig(num_global=3, num_local=2, global_px=16, local_px=8, **STILL)
    large, small = ViewInput(config).draw(dark, 1, bright)
    assert [int(crop.mean()) for crop in large] == [10, 200, 200]
    assert [int(crop.mean()) for crop in small] == [10, 10]
    # boxes are drawn as without a partner
    again, _ = ViewInput(config).draw(ramp(40, 50), 1, ramp(40, 50))
    np.testing.assert_array_equal(again, ViewInput(config).draw(ramp(40, 50), 1)[0])


@pytest.mark.parametrize("name", ["global_area", "local_area"])
def test_areas_from_large_to_small_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"views\.{name.replace('_', '-')} goes from 0\.5 to 0\.4"
    ):
        ViewConfig(**{name: (0.5, 0.4)})
