"""Seeds: averaged by row and no further samples; planted truth is inside intervals, and Holm keeps its promise."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import ttest_rel

from assay.errors import PredictionsError
from assay.metrics.compare import compare_all, holm
from assay.metrics.estimate import interval
from assay.metrics.predictions import scores_of
from assay.metrics.seeds import average_seeds


def hits_table(hits: Sequence[bool], views: int = 1, name: str = "test") -> pa.Table:
    hits = np.asarray(hits, bool)
    num = len(hits)
    truth = np.arange(num) // views % 2
    columns = {
        "id": [f"s{i:04d}" for i in range(num)],
        "split": [name] * num,
        "group": [f"g{i // views:04d}" for i in range(num)],
        "truth": pa.array(truth, pa.int32()),
        "logits": pa.array(np.eye(2)[np.where(hits, truth, 1 - truth)].tolist()),
    }
    return pa.table(columns).replace_schema_metadata({"classes": json.dumps(["a", "b"])})


def iou_table(scores: Sequence[float], weights: Sequence[float]) -> pa.Table:
    ids = [f"s{i}" for i in range(len(scores))]
    columns = {"id": ids, "split": ["test"] * len(ids), "group": ids}
    columns |= {"score": list(scores), "weight": list(weights)}
    return pa.table(columns).replace_schema_metadata({"score": "IoU"})


def test_a_row_has_the_mean_of_its_seeds() -> None:
    first, second = hits_table([True, True, False, False]), hits_table([True, False, True, False])
    shuffled = second.take([2, 0, 3, 1])
    metric, scores, weights = scores_of(average_seeds([first, shuffled]))
    assert metric == "accuracy"
    assert scores.tolist() == [1.0, 0.5, 0.5, 0.0]
    assert weights.tolist() == [1.0] * 4


def test_weighted_rows_pool_as_all_rows_together() -> None:
    """IoU: intersections 1, 2 and 3, 0 over unions 2, 4 and 4, 0."""
    table = average_seeds([iou_table([0.5, 0.5], [2.0, 4.0]), iou_table([0.75, 0.0], [4.0, 0.0])])
    metric, scores, weights = scores_of(table)
    assert metric == "IoU"
    assert scores.tolist() == pytest.approx([4 / 6, 2 / 4])
    assert np.average(scores, weights=weights) == pytest.approx(6 / 10)


def test_seeds_on_other_rows_are_refused() -> None:
    with pytest.raises(PredictionsError, match="other samples"):
        average_seeds([hits_table([True, True]), hits_table([True])])
    with pytest.raises(PredictionsError, match="other samples"):
        average_seeds([hits_table([True, True]), hits_table([True, True], views=2)])
    with pytest.raises(PredictionsError, match=r"by (IoU|accuracy) and by"):
        average_seeds([hits_table([True]), iou_table([1.0], [1.0])])


def test_the_same_seed_ten_times_is_no_better_than_once() -> None:
    table = hits_table(np.random.default_rng(1).random(40) < 0.7, views=2)
    once, often = (average_seeds([table] * num) for num in (1, 10))
    estimates = [
        interval(scores_of(t)[1], t["group"].to_numpy(), weights=scores_of(t)[2])
        for t in (once, often)
    ]
    assert estimates[0] == estimates[1]
    assert estimates[0].num == 40


def test_intervals_hold_the_planted_truth() -> None:
    """Each row has a difficulty of its own that its seeds share, so seeds as samples would promise too much."""
    rng, num_held = np.random.default_rng(0), 0
    for _ in range(200):
        chances = rng.choice([0.05, 0.95], 60, p=[0.2, 0.8])  # true mean .77
        table = average_seeds([hits_table(rng.random(60) < chances) for _ in range(5)])
        estimate = interval(scores_of(table)[1], table["group"].to_numpy())
        num_held += estimate.low <= 0.77 <= estimate.high
    assert num_held >= 182  # 5 standard errors below 95 % of 200 would be 174


def test_all_pairs_are_compared_and_corrected_together() -> None:
    rng = np.random.default_rng(3)
    tables = {
        name: average_seeds([hits_table(rng.random(120) < chance) for _ in range(3)])
        for name, chance in {"a": 0.9, "b": 0.88, "c": 0.6, "d": 0.62}.items()
    }
    comparisons = compare_all(tables)
    pairs = {(c.first_name, c.name): c for c in comparisons}
    assert list(pairs) == [(x, y) for i, x in enumerate("abcd") for y in "abcd"[i + 1 :]]
    assert [c.p_holm for c in comparisons] == holm([c.p for c in comparisons])
    for (x, y), comparison in pairs.items():
        first, second = scores_of(tables[x])[1], scores_of(tables[y])[1]
        assert comparison.difference.value == pytest.approx(first.mean() - second.mean())
        assert comparison.p == pytest.approx(ttest_rel(first, second).pvalue, abs=0.02)
    verdicts = {pair: comparison.side for pair, comparison in pairs.items()}
    assert verdicts == {
        ("a", "b"): "",
        ("a", "c"): "better",
        ("a", "d"): "better",
        ("b", "c"): "better",
        ("b", "d"): "better",
        ("c", "d"): "",
    }


def test_of_equal_settings_few_families_have_a_winner() -> None:
    rng, num_wrong = np.random.default_rng(0), 0
    for _ in range(50):
        chances = rng.beta(8, 2, 50)
        tables = {
            name: average_seeds([hits_table(rng.random(50) < chances) for _ in range(3)])
            for name in "abcd"
        }
        num_wrong += any(comparison.side for comparison in compare_all(tables))
    assert num_wrong <= 7  # 2.5 are expected at 5 %
