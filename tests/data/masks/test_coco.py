"""COCO files: categories, flags, whose entry is whose, and what does not hang together."""

import os
from pathlib import Path

import numpy as np
import pytest

from assay.data.masks.annotations import match_names
from assay.data.masks.coco import read_coco
from assay.data.masks.marks import draw
from assay.errors import MaskError
from assay.levels import VOID

SIZE = (48, 64)
SQUARE = [40, 30, 60, 30, 60, 40, 40, 40]


def annotation(number=1, image=1, category=1, segmentation=None, **fields):
    shape = [SQUARE] if segmentation is None else segmentation
    keys = {"id": number, "image_id": image, "category_id": category, "segmentation": shape}
    return keys | fields


def image(number=1, file="b0/l0.png", size=SIZE):
    return {"id": number, "file_name": file, "height": size[0], "width": size[1]}


def mask_of(path, file="b0/l0.png", classes=("pore", "crack")):
    return draw(read_coco(path, classes)[file], str(path))


def box(left, top, right, bottom, size=SIZE):
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_parts_of_an_annotation_are_joined(tmp_path, written):
    parts = [SQUARE, [0, 0, 4, 0, 4, 5, 0, 5]]
    said = {"bbox": [0, 0, 60, 40], "area": 220}
    mask, _ = mask_of(written(tmp_path, [annotation(segmentation=parts, **said)]))
    assert mask.sum() == 220


def test_unused_categories_do_not_matter(tmp_path, written):
    path = written(tmp_path, [annotation()], categories=("pore", "everything"))
    assert mask_of(path, classes=("pore",))[0].max() == 1


def test_two_categories_of_one_name_are_one_class(tmp_path, written):
    marks = [annotation(1), annotation(2, category=2, segmentation=[[0, 0, 4, 0, 4, 5, 0, 5]])]
    mask, _ = mask_of(written(tmp_path, marks, categories=("pore", "PORE")), classes=("pore",))
    assert (mask == 1).sum() == 220


FLAGS = [(0, 0), (1, 1), (False, 0), (True, 1), (None, 0)]


@pytest.mark.parametrize(("value", "expected"), FLAGS)
@pytest.mark.parametrize(("name", "count"), [("iscrowd", "crowds"), ("ignore", "ignored")])
def test_a_flag_is_what_it_says(tmp_path, written, name, count, value, expected):
    path = written(tmp_path, [annotation(**{name: value})])
    assert getattr(mask_of(path)[1], count) == expected


@pytest.mark.parametrize("value", ["false", "0", "1", "", 2, -1, 0.5, [], {}])
@pytest.mark.parametrize("name", ["iscrowd", "ignore"])
def test_a_flag_that_is_neither_yes_nor_no_is_refused(tmp_path, written, name, value):
    path = written(tmp_path, [annotation(**{name: value})])
    with pytest.raises(MaskError, match=rf"{name} of annotation 1 is .*, not 0 or 1") as error:
        read_coco(path, ("pore", "crack"))
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_to_be_ignored_is_void_but_where_a_class_is_marked(tmp_path, written, order):
    inner = [45, 32, 50, 32, 50, 35, 45, 35]
    marks = [annotation(1, category=3, ignore=1), annotation(2, segmentation=[inner])][::order]
    path = written(tmp_path, marks, categories=("pore", "crack", "any other"))
    mask, drawn = mask_of(path)
    expected = box(40, 30, 60, 40) * np.uint8(VOID)
    expected[32:35, 45:50] = 1
    assert np.array_equal(mask, expected)
    assert (drawn.marks, drawn.ignored) == (2, 1)


def test_a_file_listed_twice_has_the_marks_of_both(tmp_path, written):
    images = [image(1), image(2, "b0\\l0.png")]
    marks = [annotation(1), annotation(2, 2, 2, [[0, 0, 4, 0, 4, 5, 0, 5]])]
    mask, _ = mask_of(written(tmp_path, marks, images))
    assert ((mask == 1).sum(), (mask == 2).sum()) == (200, 20)
    images[1]["width"] = 65
    with pytest.raises(MaskError, match=r"b0/l0\.png twice, with 64 x 48 pixels and with 65 x 48"):
        read_coco(written(tmp_path, marks, images), ("pore", "crack"))


# What does not hang together


