"""Masks of a whole data set: made, given, and what is refused."""

import os
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from assay.data.images.decode import read, write_png
from assay.data.masks.given import open_mask
from assay.data.masks.prepare import file_name
from assay.data.masks.rules import MaskConfig, make
from assay.data.masks.sources import merge
from assay.errors import MaskError

CONFIG = MaskConfig()
PLAIN = MaskConfig(open_px=0, close_px=0, min_area_px=0)


def test_made_masks_their_table_and_sheet(pictures, prepare, tmp_path):
    images = pictures(tmp_path / "in", 3)
    masks = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    for (_, path), written in zip(images, masks, strict=True):
        mask, _ = make(read(path), CONFIG)
        assert np.array_equal(cv2.imread(str(written), cv2.IMREAD_UNCHANGED), mask * np.uint8(255))
    table = pyarrow.csv.read_csv(tmp_path / "out" / "agreement.csv").to_pydict()
    expected = [make(read(path), CONFIG) for _, path in images]
    assert table["id"] == [name for name, _ in images]
    assert table["share"] == pytest.approx([mask.mean() for mask, _ in expected])
    assert table["agreement"] == pytest.approx([agreement for _, agreement in expected])
    sheet = read(tmp_path / "out" / "contact.png")
    assert (sheet == (255, 32, 32)).all(2).any(), "outlines"
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_a_corrected_mask_is_kept_and_the_rest_is_made(pictures, prepare, tmp_path):
    images = pictures(tmp_path / "in", 4)
    masks = prepare(images[:3], tmp_path / "in", CONFIG, tmp_path / "out")
    corrected = np.zeros((64, 64), dtype=np.uint8)
    corrected[10:20, 10:20] = 1
    write_png(masks[1], corrected)
    before = [mask.read_bytes() for mask in masks]
    again = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    assert again[:3] == masks
    assert [mask.read_bytes() for mask in masks] == before
    assert again[3].exists()
    table = pyarrow.csv.read_csv(tmp_path / "out" / "agreement.csv").to_pydict()
    assert table["share"][1] == 100 / 64**2
    assert table["agreement"] == pytest.approx([make(read(path), CONFIG)[1] for _, path in images])


def test_complete_masks_are_not_made_again(pictures, prepare, tmp_path, monkeypatch):
    images = pictures(tmp_path / "in")
    masks = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    monkeypatch.setattr("assay.data.masks.prepare.make", None)
    assert prepare(images, tmp_path / "in", CONFIG, tmp_path / "out") == masks


def test_kinds_are_merged_and_images_without_are_clean(pictures, prepare, tmp_path):
    images = pictures(tmp_path / "in", 3)
    for kind, rows in (
        ("pore_1", slice(0, 9)),
        ("pore_2", slice(20, 29)),
        ("Streak_1", slice(5, 22)),
    ):
        plane = np.zeros((64, 64), dtype=np.uint8)
        plane[rows] = 255
        write_png(tmp_path / "in" / "m" / "b0" / f"0_{kind}.png", plane)
    pattern = "m/{folder}/{name}_{kind}_*.png"
    config = MaskConfig(classes=("pore", "streak"), files=pattern, missing="empty")
    first, *others = prepare(images, tmp_path / "in", config, tmp_path / "out")
    column = cv2.imread(str(first), cv2.IMREAD_UNCHANGED)[:, 0].tolist()
    assert column == [1] * 5 + [2] * 17 + [1] * 7 + [0] * 35
    assert not any(open_mask(mask, config.classes).any() for mask in others)
    with pytest.raises(MaskError, match=r"2 of 3 images have no mask .* first .*b1/0\.png"):
        prepare(images, tmp_path / "in", replace(config, missing="refuse"), tmp_path / "new")


@given(st.lists(hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 3)), min_size=1, max_size=4))
def test_merging_is_drawing_the_classes_in_order(parts):
    expected = np.zeros((4, 5), dtype=np.uint8)
    for number in (1, 2, 3):
        for part in parts:
            expected[part == number] = number
    assert np.array_equal(merge(parts), expected)
    assert np.array_equal(merge(parts[::-1]), expected)


