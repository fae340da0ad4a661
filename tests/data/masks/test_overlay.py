import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from assay.data.masks.overlay import FALSE, GAP_PX, HIT, MISSED, SIDE_PX, STRENGTH, beside, panels

IMAGE = np.full((40, 60, 3), 100, np.uint8)


def coloured(colour: tuple[int, int, int]) -> list[int]:
    return np.rint((1 - STRENGTH) * 100 + STRENGTH * np.array(colour)).tolist()


def test_each_pixel_says_whether_it_was_hit_falsely_marked_or_missed():
    truth, answer = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    truth[5:20, 5:20], answer[5:20, 10:30] = 1, 1
    answer[30, 50], truth[30, 50] = 2, 1  # another class is no hit
    shown = panels(IMAGE, truth, {"answer": answer, "empty": np.zeros_like(truth)})
    assert shown.shape == (40, 3 * 60 + 2 * GAP_PX, 3)
    assert np.array_equal(shown[:, :60], IMAGE)
    first, second = shown[:, 60 + GAP_PX : 120 + GAP_PX], shown[:, 120 + 2 * GAP_PX :]
    assert first[10, 15].tolist() == coloured(HIT)
    assert first[10, 25].tolist() == coloured(FALSE)
    assert first[10, 7].tolist() == first[30, 50].tolist() == coloured(MISSED)
    assert first[35, 5].tolist() == [100] * 3
    assert (second[truth > 0] == coloured(MISSED)).all()


@given(st.integers(0, 1999), st.integers(0, 1499))
def test_a_single_pixel_of_a_large_layer_stays_in_sight(x, y):
    image, truth = np.full((1500, 2000, 3), 100, np.uint8), np.zeros((1500, 2000), np.uint8)
    truth[y, x] = 1
    shown = panels(image, truth, {"answer": np.zeros_like(truth)})
    assert shown.shape == (240, 2 * SIDE_PX + GAP_PX, 3)
    marked = (shown[:, SIDE_PX + GAP_PX :] == coloured(MISSED)).all(2)
    assert 1 <= marked.sum() <= 4
    rows, columns = np.nonzero(marked)
    assert abs(rows.mean() - y * 240 / 1500) <= 1.5
    assert abs(columns.mean() - x * SIDE_PX / 2000) <= 1.5


def test_what_was_drawn_stands_beside_its_image_with_the_mask_outlined():
    drawn = np.full((40, 60, 3), 50, np.uint8)
    mask = np.zeros((80, 120), np.uint8)
    mask[20:40, 60:80] = 1
    plain, shown = beside(IMAGE, drawn), beside(IMAGE, drawn, mask)
    assert plain.shape == shown.shape == (40, 2 * 60 + GAP_PX, 3)
    assert np.array_equal(shown[:, :60], IMAGE)
    assert (plain[:, 60 + GAP_PX :] == 50).all()
    outline = (shown[:, 60 + GAP_PX :] == HIT).all(2)
    expected = np.zeros((40, 60), bool)
    expected[9:21, 29:41] = True
    expected[10:20, 30:40] = False  # what is marked stays in sight
    assert np.array_equal(outline, expected)
