"""Equalised regions against OpenCV's CLAHE of the whole image, and against albumentations."""

from dataclasses import replace

import albumentations
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.images.clahe import Clahe, Tables
from assay.data.images.entry import open_entry, write_entry
from assay.data.images.pyramid import ImagePyramid
from assay.data.images.store import Store
from assay.data.images.white import White

RNG = np.random.default_rng(11)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8), (0, 0), 2)


def equalise(image, clip_limit, grid):
    """The whole image, by OpenCV alone."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lightness = cv2.createCLAHE(clip_limit, (grid, grid)).apply(cv2.extractChannel(lab, 0))
    return cv2.cvtColor(cv2.insertChannel(lightness, lab, 0), cv2.COLOR_LAB2RGB)


def reader(image):
    height, width = image.shape[:2]

    def read(left, top, right, bottom):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        return image[top:bottom, left:right]

    return read


@pytest.mark.parametrize(("height", "width", "grid"), [(61, 61, 8), (64, 64, 8), (40, 61, 16)])
def test_the_whole_agrees_with_albumentations(height, width, grid):
    image = cv2.resize(SMOOTH, (width, height))
    ours = Tables(height, width, Clahe(3.0, grid)).region(reader(image), 0, 0, width, height)
    theirs = albumentations.CLAHE(clip_limit=(3.0, 3.0), tile_grid_size=(grid, grid), p=1)
    np.testing.assert_array_equal(ours, theirs(image=image)["image"])


@settings(deadline=None, max_examples=200)
@given(
    data=st.data(),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    grid=st.integers(1, 20),
    clip=st.sampled_from([0.0, 0.5, 3.0, 40.0]),
    spread=st.sampled_from([0.1, 1.0]),
)
def test_regions_are_crops_of_the_equalised_whole(data, height, width, grid, clip, spread):
    image = (cv2.resize(SMOOTH, (width, height)) * spread).astype(np.uint8)
    whole, tables = equalise(image, clip, grid), Tables(height, width, Clahe(clip, grid))
    for _ in range(3):  # the second finds some of its tables made
        x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
        region = tables.region(reader(image), x0, y0, x1, y1)
        np.testing.assert_array_equal(region, whole[y0:y1, x0:x1])


@pytest.mark.parametrize("side", [2560, 2550])
def test_a_large_image_is_equal_too(side):
    image = cv2.resize(RNG.integers(0, 256, (300, 300, 3), np.uint8), (side, side))
    region = Tables(side, side, Clahe(3.0, 64)).region(reader(image), 1000, 700, 1448, 1148)
    np.testing.assert_array_equal(region, equalise(image, 3.0, 64)[700:1148, 1000:1448])


@pytest.mark.parametrize("side", [2560, 2550])
def test_a_region_reads_less_than_a_tile_and_a_half_around_it(side):
    boxes = []

    def read(*box):
        boxes.append(box)
        return np.zeros((box[3] - box[1], box[2] - box[0], 3), np.uint8)

    region = Tables(side, side, Clahe(3.0, 64)).region(read, 1000, 700, 1448, 1148)
    assert region.shape == (448, 448, 3)
    left, top, right, bottom = np.transpose(boxes)
    assert 0 <= 1000 - min(left) < 60
    assert 0 <= 700 - min(top) < 60
    assert 0 <= max(right) - 1448 < 60
    assert 0 <= max(bottom) - 1148 < 60


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "aa" / "image.pixels"
    write_entry(path, ImagePyramid.of(SMOOTH))
    return path


CUT = ((3, 5, 40, 61), 0, Clahe(3.0, 8))


def test_tables_of_a_stored_image_are_made_once(stored, monkeypatch):
    expected = equalise(SMOOTH, 3.0, 8)[5:61, 3:40]
    np.testing.assert_array_equal(open_entry(stored).cut(*CUT), expected)
    monkeypatch.setattr(Tables, "_histograms", None)  # nothing is counted again
    np.testing.assert_array_equal(open_entry(stored).cut(*CUT), expected)
    (kept,) = stored.parent.glob("*.clahe*[0-9]")
    assert kept.stat().st_size == 8 + 8 * 8 * 256


def test_damaged_tables_are_made_again(stored):
    expected = open_entry(stored).cut(*CUT)
    (kept,) = stored.parent.glob("*.clahe*[0-9]")
    whole = kept.read_bytes()
    for damage in (whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], b""):
        kept.write_bytes(damage)
        np.testing.assert_array_equal(open_entry(stored).cut(*CUT), expected)
        assert kept.read_bytes() == whole


def test_a_store_for_reading_alone_equalises_too(stored, monkeypatch):
    def refuse(path, content):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr("assay.data.images.clahe.write_whole", refuse)
    np.testing.assert_array_equal(
        open_entry(stored).cut(*CUT), equalise(SMOOTH, 3.0, 8)[5:61, 3:40]
    )


def test_the_white_level_has_tables_of_its_own(tmp_path):
    deep = SMOOTH.astype(np.uint16) * 16
    path = tmp_path / "image.pixels"
    write_entry(path, ImagePyramid.of(deep))
    for white in (4095, 2047):
        entry = replace(open_entry(path), white=White(value=float(white), clips=True))
        shown = entry.uint8(deep)
        np.testing.assert_array_equal(entry.cut(*CUT), equalise(shown, 3.0, 8)[5:61, 3:40])


def test_copies_make_room_with_their_tables(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "store"), str(tmp_path / "cache"))
    cv2.imwrite(str(tmp_path / "a.png"), SMOOTH)
    store.build("aa", tmp_path / "a.png")
    store.open("aa").cut(*CUT)
    assert len([*store.here.glob("*/*.clahe*")]) == 2
    free = iter([0, 1 << 40])
    usage = type("Usage", (), {"free": property(lambda self: next(free))})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage())
    store._make_room(1)
    assert not [*store.here.glob("*/*pixels*")]
