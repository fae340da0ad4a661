"""The handle on a store."""

import pickle

import cv2
import numpy as np
import pytest

from assay.data.images.pixels import Pixels
from assay.data.images.pyramid import ImagePyramid
from assay.data.images.store import Store


def smooth(height, width, seed=0):
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 12.0)
    return cv2.normalize(blurred, None, 10, 245, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture
def pixels(tmp_path):
    contents = [f"{i:02}" * 16 for i in range(3)]
    store = Store(str(tmp_path / "store"))
    for i, content in enumerate(contents):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), smooth(90, 120, seed=i)[..., ::-1])
        store.build(content, path)
    return Pixels(store, [*contents, contents[0]])


def test_rows_of_one_content_share_an_entry(pixels):
    assert pixels[0] is pixels[3]
    np.testing.assert_array_equal(pixels[1].levels[0], smooth(90, 120, seed=1))


def test_pickling_leaves_the_maps_behind(pixels):
    unopened = len(pickle.dumps(pixels))
    for row in range(3):
        assert pixels[row].levels
    sent = pickle.dumps(pixels)
    assert len(sent) == unopened < 1000
    received = pickle.loads(sent)
    assert received == pixels
    np.testing.assert_array_equal(received[2].levels[0], pixels[2].levels[0])


def test_only_so_many_maps_are_kept_open(pixels, monkeypatch):
    monkeypatch.setattr("assay.data.images.pixels.OPEN_ENTRIES", 2)
    for row in (0, 1, 2, 0, 1, 2):
        np.testing.assert_array_equal(pixels[row].levels[0], smooth(90, 120, seed=row))
        assert len(pixels._open) <= 2


def test_an_entry_that_is_opened_again_is_not_checked_again(pixels, monkeypatch):
    monkeypatch.setattr("assay.data.images.pixels.OPEN_ENTRIES", 1)
    np.testing.assert_array_equal(pixels[0].pixels, smooth(90, 120, seed=0))
    assert not pixels[1].levels[0].checked.any()
    again = pixels[0].levels[0]
    assert again.checked.all()
    received = pickle.loads(pickle.dumps(pixels))
    assert not received[0].levels[0].checked.any()


def test_signatures_of_all_rows(pixels):
    survey = pixels.survey()
    signatures = survey.signatures
    assert signatures.shape == (4, 32)
    assert {values.dtype for values in survey.ranges} == {"uint8"}
    for row in range(3):
        expected = ImagePyramid.of(smooth(90, 120, seed=row)).signature
        assert signatures[row].tobytes() == expected
    np.testing.assert_array_equal(signatures[0], signatures[3])
    assert len(np.unique(signatures, axis=0)) == 3


def test_a_mask_is_kept_as_it_is_drawn(tmp_path):
    """Values of classes, exactly; 255 is how the only class is drawn. Its file may be an image too."""
    drawn = np.random.default_rng(0).integers(0, 3, (40, 70), dtype=np.uint8)
    store = Store(str(tmp_path / "store"))
    for name, values in (("classes", drawn), ("only", 255 * (drawn > 0).astype(np.uint8))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), values)
        store.build(f"{name}-mask", tmp_path / f"{name}.png")
        store.build(name, tmp_path / f"{name}.png")
    masks = {"label": ["classes-mask"], "truth": ["only-mask"]}
    pixels = pickle.loads(pickle.dumps(Pixels(store, ["only"], masks)))
    np.testing.assert_array_equal(pixels.mask(0, "label"), drawn)
    np.testing.assert_array_equal(pixels.mask(0, "truth"), drawn > 0)
    np.testing.assert_array_equal(pixels[0].pixels[..., 1], 255 * (drawn > 0))
