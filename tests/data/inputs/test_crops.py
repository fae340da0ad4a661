from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.inputs.crops import CropConfig, draw_crop
from assay.errors import ConfigError

SIDE = 64
STILL = CropConfig(
    crop_px=SIDE, around=0.0, hflip=0.0, vflip=0.0, affine=0.0, brightness=0.0, contrast=0.0
)
MOVED = replace(STILL, hflip=0.5, vflip=0.5, affine=1.0, degrees=30.0, scale=0.2)
SIZES = {"large": (300, 200), "small": (40, 90)}


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Pixels:
    """Images that are bright exactly where their masks are: one large disc, and a few pixels."""
    folder = tmp_path_factory.mktemp("crops")
    store = Store(str(folder / "store"))
    for name, (height, width) in SIZES.items():
        mask = np.zeros((height, width), np.uint8)
        cv2.circle(mask, (width // 3, height // 2), min(height, width) // 5, 1, -1)
        mask[-12:-4, -12:-4] = 2
        image = np.where(mask[..., None] > 0, 200, 50).repeat(3, 2).astype(np.uint8)
        for key, drawn in ((name, image), (f"{name}-mask", mask)):
            cv2.imwrite(str(folder / "x.png"), drawn)
            store.build(key, folder / "x.png")
    return Pixels(store, [*SIZES], {"label": [f"{name}-mask" for name in SIZES]})


@settings(max_examples=40)
@given(row=st.sampled_from([0, 1]), key=st.integers(0, 2**63), moved=st.booleans())
def test_the_mask_moves_with_the_image(pixels, row, key, moved):
    image, mask = draw_crop(pixels, row, MOVED if moved else STILL, key)
    assert image.shape == (SIDE, SIDE, 3)
    assert set(np.unique(mask)) <= {0, 1, 2}
    bright = image[..., 0] > 125
    # between pixels an image is interpolated and a mask takes the nearest
    apart = cv2.erode((bright != (mask > 0)).astype(np.uint8), np.ones((3, 3), np.uint8))
    assert not apart.any()
    if not moved:
        assert np.array_equal(bright, mask > 0)


@settings(max_examples=30)
@given(row=st.sampled_from([0, 1]), key=st.integers(0, 2**63))
def test_a_crop_around_the_mask_shows_some_of_it(pixels, row, key):
    _, mask = draw_crop(pixels, row, replace(STILL, around=1.0), key)
    assert mask.any()


def test_a_crop_is_a_function_of_row_and_key(pixels):
    config = replace(MOVED, brightness=0.2, contrast=0.2, noise=0.1, around=0.5)
    first = [draw_crop(pixels, row, config, key) for row in (0, 1) for key in (1, 2)]
    again = [draw_crop(pixels, row, config, key) for row in (1, 0) for key in (2, 1)]
    for (image, mask), (other, theirs) in zip(first, again[::-1], strict=True):
        assert np.array_equal(image, other)
        assert np.array_equal(mask, theirs)
    images = [image.tobytes() for image, _ in first]
    assert len(set(images)) == len(images)


def test_crops_fall_everywhere(pixels):
    """Crops show the marks as often as where they are cut allows, no more in one place than in another."""
    height, width = SIZES["large"]
    shown = [draw_crop(pixels, 0, STILL, key)[1].any() for key in range(1000)]
    mask = np.asarray(pixels.mask(0, "label"))
    corners = np.clip(
        np.indices((height, width)) - SIDE // 2, 0, [[[height - SIDE]], [[width - SIDE]]]
    )
    expected = np.mean(
        [mask[y : y + SIDE, x : x + SIDE].any() for y, x in corners.reshape(2, -1).T[::7]]
    )
    assert abs(np.mean(shown) - expected) < 0.06


@pytest.mark.parametrize(
    ("name", "value"), [("crop_px", 100), ("crop_px", 0), ("around", 1.5), ("hflip", -0.1)]
)
def test_what_cannot_be_cut_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"crops.{name.replace('_', '-')}"):
        CropConfig(**{name: value})
