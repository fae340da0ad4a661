import json
import os
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.masks.annotations import match_names
from assay.data.masks.coco import read_coco
from assay.data.masks.marks import Mark, MarkedImage, draw
from assay.errors import MaskError
from assay.levels import VOID

SIZE = (48, 64)
SQUARE = [40, 30, 60, 30, 60, 40, 40, 40]
CORNERS = st.tuples(st.integers(0, 60), st.integers(0, 44))
SAID = {"bbox": [40, 30, 20, 10], "area": 200}


def annotation(number=1, image=1, category=1, segmentation=None, **fields):
    shape = [SQUARE] if segmentation is None else segmentation
    keys = {"id": number, "image_id": image, "category_id": category, "segmentation": shape}
    return keys | fields


def image(number=1, file="b0/l0.png", size=SIZE):
    return {"id": number, "file_name": file, "height": size[0], "width": size[1]}


def written(tmp_path, annotations, images=None, categories=("Pore", "crack")):
    content = {
        "images": [image()] if images is None else images,
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, start=1)],
        "annotations": annotations,
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    return path


def mask_of(path, file="b0/l0.png", classes=("pore", "crack")):
    return draw(read_coco(path, classes)[file], str(path))


def box(left, top, right, bottom, size=SIZE):
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def runs_of(pixels):
    """Measure runs of a flat list of pixels, the first of zeros."""
    lengths, value = [0], False
    for pixel in pixels:
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


# What is drawn


@pytest.mark.parametrize("order", [1, -1])
def test_later_class_wins_whatever_the_order(tmp_path, order):
    inner = {"size": list(SIZE), "counts": runs_of(box(45, 32, 50, 35).T.ravel())}
    marks = [annotation(1), annotation(2, category=2, segmentation=inner)][::order]
    mask, drawn = mask_of(written(tmp_path, marks))
    expected = box(40, 30, 60, 40).astype(np.uint8)
    expected[32:35, 45:50] = 2
    assert np.array_equal(mask, expected)
    assert (drawn.marks, drawn.crowds, drawn.specks) == (2, 0, 0)


def test_parts_of_an_annotation_are_joined(tmp_path):
    parts = [SQUARE, [0, 0, 4, 0, 4, 5, 0, 5]]
    said = {"bbox": [0, 0, 60, 40], "area": 220}
    mask, _ = mask_of(written(tmp_path, [annotation(segmentation=parts, **said)]))
    assert mask.sum() == 220


def test_unused_categories_do_not_matter(tmp_path):
    path = written(tmp_path, [annotation()], categories=("pore", "everything"))
    assert mask_of(path, classes=("pore",))[0].max() == 1


def test_two_categories_of_one_name_are_one_class(tmp_path):
    marks = [annotation(1), annotation(2, category=2, segmentation=[[0, 0, 4, 0, 4, 5, 0, 5]])]
    mask, _ = mask_of(written(tmp_path, marks, categories=("pore", "PORE")), classes=("pore",))
    assert (mask == 1).sum() == 220


def test_a_crowd_is_counted(tmp_path):
    crowd = {"size": list(SIZE), "counts": runs_of(box(40, 30, 60, 40).T.ravel())}
    mask, drawn = mask_of(written(tmp_path, [annotation(segmentation=crowd, iscrowd=1, **SAID)]))
    assert (mask.sum(), drawn.crowds) == (200, 1)


FLAGS = [(0, 0), (1, 1), (False, 0), (True, 1), (None, 0)]


@pytest.mark.parametrize(("value", "expected"), FLAGS)
@pytest.mark.parametrize(("name", "count"), [("iscrowd", "crowds"), ("ignore", "ignored")])
def test_a_flag_is_what_it_says(tmp_path, name, count, value, expected):
    path = written(tmp_path, [annotation(**{name: value})])
    assert getattr(mask_of(path)[1], count) == expected


