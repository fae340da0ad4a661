"""Evidence against masks and along curves: planted maps, and values worked out by hand and by brute force."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, jaccard_score, precision_score

from assay.metrics import localization
from assay.metrics.localization import MIDDLE, THRESHOLDS, columns, figures, measure, removals

SEEDS = st.integers(0, 10_000)


def spot(y: int, x: int, size: int = 8) -> np.ndarray:
    evidence = np.zeros((size, size))
    evidence[y, x] = 3.0
    return evidence


def square(side: int, size: int = 8) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[:side, :side] = True
    return mask


def test_evidence_of_one_pixel_has_known_values() -> None:
    inside, outside = columns(spot(2, 3), square(4)), columns(spot(5, 1), square(4))
    for name in ("pointing", "energy"):
        assert (inside[f"evidence_{name}"], outside[f"evidence_{name}"]) == (1, 0)
    np.testing.assert_allclose(inside["evidence_iou"], 1 / 16)
    np.testing.assert_array_equal(inside["evidence_iop"], np.ones(8))
    np.testing.assert_array_equal(outside["evidence_iou"], np.zeros(8))
    for values in (inside, outside):
        assert values["evidence_chance"] == 16 / 64
        assert values["evidence_pointing_centre"] == 1 / 4  # of four pixels about the centre
    assert columns(spot(0, 0, 7), square(4, 7))["evidence_pointing_centre"] == 1


@pytest.mark.parametrize("evidence", [np.ones((8, 8)), np.zeros((8, 8)), -np.eye(8)])
def test_a_map_that_says_nothing_is_at_chance(evidence: np.ndarray) -> None:
    values = columns(evidence, square(3))
    chance = 9 / 64
    for name in ("pointing", "energy", "iou", "iop", "chance"):
        np.testing.assert_allclose(values[f"evidence_{name}"], chance, rtol=1e-6)


def test_the_mask_itself_is_perfect_and_its_scale_does_not_matter() -> None:
    mask = square(5)
    for scale in (1e-9, 1.0, 1e9):
        values = columns(scale * mask - scale * ~mask, mask)
        for name in ("pointing", "energy", "iou", "iop"):
            np.testing.assert_array_equal(values[f"evidence_{name}"], 1)


@given(SEEDS)
def test_overlaps_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    evidence, mask = rng.normal(size=(6, 9)), rng.random((6, 9)) < 0.3
    values = columns(evidence, mask)
    for i, threshold in enumerate(THRESHOLDS):
        part = (evidence >= threshold * evidence.max()).ravel()
        iou, iop = values["evidence_iou"][i], values["evidence_iop"][i]
        assert iou == pytest.approx(jaccard_score(mask.ravel(), part, zero_division=0), abs=1e-6)
        expected = precision_score(mask.ravel(), part, zero_division=0)
        assert iop == pytest.approx(expected, abs=1e-6)
    energy = np.clip(evidence, 0, None)
    share = energy[mask].sum() / energy.sum()
    assert values["evidence_energy"] == pytest.approx(share, abs=1e-6)


@given(SEEDS, st.integers(1, 12))
def test_the_most_evident_pixels_go_first(seed: int, num_steps: int) -> None:
    rng = np.random.default_rng(seed)
    evidence = rng.integers(-3, 4, (5, 4)).astype(float)
    steps = removals(evidence, num_steps)
    assert len(steps) == num_steps + 1
    assert not steps[0].any()
    assert steps[-1].all()
    for i, marked in enumerate(steps):
        assert abs(marked.sum() - 20 * i / num_steps) <= 0.5
        if 0 < marked.sum() < 20:
            assert evidence[marked].min() >= evidence[~marked].max()
    assert (steps[1:] >= steps[:-1]).all()


def table(num: int = 12, **extra: np.ndarray) -> pa.Table:
    """Draw rows of two sets, two to a group; every third is without a mask."""
    rng = np.random.default_rng(0)
    parts = [columns(rng.random((8, 8)), square(0 if i % 3 == 2 else 3)) for i in range(num)]
    values = {name: [part[name].tolist() for part in parts] for name in parts[0]}
    curves = {
        name: rng.random((num, 5)).tolist()
        for name in ("deletion", "deletion_random", "insertion", "insertion_random")
    }
    keys = {
        "id": [f"{i}" for i in range(num)],
        "split": ["val"] * 6 + ["test"] * (num - 6),
        "group": [f"g{i // 2}" for i in range(num)],
    }
    return pa.table(keys | values | curves).replace_schema_metadata(
        {b"classes": json.dumps(["a", "b"])}
    )


def test_measures_are_means_over_rows_with_a_mask_and_areas_of_all() -> None:
    rows = table()
    estimates = measure(rows)
    assert estimates.keys() == localization.MEASURES.keys()
    marked = [row for i, row in enumerate(rows.to_pylist()) if i % 3 != 2]
    for name in ("evidence_pointing", "evidence_energy", "evidence_chance"):
        assert estimates[name].value == pytest.approx(np.mean([row[name] for row in marked]))
        assert estimates[name].num == 8
    mean = np.mean([row["evidence_iou"][MIDDLE] for row in marked])
    assert estimates["evidence_iou"].value == pytest.approx(mean)
    areas = {
        name: np.mean([auc(np.linspace(0, 1, 5), curve) for curve in rows[name].to_pylist()])
        for name in ("deletion", "deletion_random", "insertion", "insertion_random")
    }
    for name, area in areas.items():
        assert estimates[name].value == pytest.approx(area)
    gain = areas["deletion_random"] - areas["deletion"]
    assert estimates["deletion_gain"].value == pytest.approx(gain)
    gain = areas["insertion"] - areas["insertion_random"]
    assert estimates["insertion_gain"].value == pytest.approx(gain)


def test_what_was_not_computed_is_not_measured() -> None:
    rows = table()
    evidence = [name for name in rows.column_names if name.startswith("evidence")]
    curves = [name for name in rows.column_names if name.split("_")[0] in localization.CURVES]
    without_masks, without_curves = rows.drop_columns(evidence), rows.drop_columns(curves)
    assert measure(without_masks).keys() == {n for n in localization.MEASURES if "tion" in n}
    assert measure(without_curves).keys() == {
        name for name in localization.MEASURES if name.startswith("evidence")
    }
    assert measure(without_curves.drop_columns(evidence)) == {}
    assert figures(without_curves.drop_columns(evidence)) == []
    bare = without_curves.filter(pa.array([i % 3 == 2 for i in range(12)]))
    assert measure(bare) == {}
    assert figures(bare) == []


def test_figures_show_the_test_set_beside_chance() -> None:
    rows = table()
    overlap, deletion, insertion = figures(rows)
    assert overlap.series.keys() == {"IoU", "IoP", "chance"}
    assert overlap.series["chance"].y == pytest.approx([9 / 64] * 8)
    test = rows.slice(6)
    marked = [row for i, row in enumerate(test.to_pylist()) if i % 3 != 2]
    expected = np.mean([row["evidence_iop"] for row in marked], axis=0)
    np.testing.assert_allclose(overlap.series["IoP"].y, expected)
    assert "4 images" in overlap.caption
    for figure, name in ((deletion, "deletion"), (insertion, "insertion")):
        expected = np.mean(test[name].to_pylist(), axis=0)
        np.testing.assert_allclose(figure.series["by evidence"].y, expected)
        assert figure.series["at random"].x == [0, 0.25, 0.5, 0.75, 1]
    assert figures(rows.slice(0, 6))[0].caption.endswith("set val.")
