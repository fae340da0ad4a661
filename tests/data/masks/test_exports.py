import base64
import io
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from assay.data.masks.exports import read_export
from assay.data.masks.marks import draw
from assay.errors import MaskError
from assay.levels import VOID

CLASSES = ("crack", "pore")
POLYGON = {"label": "crack", "points": [[4, 5], [14, 5], [14, 9], [4, 9]], "shape_type": "polygon"}


def labelme(tmp_path, *shapes, **fields):
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": "..\\images\\l0.png",
        "imageData": None,
        "imageHeight": 48,
        "imageWidth": 64,
    }
    path = tmp_path / "l0.json"
    path.write_text(json.dumps(content | fields))
    return path


def voc(tmp_path, *objects, size="<width>64</width><height>48</height><depth>1</depth>"):
    parts = [
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, left, top, right, bottom in objects
    ]
    path = tmp_path / "l0.xml"
    path.write_text(f"<annotation><size>{size}</size>{''.join(parts)}</annotation>")
    return path


def mask_of(path):
    return draw(read_export(path, CLASSES), str(path))[0]


def test_labelme_shapes(tmp_path):
    rectangle = {"label": "Pore", "points": [[40, 20], [30, 10]], "shape_type": "rectangle"}
    mask = mask_of(labelme(tmp_path, POLYGON, rectangle))
    expected = np.zeros((48, 64), np.uint8)
    expected[5:9, 4:14], expected[10:20, 30:40] = 1, 2
    assert np.array_equal(mask, expected)
    assert not mask_of(labelme(tmp_path)).any()


def test_a_circle_is_the_pixels_nearer_than_its_radius(tmp_path):
    circle = {"label": "pore", "points": [[30, 20], [30, 31.3]], "shape_type": "circle"}
    mask = mask_of(labelme(tmp_path, circle))
    y, x = np.mgrid[:48, :64] + 0.5
    distance = np.hypot(x - 30, y - 20)
    assert (mask[distance < 11.2] == 2).all()
    assert (mask[distance > 11.4] == 0).all()


def test_a_circle_ends_where_its_image_does(tmp_path):
    y, x = np.mgrid[:48, :64] + 0.5
    for middle, edge in (([60, 20], [60, 31.3]), ([2, 3], [22, 3]), ([30, 24], [60, 24])):
        circle = {"label": "pore", "points": [middle, edge], "shape_type": "circle"}
        mask = mask_of(labelme(tmp_path, circle))
        radius = np.hypot(*np.subtract(edge, middle))
        distance = np.hypot(x - middle[0], y - middle[1])
        assert (mask[distance < radius - 0.1] == 2).all()
        assert (mask[distance > radius + 0.1] == 0).all()
    outside = {"label": "pore", "points": [[90, 20], [60, 20]], "shape_type": "circle"}
    with pytest.raises(MaskError, match="outside its image"):
        mask_of(labelme(tmp_path, outside))


def png_of(marks, mode):
    file = io.BytesIO()
    Image.fromarray(marks).convert(mode).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def pixels_at(left, top, marks, mode="1", label="pore"):
    """Write a shape as LabelMe does what it segments by a model: its pixels, and the corners of their box."""
    corners = [[left, top], [left + marks.shape[1] - 1, top + marks.shape[0] - 1]]
    return {
        "label": label,
        "points": corners,
        "shape_type": "mask",
        "mask": png_of(marks, mode),
    }


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))).filter(np.any),
    st.integers(0, 44),
    st.integers(0, 28),
    st.sampled_from(["1", "L"]),
)
def test_labelmes_masks_are_their_pixels_in_their_box(tmp_path_factory, marks, left, top, mode):
    path = labelme(tmp_path_factory.getbasetemp(), pixels_at(left, top, marks, mode))
    expected = np.zeros((48, 64), np.uint8)
    expected[top : top + marks.shape[0], left : left + marks.shape[1]] = 2 * marks
    assert np.array_equal(draw(read_export(path, CLASSES), "l0.json")[0], expected)


BLOCK = np.ones((4, 6), bool)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (pixels_at(60, 3, BLOCK), "for a box from 60, 3 to 65, 6 in an image of 48 x 64"),
        (pixels_at(-1, 3, BLOCK), "from -1, 3"),
        (pixels_at(3, 3, ~BLOCK), r"0 value\(s\) above 0"),
        (pixels_at(3, 3, BLOCK) | {"points": [[3, 3], [8, 7]]}, "4 x 6 pixels"),
        (pixels_at(3, 3, BLOCK) | {"points": [[3, 3]]}, "ValueError"),
        (pixels_at(3, 3, BLOCK) | {"mask": "?"}, "Error"),
        (pixels_at(3, 3, BLOCK) | {"mask": "aGFsbG8="}, "does not decode"),
        (pixels_at(3, 3, np.arange(24, dtype=np.uint8).reshape(4, 6), "L"), r"23 value\(s\)"),
    ],
)
def test_labelmes_masks_that_are_none_are_refused(tmp_path, shape, message):
    with pytest.raises(MaskError, match=message) as error:
        mask_of(labelme(tmp_path, shape))
    assert "l0.json" in str(error.value)


