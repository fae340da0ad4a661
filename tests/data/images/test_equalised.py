"""Equalised pixels that are kept: OpenCV's own, whoever made the tiles, and whatever became of the file."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.images.clahe import Clahe, Tables
from assay.data.images.entry import open_entry, write_entry
from assay.data.images.equalised import SIDE, KeptTiles
from assay.data.images.pyramid import ImagePyramid

HEIGHT, WIDTH = 2 * SIDE + 45, 3 * SIDE
CLAHE = Clahe(3.0, 8)


def equalise(image):
    """Equalise a whole image by OpenCV."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(3.0, (8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
IMAGE = cv2.GaussianBlur(noise, (0, 0), 2) // 2 + 40
EXPECTED = equalise(IMAGE)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "aa" / "image.pixels"
    write_entry(path, ImagePyramid.of(IMAGE))
    return path


@pytest.fixture
def tiles(path):
    """The file of tiles, all of them made."""
    open_entry(path).cut((0, 0, WIDTH, HEIGHT), 0, CLAHE)
    (file,) = path.parent.glob("*.tiles")
    return file


def check(path):
    """Cut the whole image and parts of it, as a process does that has not seen it."""
    entry = open_entry(path)
    for x0, y0, x1, y1 in ((5, 7, 200, 90), (0, 0, WIDTH, HEIGHT), (SIDE, SIDE, SIDE + 1, HEIGHT)):
        np.testing.assert_array_equal(entry.cut((x0, y0, x1, y1), 0, CLAHE), EXPECTED[y0:y1, x0:x1])


def count(monkeypatch):
    """Collect the boxes that are equalised."""
    boxes = []
    region = Tables.region

    def counted(self, read, *box):
        boxes.append(box)
        return region(self, read, *box)

    monkeypatch.setattr(Tables, "region", counted)
    return boxes


@settings(max_examples=20)
@given(st.data())
def test_any_order_of_looks_shows_what_opencv_makes_of_the_whole(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("store") / "image.pixels"
    write_entry(path, ImagePyramid.of(IMAGE))
    for _ in range(4):
        x0, y0 = data.draw(st.integers(0, WIDTH - 1)), data.draw(st.integers(0, HEIGHT - 1))
        x1, y1 = data.draw(st.integers(x0 + 1, WIDTH)), data.draw(st.integers(y0 + 1, HEIGHT))
        cut = open_entry(path).cut((x0, y0, x1, y1), 0, CLAHE)
        np.testing.assert_array_equal(cut, EXPECTED[y0:y1, x0:x1])


def test_a_tile_is_equalised_once_and_what_is_not_looked_at_takes_no_disk(path, monkeypatch):
    boxes, entry = count(monkeypatch), open_entry(path)
    entry.cut((10, 10, 20, 20), 0, CLAHE)
    entry.cut((0, 0, SIDE, SIDE), 0, CLAHE)
    open_entry(path).cut((30, 40, SIDE, 50), 0, CLAHE)
    assert boxes == [(0, 0, SIDE, SIDE)]
    (file,) = path.parent.glob("*.tiles")
    assert file.stat().st_blocks * 512 < 3 * SIDE * SIDE * 3 < file.stat().st_size
    entry.cut((10, 10, SIDE + 1, 20), 0, CLAHE)
    assert boxes[1:] == [(SIDE, 0, 2 * SIDE, SIDE)]


def test_a_tile_that_was_damaged_is_made_anew(path, tiles, monkeypatch):
    whole, boxes = tiles.read_bytes(), count(monkeypatch)
    for place in (
        len(whole) - 5,
        9 * 8 + 3,
        0,
    ):  # the last tile's edge, the first tile, its checksum
        tiles.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        check(path)
        assert tiles.read_bytes() == whole
        assert boxes, "nothing was made anew"
        boxes.clear()


@pytest.mark.parametrize("length", [0, 5, 9 * 8, 100_000])
def test_a_file_that_was_cut_short_is_filled_again(path, tiles, length):
    whole = tiles.read_bytes()
    tiles.write_bytes(whole[:length])
    check(path)
    assert tiles.read_bytes() == whole


def test_a_file_that_was_deleted_and_begun_again_is_no_black_image(path, tiles):
    entry = open_entry(path)
    box = (5, 7, 200, 90)
    entry.cut(box, 0, CLAHE)
    size = tiles.stat().st_size
    tiles.unlink()
    np.testing.assert_array_equal(entry.cut(box, 0, CLAHE), EXPECTED[7:90, 5:200])
    tiles.unlink()
    with tiles.open("ab") as file:  # as another process begins it
        file.truncate(size)
    np.testing.assert_array_equal(entry.cut(box, 0, CLAHE), EXPECTED[7:90, 5:200])


def test_without_room_or_rights_it_is_equalised_each_time(path, monkeypatch):
    usage = shutil.disk_usage(path.parent)
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda folder: usage._replace(free=usage.total // 10))
        check(path)
    (file,) = path.parent.glob("*.tiles")
    assert not any(file.read_bytes())

    def refuse(number, content, place):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse)
        check(path)
    check(path)


def test_threads_and_handles_fill_one_file_together(path):
    entries = [open_entry(path) for _ in range(3)]
    boxes = [(x, y, x + 70, y + 70) for x in range(0, WIDTH - 70, 31) for y in range(0, 200, 40)]

    def cut(i):
        return entries[i % 3].cut(boxes[i], 0, CLAHE)

    with ThreadPoolExecutor(4) as pool:
        cuts = [*pool.map(cut, range(len(boxes)))]
    for (x0, y0, x1, y1), found in zip(boxes, cuts, strict=True):
        np.testing.assert_array_equal(found, EXPECTED[y0:y1, x0:x1])


def test_an_image_that_is_not_stored_keeps_nothing():
    entry = ImagePyramid.of(IMAGE)
    assert isinstance(entry.equalised(0, CLAHE), Tables)
    np.testing.assert_array_equal(entry.cut((5, 7, 90, 99), 0, CLAHE), EXPECTED[7:99, 5:90])


def test_levels_and_settings_have_files_of_their_own(path):
    entry = open_entry(path)
    names = {entry.equalised(*at).path for at in ((0, CLAHE), (1, CLAHE), (0, Clahe(2.5, 8)))}
    assert len(names) == 3
    assert all(isinstance(kept, KeptTiles) for kept in entry._equalised.values())


def test_tables_and_tiles_of_another_image_are_made_anew(path, tiles):
    other = path.with_name("other.pixels")
    write_entry(other, ImagePyramid.of(255 - IMAGE))
    open_entry(other).cut((0, 0, WIDTH, HEIGHT), 0, CLAHE)
    names = [file.name for file in path.parent.glob("image.pixels.clahe*")]
    assert len(names) == 2
    for name in names:
        content = (path.parent / name.replace("image", "other")).read_bytes()
        (path.parent / name).write_bytes(content)
    check(path)
