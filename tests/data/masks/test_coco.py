import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.masks.coco import decode_runs, fill_polygon, read_coco
from assay.errors import MaskError

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def runs_of(mask):
    """Measure the runs down the columns, the first of zeros."""
    lengths, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def text_of(lengths):
    """Write COCO's text, made from its description: signed base 32, difference to two runs before."""
    text = ""
    for i, length in enumerate(lengths):
        rest = length - lengths[i - 2] if i > 2 else length
        while True:
            digit, rest = rest % 32, rest // 32
            is_last = rest == (-1 if digit & 16 else 0)
            text += chr(48 + digit + (0 if is_last else 32))
            if is_last:
                break
    return text


@given(SIZES, st.randoms(use_true_random=False))
def test_run_lengths_come_back_from_both_forms(size, random):
    mask = np.array([random.random() < 0.4 for _ in range(size[0] * size[1])]).reshape(size)
    lengths = runs_of(mask)
    assert np.array_equal(decode_runs(lengths, *size), mask)
    assert np.array_equal(decode_runs(text_of(lengths), *size), mask)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12))
def test_long_runs_come_back(lengths):
    total = sum(lengths)
    if total:
        values = np.concatenate([np.full(n, i % 2 == 1) for i, n in enumerate(lengths)])
        assert np.array_equal(decode_runs(text_of(lengths), total, 1)[:, 0], values)


def test_text_of_a_known_mask():
    # by hand: runs 6, 1, 40 of 47: "6", "1", 40 = 8 + 32 -> "X" (8 + 32 + 48) and "1"
    mask = decode_runs("61X1", 47, 1)[:, 0]
    assert np.flatnonzero(mask).tolist() == [6]


@pytest.mark.parametrize("counts", [[5], [3, -1, 4], "5", "X", "\x7f", [2, 5, 0]])
def test_damaged_runs_are_refused(counts):
    with pytest.raises(ValueError, match="run"):
        decode_runs(counts, 2, 3)


@given(st.lists(st.tuples(st.integers(-8, 40), st.integers(-8, 40)), min_size=3, max_size=7))
def test_polygon_is_its_pixels_centres(corners):
    # quarter pixels: no centre lies on a corner, and edges are told from centres by opencv
    points = np.array(corners) * 0.75 + 0.25
    mask = fill_polygon(points, 24, 20)
    contour = points.astype(np.float32)
    for y, x in np.ndindex(mask.shape):
        crossings = _crossings(contour, x + 0.5, y + 0.5)
        if crossings is not None:
            assert mask[y, x] == (crossings % 2 == 1)


def _crossings(contour, x, y):
    """Count edges right of a point; None where the point lies on one (opencv's distance)."""
    if abs(cv2.pointPolygonTest(contour, (x, y), True)) < 1e-3:
        return None
    ends = np.roll(contour, -1, axis=0)
    spans = (contour[:, 1] <= y) != (ends[:, 1] <= y)
    side = (ends[:, 0] - contour[:, 0]) * (y - contour[:, 1]) - (x - contour[:, 0]) * (
        ends[:, 1] - contour[:, 1]
    )
    return int((spans & ((side > 0) == (ends[:, 1] > contour[:, 1]))).sum())


def test_box_has_its_area():
    mask = fill_polygon(np.array([[2, 3], [7, 3], [7, 9], [2, 9]]), 12, 12)
    expected = np.zeros((12, 12), dtype=bool)
    expected[3:9, 2:7] = True
    assert np.array_equal(mask, expected)


BOX, INNER = [1, 1, 6, 1, 6, 5, 1, 5], [2, 2, 4, 2, 4, 4, 2, 4]


def coco(tmp_path, *marks, file="a/1.png", categories=("Pore", "streak")):
    content = {
        "images": [{"id": 7, "file_name": file, "height": 6, "width": 8}],
        "categories": [{"id": i + 3, "name": name} for i, name in enumerate(categories)],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": category, "segmentation": segmentation}
            for i, (category, segmentation) in enumerate(marks)
        ],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("order", [1, -1])
def test_later_class_wins_whatever_the_order(tmp_path, order):
    marks = [(3, [BOX]), (4, {"size": [6, 8], "counts": text_of(runs_of(box(INNER)))})][::order]
    mask = read_coco(coco(tmp_path, *marks), ("pore", "streak")).mask("a/1.png", (6, 8))
    expected = box(BOX).astype(np.uint8)
    expected[box(INNER)] = 2
    assert np.array_equal(mask, expected)


def box(flat):
    mask = np.zeros((6, 8), dtype=bool)
    mask[flat[1] : flat[5], flat[0] : flat[2]] = True
    return mask


def test_images_are_found_by_path_or_bare_name(tmp_path):
    annotations = read_coco(coco(tmp_path, (3, [BOX]), file="1.png"), ("pore", "streak"))
    assert annotations.mask("deep/1.png", (6, 8)).sum() == 20
    assert annotations.find("deep/2.png") is None
    assert not annotations.mask("deep/2.png", (6, 8)).any()


def test_parts_of_an_annotation_are_joined(tmp_path):
    two = read_coco(coco(tmp_path, (3, [INNER, [6, 0, 8, 0, 8, 2, 6, 2]])), ("pore",))
    assert two.mask("a/1.png", (6, 8)).sum() == 8


def test_unused_categories_do_not_matter(tmp_path):
    path = coco(tmp_path, (3, [BOX]), categories=("pore", "everything"))
    assert read_coco(path, ("pore",)).mask("a/1.png", (6, 8)).max() == 1


@pytest.mark.parametrize(
    ("mark", "size", "message"),
    [
        ((4, [BOX]), (6, 8), "'streak'; allowed: pore"),
        ((3, [BOX]), (6, 9), "8 x 6 pixels, the image has 9 x 6"),
        ((3, [[1, 1, 2, 2]]), (6, 8), "annotation 0"),
        ((3, []), (6, 8), "empty"),
        ((3, {"size": [8, 6], "counts": [48]}), (6, 8), r"\[8, 6\]"),
        ((3, {"size": [6, 8], "counts": [4]}), (6, 8), "4 pixels"),
        ((9, [BOX]), (6, 8), "KeyError"),
    ],
)
def test_bad_annotations_are_refused(tmp_path, mark, size, message):
    path = coco(tmp_path, mark)
    with pytest.raises(MaskError, match=message):
        read_coco(path, ("pore",)).mask("a/1.png", size)


@pytest.mark.parametrize("content", ["[]", "{", '{"images": []}'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "coco.json"
    path.write_text(content)
    with pytest.raises(MaskError, match="COCO"):
        read_coco(path, ("pore",))