def test_coco_masks(pictures, prepare, tmp_path):
    images = pictures(tmp_path, 1)
    (tmp_path / "a.json").write_text(
        '{"images": [{"id": 1, "file_name": "b0/0.png", "height": 64, "width": 64}],'
        ' "categories": [{"id": 1, "name": "defect"}], "annotations": [{"id": 1, "image_id": 1,'
        ' "category_id": 1, "segmentation": [[10, 0, 20, 0, 20, 64, 10, 64]]}]}'
    )
    (mask,) = prepare(images, tmp_path, MaskConfig(files="a.json"), tmp_path / "out")
    assert np.flatnonzero(open_mask(mask, ("defect",)).all(0)).tolist() == list(range(10, 20))


def test_another_size_is_refused_whether_given_or_corrected(pictures, prepare, tmp_path):
    images = pictures(tmp_path / "in", 1)
    write_png(tmp_path / "in" / "m.png", np.full((64, 60), 255, dtype=np.uint8))
    with pytest.raises(MaskError, match=r"m\.png has 60 x 64 pixels .*0\.png 64 x 64"):
        prepare(images, tmp_path / "in", MaskConfig(files="m.png"), tmp_path / "out")
    (mask,) = prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")
    write_png(mask, np.zeros((10, 64), dtype=np.uint8))
    with pytest.raises(MaskError, match="64 x 10 pixels"):
        prepare(images, tmp_path / "in", CONFIG, tmp_path / "out")


def test_a_given_mask_that_changed_is_taken_by_its_content(pictures, prepare, tmp_path):
    images = pictures(tmp_path / "in", 1)
    config = MaskConfig(files="masks/{name}.png")
    source = tmp_path / "in" / "masks" / "0.png"
    write_png(source, np.eye(64, dtype=np.uint8) * 255)
    (mask,) = prepare(images, tmp_path / "in", config, tmp_path / "out")
    written = mask.stat().st_mtime_ns
    os.utime(source, (2e9, 2e9))  # another time says nothing
    assert prepare(images, tmp_path / "in", config, tmp_path / "out") == [mask]
    assert mask.stat().st_mtime_ns == written
    write_png(source, np.eye(64, dtype=np.uint8)[::-1] * 255)
    os.utime(source, (1e9, 1e9))
    prepare(images, tmp_path / "in", config, tmp_path / "out")
    assert np.array_equal(open_mask(mask, ("defect",)), np.eye(64)[::-1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(PLAIN, maker="fixed", threshold=255), r"cover 100\.0% of all .*--masks\.dark"),
        (replace(CONFIG, min_area_px=10**6), r"all 3 images are empty.*--masks\.min-area-px"),
    ],
)
def test_masks_that_teach_nothing_are_refused_and_removed(
    pictures, prepare, tmp_path, config, message
):
    images = pictures(tmp_path / "in")
    with pytest.raises(MaskError, match=message):
        prepare(images, tmp_path / "in", config, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["agreement.csv", "contact.png"]


def test_a_pattern_that_no_mask_fits_is_said_so_and_not_that_masks_are_empty(
    pictures, prepare, tmp_path
):
    images = pictures(tmp_path / "in")
    config = MaskConfig(files="../mask/{folder}/{name}.png", missing="empty")
    with pytest.raises(MaskError, match=r"None of the 3 images has a mask by '\.\./mask/"):
        prepare(images, tmp_path / "in", config, tmp_path / "out")
    assert not [*(tmp_path / "out").rglob("*.png")]


def test_given_masks_that_are_empty_ask_for_their_values(pictures, prepare, tmp_path):
    images = pictures(tmp_path / "in", 1)
    write_png(tmp_path / "in" / "m.png", np.eye(64, dtype=np.uint8))
    config = MaskConfig(files="m.png")
    with pytest.raises(MaskError, match=r"--masks\.values"):
        prepare(images, tmp_path / "in", config, tmp_path / "out")
    prepare(images, tmp_path / "in", replace(config, values="index"), tmp_path / "out")


@given(st.lists(st.text(st.sampled_from("ab/_. é"), min_size=1), unique=True, max_size=9))
def test_names_of_files_do_not_collide(ids):
    names = [file_name(name) for name in ids]
    assert len(set(names)) == len(ids)
    assert not any("/" in name or name.startswith(".") for name in names)