@pytest.mark.parametrize(
    ("annotations", "images", "message"),
    [
        ([annotation(), annotation(2, image=5)], None, "Annotation 2 .* image 5"),
        ([annotation(), annotation(2, category=9)], None, "Annotation 2 .* category 9"),
        ([annotation(image="1")], None, "image '1'"),
        ([annotation(), annotation(1, category=2)], None, "id 1 to two annotations"),
        ([], [image(1), image(1, "b0/l1.png")], "id 1 to two images"),
        ([], [image(size=(48.5, 64))], "not whole"),
        ([], [image(size=(0, 64))], "height and width are 0"),
        ([], [image(file=None)], "no text"),
        ([{"id": 1, "image_id": 1, "category_id": 1}], None, "KeyError"),
    ],
)
def test_what_does_not_hang_together_is_refused(tmp_path, written, annotations, images, message):
    with pytest.raises(MaskError, match=message):
        read_coco(written(tmp_path, annotations, images), ("pore", "crack"))


def test_the_same_annotation_twice_is_one(tmp_path, written):
    assert mask_of(written(tmp_path, [annotation(), annotation()]))[1].marks == 1


@pytest.mark.parametrize("name", [None, ["pore"], 1.5, True])
def test_a_category_whose_name_is_no_text_is_refused(tmp_path, written, name):
    path = written(tmp_path, [annotation()], categories=(name,))
    with pytest.raises(MaskError, match=r"the name of a class is .*, not a text"):
        read_coco(path, ("none", "['pore']", "1.5", "true"))


def test_a_category_may_be_called_by_a_number(tmp_path, written):
    assert mask_of(written(tmp_path, [annotation()], categories=(7,)), classes=("7",))[0].any()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_unicode_of_other_systems_is_read(tmp_path, written, encoding):
    path = written(tmp_path, [annotation()])
    path.write_text(path.read_text(), encoding=encoding)
    assert mask_of(path)[0].sum() == 200


def test_half_a_character_is_no_name(tmp_path, written):
    with pytest.raises(MaskError, match="surrogates not allowed"):
        read_coco(written(tmp_path, [], [image(file="\ud800.png")]), ("pore",))
    path = written(tmp_path, [], [image(file="\U0001f600.png")])  # written as two halves
    assert [*read_coco(path, ("pore", "crack"))] == ["\U0001f600.png"]


def test_a_category_that_is_no_class_is_refused(tmp_path, written):
    with pytest.raises(MaskError, match="'crack'; allowed: pore"):
        read_coco(written(tmp_path, [annotation(category=2)]), ("pore",))


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"images": []}', "[" * 100_000, "\xff", '{"images": [], "images": []}', "null"],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "coco.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(MaskError, match=r"coco\.json"):
        read_coco(path, ("pore",))


# Whose entry is whose


@pytest.mark.parametrize(
    ("images", "entries", "expected"),
    [
        (["a/1.png", "b/1.png"], ["a/1.png", "b/1.png"], ["a/1.png", "b/1.png"]),
        (["a/1.png"], ["1.png"], ["1.png"]),
        (["a/1.png", "b/1.png"], ["x/a/1.png", "x/b/1.png"], ["x/a/1.png", "x/b/1.png"]),
        (["a/1.png"], ["b/1.png"], ["b/1.png"]),  # no other has the name
        (["a/1.png", "b/1.png"], ["b/1.png"], [None, "b/1.png"]),
        (["a/1.png"], ["a/1.png", "b/1.png"], ["a/1.png"]),
        (["a/1.png"], ["b/1.png", "c/1.png"], [None]),
        (["a/1.png", "b/1.png"], ["c/1.png"], [None, None]),
        (["e\u0301.png"], ["\u00e9.png"], ["\u00e9.png"]),
    ],
)
def test_entries_are_found_by_path_or_by_a_name_that_no_other_has(images, entries, expected):
    matches = match_names(images, entries, "coco.json")
    assert [matches.get(name) for name in images] == expected


@pytest.mark.parametrize(
    ("images", "entries", "message"),
    [
        (["a/1.png", "b/1.png"], ["1.png"], "fits the images a/1.png and b/1.png"),
        (["x/a/1.png"], ["1.png", "a/1.png"], "both fit the image x/a/1.png"),
    ],
)
def test_entries_that_fit_twice_are_refused(images, entries, message):
    with pytest.raises(MaskError, match=message):
        match_names(images, entries, "coco.json")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "coco.json")
    with pytest.raises(
        MaskError, match=r"coco\.json is (no regular file but a pipe|a folder).*; give a file"
    ):
        read_coco(tmp_path / "coco.json", ("pore",))