@pytest.mark.parametrize("value", ["false", "0", "1", "", 2, -1, 0.5, [], {}])
@pytest.mark.parametrize("name", ["iscrowd", "ignore"])
def test_a_flag_that_is_neither_yes_nor_no_is_refused(tmp_path, name, value):
    path = written(tmp_path, [annotation(**{name: value})])
    with pytest.raises(MaskError, match=rf"{name} of annotation 1 is .*, not 0 or 1") as error:
        read_coco(path, ("pore", "crack"))
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_to_be_ignored_is_void_but_where_a_class_is_marked(tmp_path, order):
    inner = [45, 32, 50, 32, 50, 35, 45, 35]
    marks = [annotation(1, category=3, ignore=1), annotation(2, segmentation=[inner])][::order]
    path = written(tmp_path, marks, categories=("pore", "crack", "any other"))
    mask, drawn = mask_of(path)
    expected = box(40, 30, 60, 40) * np.uint8(VOID)
    expected[32:35, 45:50] = 1
    assert np.array_equal(mask, expected)
    assert (drawn.marks, drawn.ignored) == (2, 1)


def test_a_file_listed_twice_has_the_marks_of_both(tmp_path):
    images = [image(1), image(2, "b0\\l0.png")]
    marks = [annotation(1), annotation(2, 2, 2, [[0, 0, 4, 0, 4, 5, 0, 5]])]
    mask, _ = mask_of(written(tmp_path, marks, images))
    assert ((mask == 1).sum(), (mask == 2).sum()) == (200, 20)
    images[1]["width"] = 65
    with pytest.raises(MaskError, match=r"b0/l0\.png twice, with 64 x 48 pixels and with 65 x 48"):
        read_coco(written(tmp_path, marks, images), ("pore", "crack"))


# What a mark says of itself


@pytest.mark.parametrize(
    "said",
    [
        SAID,
        {"bbox": [40, 30, 60, 40], "area": 200},  # two corners
        {"bbox": [40.4, 29.6, 19, 9]},  # the last pixel not counted
        {"bbox": [40, 30, 20, 10], "area": 171},
        {"bbox": [0, 0, 0, 0], "area": 0},  # placeholders
        {"bbox": None, "area": None},
        {"bbox": []},
    ],
)
def test_what_agrees_within_a_pixel_of_the_edge_is_taken(tmp_path, said):
    assert mask_of(written(tmp_path, [annotation(**said)]))[0].sum() == 200


NORMALISED = [(v / 64 if i % 2 == 0 else v / 48) for i, v in enumerate(SQUARE)]
ROWS = {"size": list(SIZE), "counts": runs_of(box(40, 30, 60, 40).ravel())}
THIN = [40, 30, 60, 30, 60, 30.4, 40, 30.4]


