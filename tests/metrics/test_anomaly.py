"""The threshold by a share of false alarms, and what is measured of images."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.levels import LEVELS, NEVER
from assay.metrics import anomaly


def predictions(clean: list[int], defective: list[int], split: str = "val") -> pa.Table:
    """Images of one pixel outside and, if defective, one inside their mask, at the level named."""
    rows = [(peak, True) for peak in clean] + [(peak, False) for peak in defective]
    pixels = np.zeros((len(rows), 2, LEVELS), np.float32)
    overlap = np.zeros((len(rows), LEVELS + 1), np.float32)
    for pixel, region, (peak, is_clean) in zip(pixels, overlap, rows, strict=True):
        pixel[0, peak if is_clean else 0] = 1
        if not is_clean:
            pixel[1, peak] = region[LEVELS] = 1
            region[: peak + 1] = 1
    columns = {
        "id": [str(i) for i in range(len(rows))],
        "split": [split] * len(rows),
        "group": [str(i) for i in range(len(rows))],
        "truth": pa.array([0] * len(rows), pa.int32()),
        "pixels_label": [row.ravel().tolist() for row in pixels],
        "overlap_label": overlap.tolist(),
        "peak_label": pa.array([float(peak) for peak, _ in rows], pa.float32()),
    }
    return pa.table(columns).replace_schema_metadata({b"classes": json.dumps(["defect"]).encode()})


@given(st.lists(st.integers(0, LEVELS - 1), min_size=1, max_size=50), st.floats(0, 1))
def test_the_threshold_is_the_lowest_that_alarms_no_more_than_allowed(
    peaks: list[int], allowed: float
) -> None:
    (threshold,) = anomaly.fit_threshold(predictions(peaks, [3]), allowed)
    assert 1 <= threshold <= NEVER
    assert np.mean([peak >= threshold for peak in peaks]) <= allowed
    if threshold > 1:
        assert np.mean([peak >= threshold - 1 for peak in peaks]) > allowed


def test_images_are_ranked_found_and_alarmed() -> None:
    table = predictions([5, 5, 20, 1], [30, 10, 5], "test")
    table = anomaly.score(table, [10])
    assert table["score"].to_pylist() == [1, 1, 0, 1, 1, 1, 0]
    found = anomaly.findings(table)["test"]
    assert found["images_found"].value == pytest.approx(2 / 3)
    assert found["images_alarmed"].value == pytest.approx(1 / 4)
    # 30 beats four, 10 beats three, 5 beats one and ties two
    assert found["image_auroc"].value == pytest.approx((4 + 3 + 1 + 0.5 * 2) / 12)


def test_of_one_defective_image_the_areas_are_not_known() -> None:
    table = anomaly.score(predictions([5, 9, 20, 1], [15], "test"), [10])
    found = anomaly.findings(table)["test"]
    assert found["image_auroc"].value == pytest.approx(3 / 4)
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        assert (found[name].low, found[name].high) == (0.0, 1.0)


def test_without_clean_images_it_is_said() -> None:
    table = predictions([], [3, 4])
    assert anomaly.fit_threshold(table, 0.1) == [LEVELS // 2]
    (text,) = anomaly.warnings(anomaly.score(table, [LEVELS // 2]), 0.1)
    assert "No image of val is free of marks" in text


def test_a_threshold_that_few_clean_images_set_is_said() -> None:
    for clean, expected in (
        ([1, 2], ["less than one"]),
        ([1, 2, 63], ["less than one", "Nothing is"]),
    ):
        table = predictions(clean, [])
        texts = anomaly.warnings(anomaly.score(table, anomaly.fit_threshold(table, 0.3)), 0.3)
        assert len(texts) == len(expected)
        assert all(part in text for part, text in zip(expected, texts, strict=True))
    table = predictions([1, 2, 3, 63], [])
    assert not anomaly.warnings(anomaly.score(table, anomaly.fit_threshold(table, 0.3)), 0.3)
