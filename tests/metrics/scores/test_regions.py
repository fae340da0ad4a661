"""Areas under curves of levels, against scikit-learn and against a count by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from assay.levels import LEVELS, VOID
from assay.metrics.scores.regions import area_under_pro, area_under_roc, region_columns


def histogram(levels: np.ndarray) -> np.ndarray:
    return np.bincount(levels, minlength=LEVELS).astype(float)


def test_the_area_under_the_roc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    negatives, positives = rng.integers(0, 20, 50), rng.integers(5, 30, 40)
    truth = np.repeat([0, 1], [50, 40])
    expected = roc_auc_score(truth, np.concatenate([negatives, positives]))
    area = area_under_roc(histogram(negatives)[None], histogram(positives)[None])
    assert area[0] == pytest.approx(expected)
    assert np.isnan(area_under_roc(histogram(negatives), np.zeros(LEVELS)))


def test_each_component_counts_alike_whatever_its_size() -> None:
    mask, levels = (np.zeros((20, 20), np.uint8) for _ in range(2))
    mask[1:3, 1:3], mask[10:20, 10:20], mask[0, 19] = 1, 1, VOID
    levels[1:3, 1] = 40  # half of the small one
    levels[10:20, 10:20] = 9
    levels[0, 19] = 63  # nobody judged it
    columns = region_columns(levels[None], mask, "label")
    overlap = columns["overlap_label"]
    assert overlap[LEVELS] == 2
    assert [overlap[0], overlap[9], overlap[10], overlap[40], overlap[41]] == [2, 1.5, 0.5, 0.5, 0]
    assert columns["peak_label"] == 40


def test_the_area_under_pro_is_that_of_thresholds_tried_one_by_one() -> None:
    rng = np.random.default_rng(1)
    outside, sizes = rng.integers(0, 40, 500), (30, 5)
    regions = [rng.integers(low, 64, size) for low, size in zip((10, 0), sizes, strict=True)]
    false, covered = [0.0], [0.0]
    for level in range(LEVELS - 1, -1, -1):
        false.append(float((outside >= level).mean()))
        covered.append(float(np.mean([(region >= level).mean() for region in regions])))
    grid = np.linspace(0, 0.3, 200_001)
    expected = np.interp(grid, false, covered).mean()
    overlap = sum(histogram(region)[::-1].cumsum()[::-1] / len(region) for region in regions)
    area = area_under_pro(histogram(outside)[None], np.asarray(overlap)[None], np.array([2.0]))
    assert area[0] == pytest.approx(expected, abs=2e-3)


def test_perfect_and_blind_maps() -> None:
    levels = np.arange(LEVELS)
    outside, reached = (levels == 0) * 100.0, np.ones(LEVELS)
    perfect = area_under_pro(outside[None], reached[None], np.ones(1))
    assert perfect[0] == pytest.approx(1)
    # regions rise as what is outside does: overlap equals the share of false pixels, .15 on average
    even = np.full(LEVELS, 10.0)
    blind = area_under_pro(even[None], (even[::-1].cumsum()[::-1] / even.sum())[None], np.ones(1))
    assert blind[0] == pytest.approx(0.15)
    assert np.isnan(area_under_pro(even[None], reached[None], np.zeros(1)))[0]