@pytest.mark.parametrize(
    ("segmentation", "said", "message"),
    [
        ([NORMALISED], SAID, "normalised"),
        ([NORMALISED], {"bbox": [0.625, 0.625, 0.3, 0.2], "area": 0.06}, "normalised"),
        ([NORMALISED], {}, "normalised"),
        (ROWS, SAID, "along the rows"),
        (ROWS, {}, "along the rows"),
        ([THIN], {"bbox": [40, 30, 20, 0.4], "area": 8}, "draws no pixel"),
        ([THIN], {}, "draws no pixel"),
        ([SQUARE * 2], SAID, "draws no pixel"),  # the outline goes round twice
        ([SQUARE], {"bbox": [30, 40, 10, 20]}, r"lies in \[40, 30, 20, 10\].*\[30, 40, 10, 20\]"),
        ([SQUARE], {"bbox": [40, 30, 20, 10], "area": 800}, "draws 200 pixels .* 800"),
        ([[x * 3 for x in SQUARE]], {}, "outside its image of 64 x 48"),
        ([[1e308, 1, 2, 1e308, 3, 3]], {}, "outside its image of 64 x 48"),
        (ROWS, {"bbox": [1, 1, 20, 10], "area": 200}, r"its bbox is \[1, 1, 20, 10\]"),
        ({"size": [48, 64], "counts": [3072]}, SAID, "draws no pixel"),
        ([], {}, "empty"),
        ([], SAID, "empty"),
        ([[1, 1, 2, 2]], {}, "2 points"),
        ([[1, 1, 2, 2, 3]], {}, "does not decode"),
        ([1, 1, 2, 2, 3, 3], {}, "a polygon of it is no list of numbers"),
        ([[1, 1, 2, None, 3, 3]], {}, "not finite"),
        ([[1, 1, 9, "1", 9, 9]], {}, "a coordinate is '1', not a number"),
        ([[1, True, 9, 1, 9, 9]], {}, "a coordinate is True, not a number"),
        ({"size": [64, 48], "counts": [3072]}, {}, r"\[64, 48\]"),
        ({"size": [48, 64], "counts": [4]}, {}, "4 pixels"),
        ({"counts": [3072]}, {}, "it has no size and counts"),
        ([SQUARE], {"bbox": [1, 2, 3]}, r"bbox of annotation 1 is \[1, 2, 3\], not 4 numbers"),
        ([SQUARE], {"area": "200"}, "area of annotation 1 is '200', not a number"),
    ],
)
def test_marks_that_draw_elsewhere_or_nothing_are_refused(tmp_path, segmentation, said, message):
    path = written(tmp_path, [annotation(segmentation=segmentation, **said)])
    with pytest.raises(MaskError, match=message) as error:
        mask_of(path)
    assert "coco.json" in str(error.value)


@given(st.lists(st.tuples(CORNERS, st.integers(3, 16), st.integers(3, 16)), min_size=1, max_size=5))
def test_run_lengths_of_columns_without_a_box_are_never_taken_for_rows(boxes):
    region = np.zeros(SIZE, dtype=bool)
    for (left, top), width, height in boxes:
        region |= box(left, top, left + width, top + height)
    runs = {"size": list(SIZE), "counts": runs_of(region.T.ravel())}
    mask, _ = draw(MarkedImage(SIZE, (Mark("annotation 1", 1, runs),)), "coco.json")
    assert np.array_equal(mask, region)


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([[10.1, 10.1, 10.4, 10.1, 10.2, 10.4]], {}),
        ([], {"area": 0, "bbox": [3, 3, 0, 0]}),
        ({"size": [48, 64], "counts": [3072]}, {"area": 0}),
    ],
)
def test_marks_within_one_pixel_are_counted(tmp_path, segmentation, said):
    mask, drawn = mask_of(written(tmp_path, [annotation(segmentation=segmentation, **said)]))
    assert (mask.any(), drawn.specks) == (False, 1)


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
def test_what_does_not_hang_together_is_refused(tmp_path, annotations, images, message):
    with pytest.raises(MaskError, match=message):
        read_coco(written(tmp_path, annotations, images), ("pore", "crack"))


def test_the_same_annotation_twice_is_one(tmp_path):
    assert mask_of(written(tmp_path, [annotation(), annotation()]))[1].marks == 1


@pytest.mark.parametrize("name", [None, ["pore"], 1.5, True])
def test_a_category_whose_name_is_no_text_is_refused(tmp_path, name):
    path = written(tmp_path, [annotation()], categories=(name,))
    with pytest.raises(MaskError, match=r"the name of a class is .*, not a text"):
        read_coco(path, ("none", "['pore']", "1.5", "true"))


def test_a_category_may_be_called_by_a_number(tmp_path):
    assert mask_of(written(tmp_path, [annotation()], categories=(7,)), classes=("7",))[0].any()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_unicode_of_other_systems_is_read(tmp_path, encoding):
    path = written(tmp_path, [annotation()])
    path.write_text(path.read_text(), encoding=encoding)
    assert mask_of(path)[0].sum() == 200


def test_half_a_character_is_no_name(tmp_path):
    with pytest.raises(MaskError, match="surrogates not allowed"):
        read_coco(written(tmp_path, [], [image(file="\ud800.png")]), ("pore",))
    path = written(tmp_path, [], [image(file="\U0001f600.png")])  # written as two halves
    assert [*read_coco(path, ("pore", "crack"))] == ["\U0001f600.png"]