def test_a_voc_box_counts_pixels_from_one(tmp_path):
    mask = mask_of(voc(tmp_path, ("pore", 1, 1, 64, 2), ("crack", 10, 10, 10, 10)))
    expected = np.zeros((48, 64), np.uint8)
    expected[:2], expected[9, 9] = 2, 1
    assert np.array_equal(mask, expected)


def test_a_voc_file_with_a_box_at_0_counts_edges_from_zero(tmp_path):
    mask = mask_of(voc(tmp_path, ("pore", 0, 4, 64, 6), ("crack", 10, 10, 11, 12)))
    expected = np.zeros((48, 64), np.uint8)
    expected[4:6], expected[10:12, 10] = 2, 1
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</name>", "</name><name>crack</name>", "name stands twice"),
        ("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>", "bndbox/xmin stands twice"),
        ("</size>", "</size><size><height>9</height></size>", "size/height stands twice"),
    ],
)
def test_what_stands_twice_in_voc_is_refused(tmp_path, old, new, message):
    """One of both would be lost."""
    path = voc(tmp_path, ("pore", 1, 1, 20, 20))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(MaskError, match=message):
        mask_of(path)


def test_labels_of_labelme_are_texts(tmp_path):
    with pytest.raises(MaskError, match="the name of a class is None, not a text"):
        read_export(labelme(tmp_path, POLYGON | {"label": None}), ("none",))


def test_difficult_objects_are_void_but_where_a_class_is_marked(tmp_path):
    path = voc(tmp_path, ("pore", 1, 1, 20, 20), ("crack", 1, 1, 10, 10))
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    expected = np.zeros((48, 64), np.uint8)
    expected[:20, :20], expected[:10, :10] = VOID, 1
    assert np.array_equal(mask_of(path), expected)
    path.write_text(path.read_text().replace("<difficult>1", "<difficult>yes"))
    with pytest.raises(MaskError, match="difficult of object 1 is 'yes', not 0 or 1"):
        mask_of(path)


@pytest.mark.parametrize("kind", ["rectangle", "rotation"])
def test_four_corners_are_an_outline_and_what_is_difficult_is_void(tmp_path, kind):
    corners = POLYGON | {"shape_type": kind}
    expected = np.zeros((48, 64), np.uint8)
    for flag, value in ((False, 1), (None, 1), (True, VOID)):
        expected[5:9, 4:14] = value
        assert np.array_equal(mask_of(labelme(tmp_path, corners | {"difficult": flag})), expected)
    with pytest.raises(MaskError, match="difficult of shape 1 is 'yes', not 0 or 1"):
        mask_of(labelme(tmp_path, corners | {"difficult": "yes"}))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (POLYGON | {"shape_type": "linestrip"}, "'linestrip' of 4 points, which has no area"),
        (POLYGON | {"shape_type": "point", "points": [[3, 3]]}, "no area"),
        (
            POLYGON | {"shape_type": "line"},
            "no area; allowed: polygon, rectangle, rotation, circle, mask",
        ),
        (POLYGON | {"shape_type": "mask"}, "KeyError: 'mask'"),
        (POLYGON | {"shape_type": "circle"}, "'circle' of 4 points"),
        (POLYGON | {"label": "dirt"}, "label 'dirt'; allowed: crack, pore"),
        (POLYGON | {"points": [[1, 1], [2, 2]]}, "2 points"),
        (POLYGON | {"points": [[1, 1], [2, "x"], [3, 3]]}, "a point of shape 1"),
        (POLYGON | {"points": [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]}, "normalised"),
        ({"label": "crack"}, "KeyError"),
    ],
)
def test_shapes_without_an_area_are_refused_by_name(tmp_path, shape, message):
    with pytest.raises(MaskError, match=message) as error:
        mask_of(labelme(tmp_path, shape))
    assert "l0.json" in str(error.value)


