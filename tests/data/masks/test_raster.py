import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.masks.raster import decode_runs, fill_polygon, fill_polygons

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


@given(
    st.lists(
        st.lists(st.tuples(st.integers(-80, 120), st.integers(-80, 120)), min_size=3, max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_windows_change_nothing(polygons):
    polygons = [np.array(corners) / 4 for corners in polygons]
    whole = np.logical_or.reduce([fill_polygon(points, 24, 20) for points in polygons])
    window, top, left = fill_polygons(polygons, 24, 20)
    placed = np.zeros((24, 20), bool)
    placed[top : top + window.shape[0], left : left + window.shape[1]] = window
    assert np.array_equal(placed, whole)


@pytest.mark.parametrize(
    "counts", [[6.0], ["6"], [10**30], {"a": 6}, None, 6, "o" * 40, [True, 5], [[6]]]
)
def test_what_is_no_list_of_lengths_is_refused(counts):
    with pytest.raises(ValueError, match="run"):
        decode_runs(counts, 2, 3)