def test_a_category_that_is_no_class_is_refused(tmp_path):
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


# Against another rasteriser, and against damage


@given(st.lists(st.tuples(CORNERS, st.integers(3, 16), st.integers(3, 16)), min_size=1, max_size=5))
def test_ellipses_of_random_files_are_drawn_as_opencv_draws_them(tmp_path_factory, ellipses):
    """Convex polygons with their true box and area, beside cv2.fillPoly, which adds the edge."""
    annotations, least, most = [], np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    for number, ((x, y), a, b) in enumerate(ellipses, start=1):
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], axis=1)
        points = points.clip(0, (64, 48))
        contour = np.rint((points - 0.5) * 16).astype(np.int32)  # opencv: a pixel's middle is whole
        drawn = cv2.fillPoly(np.zeros(SIZE, np.uint8), [contour], 1, shift=4)
        edge = cv2.polylines(np.zeros(SIZE, np.uint8), [contour], True, 1, 3, shift=4)
        least |= (drawn > 0) & (edge == 0)
        most |= (drawn > 0) | (edge > 0)
        low, high = points.min(0), points.max(0)
        said = {"bbox": [*low, *(high - low)], "area": cv2.contourArea(points.astype(np.float32))}
        annotations.append(annotation(number, segmentation=[points.ravel().tolist()], **said))
    path = written(tmp_path_factory.getbasetemp(), annotations)
    mask = mask_of(path)[0] > 0
    assert (least <= mask).all()
    assert (mask <= most).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value, path=()):
    """List the paths to everything in a JSON value."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


GOOD = {
    "images": [image(1), image(2, "b0/l1.png")],
    "categories": [{"id": 1, "name": "pore"}],
    "annotations": [annotation(1, **SAID), annotation(2, 2, 1, ROWS, iscrowd=1)],
}


@given(st.data(), JSON)
def test_damaged_files_raise_a_mask_error_alone(tmp_path_factory, data, value):
    content = json.loads(json.dumps(GOOD))
    *way, last = data.draw(st.sampled_from([path for path in places(GOOD) if path]))
    parent = content
    for key in way:
        parent = parent[key]
    if data.draw(st.booleans()):
        parent[last] = value
    else:
        del parent[last]
    path: Path = tmp_path_factory.getbasetemp() / "coco.json"
    path.write_text(json.dumps(content))
    with suppress(MaskError):
        for entry in read_coco(path, ("pore",)).values():
            if entry.size in (SIZE, SIZE[::-1]):
                draw(entry, str(path))


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "coco.json")
    with pytest.raises(
        MaskError, match=r"coco\.json is (no regular file but a pipe|a folder).*; give a file"
    ):
        read_coco(tmp_path / "coco.json", ("pore",))


OUTER, INNER = [10, 5, 50, 5, 50, 45, 10, 45], [20, 15, 30, 15, 30, 25, 20, 25]


@pytest.mark.parametrize("area", [1500, 1500.4, 1520])
def test_polygons_that_are_holes_by_their_area_are_refused(tmp_path, area):
    """As exporters write the rings of a shape with holes one after another; COCO joins them."""
    said = {"bbox": [10, 5, 40, 40], "area": area}
    path = written(tmp_path, [annotation(segmentation=[OUTER, INNER], **said)])
    with pytest.raises(MaskError, match=r"Annotation 1 .* 2 polygons of 1600 pixels together"):
        mask_of(path)


@pytest.mark.parametrize("area", [1600, 1590, 1700, None, 0])
def test_polygons_that_lie_in_others_are_joined(tmp_path, area):
    said = {"bbox": [10, 5, 40, 40]} | ({} if area is None else {"area": area})
    path = written(tmp_path, [annotation(segmentation=[OUTER, INNER], **said)])
    assert np.array_equal(mask_of(path)[0] > 0, box(10, 5, 50, 45))