@pytest.mark.parametrize(
    ("objects", "size", "message"),
    [
        ([("dirt", 1, 1, 2, 2)], None, "name 'dirt'"),
        ([("pore", 5, 1, 2, 2)], None, "reaches from 5, 1 to 2, 2"),
        ([("pore", "", 1, 2, 2)], None, "bndbox/xmin is missing"),
        ([("pore", "nan", 1, 2, 2)], None, "object 1"),
        ([("pore", 1, 1, 200, 20)], None, "outside its image"),
        ([], "<width>64</width>", "size/height is missing"),
        ([], "<", "ParseError|not well-formed"),
    ],
)
def test_boxes_that_are_none_are_refused(tmp_path, objects, size, message):
    path = voc(tmp_path, *objects, **({"size": size} if size else {}))
    with pytest.raises(MaskError, match=message) as error:
        mask_of(path)
    assert "l0.xml" in str(error.value)


@given(st.data(), st.binary(max_size=8))
def test_mutated_files_raise_a_mask_error_alone(tmp_path_factory, data, noise):
    folder = tmp_path_factory.getbasetemp()
    write = data.draw(st.sampled_from([labelme, lambda f, _: voc(f, ("pore", 1, 1, 9, 9))]))
    path = write(folder, data.draw(st.sampled_from([POLYGON, pixels_at(3, 3, BLOCK)])))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:start] + noise + content[start + data.draw(st.integers(0, 9)) :])
    with suppress(MaskError):
        entry = read_export(path, CLASSES)
        if entry.size == (48, 64):
            draw(entry, str(path))


def object_of(*, left="41", extra=""):
    corners = f"<xmin>{left}</xmin><ymin>31</ymin><xmax>60</xmax><ymax>40</ymax>"
    return f"<object><name>crack</name>{extra}<bndbox>{corners}</bndbox></object>"


def voc_of(tmp_path, objects, width="64"):
    path = tmp_path / "l0.xml"
    size = f"<size><width>{width}</width><height>48</height></size>"
    path.write_text(f"<annotation>{size}{objects}</annotation>", encoding="utf-8")
    return path


PLANTED = np.zeros((48, 64), np.uint8)
PLANTED[30:40, 40:60] = 1


@pytest.mark.parametrize("text", ["41", "+41", "4.1e1", "41.0", "041", " 41 ", "41."])
def test_numbers_of_voc_are_taken_as_xml_writes_them(tmp_path, text):
    assert np.array_equal(mask_of(voc_of(tmp_path, object_of(left=text))), PLANTED)


@pytest.mark.parametrize(
    "text",
    [
        "4_1",
        "\N{FULLWIDTH DIGIT FOUR}1",
        "4\N{ARABIC-INDIC DIGIT ONE}",
        "nan",
        "inf",
        "0x29",
        "41,0",
        "1e999",
        "4 1",
    ],
)
def test_what_python_alone_takes_for_a_number_is_refused(tmp_path, text):
    with pytest.raises(MaskError, match=r"l0\.xml"):
        mask_of(voc_of(tmp_path, object_of(left=text)))
    with pytest.raises(MaskError, match=r"l0\.xml"):
        mask_of(voc_of(tmp_path, object_of(), width=text.replace("41", "64")))


def test_deleted_objects_are_none(tmp_path):
    gone = object_of(left="2", extra="<deleted>1</deleted>")
    for kept in ("", "<deleted>0</deleted>", "<deleted/>"):
        mask = mask_of(voc_of(tmp_path, gone + object_of(extra=kept)))
        assert np.array_equal(mask, PLANTED)
    for text in ("yes", "2", "\N{FULLWIDTH DIGIT ONE}"):
        with pytest.raises(MaskError, match=f"the deleted of object 1 is '{text}', not 0 or 1"):
            mask_of(voc_of(tmp_path, object_of(extra=f"<deleted>{text}</deleted>")))


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("<difficult>0</difficult><difficult>1</difficult>", "difficult stands twice"),
        ("<polygon><x1>41</x1><y1>31</y1></polygon>", "object 1 has a polygon beside its box"),
    ],
)
def test_objects_that_say_more_than_would_be_marked_are_refused(tmp_path, extra, reason):
    with pytest.raises(MaskError, match=reason):
        mask_of(voc_of(tmp_path, object_of(extra=extra)))


def test_a_box_outside_of_every_object_is_not_passed_over(tmp_path):
    spelt = object_of().replace("object>", "item>")
    for objects in (spelt, object_of() + spelt):
        with pytest.raises(MaskError, match="a bndbox stands outside of every object"):
            mask_of(voc_of(tmp_path, objects))


def test_objects_are_found_in_any_spelling(tmp_path):
    """Else all of a file's marks would be lost, and its image count as clean."""
    spelt = object_of().replace("object>", "Object>")
    assert np.array_equal(mask_of(voc_of(tmp_path, spelt)), PLANTED)
    with pytest.raises(MaskError, match="is missing or empty"):
        mask_of(voc_of(tmp_path, object_of().upper()))
