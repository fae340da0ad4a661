"""Paired tests against scipy, Holm by hand, planted differences."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from assay.errors import PredictionsError
from assay.metrics.compare import binomial_p, compare, holm


def table(hits: Any, views: int = 2, names: Any = None, sets: str = "test") -> pa.Table:
    """Rows of two classes, `views` per group, answered rightly where `hits`."""
    hits = np.asarray(hits, dtype=bool)
    num = len(hits)
    truth = np.arange(num) // views % 2
    answers = np.where(hits, truth, 1 - truth)
    ids = [f"s{i:04d}" for i in range(num)] if names is None else names
    columns = {
        "id": ids,
        "split": [sets] * num,
        "group": [f"g{i // views:04d}" for i in range(num)],
        "truth": pa.array(truth, pa.int32()),
        "logits": pa.array(np.eye(2)[answers].tolist()),
    }
    return pa.table(columns).replace_schema_metadata({"classes": json.dumps(["a", "b"])})


def scores(values: Any, weights: Any) -> pa.Table:
    num = len(values)
    ids = [f"s{i}" for i in range(num)]
    columns = {"id": ids, "split": ["test"] * num, "group": ids, "score": values, "weight": weights}
    return pa.table(columns).replace_schema_metadata({"score": "IoU"})


@given(num=st.integers(0, 80), data=st.data())
def test_mcnemar_is_the_binomial_test(num: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, num))
    expected = binomtest(hits, num).pvalue if num else 1.0
    assert binomial_p(hits, num) == pytest.approx(expected, abs=1e-12)


def test_holm_by_hand() -> None:
    # .01 * 4, .02 * 3, then .03 * 2 and .04 * 1, each at least the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_planted_difference_is_found_and_named() -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.random(120) < 0.95, rng.random(120) < 0.5
    (comparison,) = compare({"new": table(better), "old": table(worse)})
    assert comparison.difference.value == pytest.approx(better.mean() - worse.mean())
    assert comparison.difference.low > 0
    assert comparison.p_holm < 0.05
    assert comparison.verdict == "new is better than old"
    (back,) = compare({"old": table(worse), "new": table(better)})
    assert back.verdict == "old is worse than new"
    assert back.difference.value == -comparison.difference.value
    assert comparison.mcnemar is not None
    assert comparison.mcnemar.unit == "groups"


def test_equal_runs_are_not_significantly_different() -> None:
    hits = np.arange(60) % 3 > 0
    (comparison,) = compare({"a": table(hits), "b": table(hits)})
    assert (comparison.difference.value, comparison.p, comparison.p_holm) == (0.0, 1.0, 1.0)
    assert comparison.verdict == "not significantly different"
    assert comparison.to_dict()["verdict"] == comparison.verdict


def test_of_two_runs_alike_few_are_called_different() -> None:
    rng = np.random.default_rng(1)
    called = 0
    for _ in range(150):
        chance = np.repeat(rng.random(40), 2)
        (comparison,) = compare({k: table(rng.random(80) < chance) for k in ("a", "b")})
        called += comparison.verdict != "not significantly different"
    assert called / 150 < 0.1


def test_correction_spans_all_runs_and_can_take_significance_away() -> None:
    base = np.ones(40, dtype=bool)
    base[:24] = False
    first = base.copy()
    first[[0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21]] = True
    alone = compare({"m": table(first), "b": table(base)})[0]
    assert alone.p < 0.05
    others = {f"b{i}": table(base) for i in range(40)}
    together = compare({"m": table(first)} | others)
    assert len(together) == 40
    assert together[0].p == alone.p
    assert together[0].p_holm == pytest.approx(min(1.0, 40 * alone.p))


def test_rows_are_paired_by_id_whatever_their_order() -> None:
    rng = np.random.default_rng(2)
    a, b = table(rng.random(50) < 0.8), table(rng.random(50) < 0.6)
    expected = compare({"a": a, "b": b})
    assert compare({"a": a, "b": b.take(rng.permutation(50))}) == expected


def test_groups_of_several_truths_are_compared_by_image() -> None:
    mixed = table(np.arange(40) % 2 == 0, views=1)
    group = pa.array([f"g{i // 2}" for i in range(40)])
    mixed = mixed.set_column(2, "group", group)
    (comparison,) = compare({"a": mixed, "b": mixed})
    assert comparison.mcnemar is not None
    assert comparison.mcnemar.unit == "images"


def test_scores_are_compared_as_ratios_of_sums() -> None:
    unions = [100.0, 300.0] * 20
    a, b = scores([0.9, 0.8] * 20, unions), scores([0.5, 0.6] * 20, unions)
    (comparison,) = compare({"a": a, "b": b})
    assert (comparison.metric, comparison.mcnemar) == ("IoU", None)
    assert comparison.first.value == pytest.approx((90 + 240) / 400)
    assert comparison.difference.value == pytest.approx((330 - 230) / 400)
    assert comparison.verdict == "a is better than b"


def test_a_run_that_marks_nothing_where_nothing_is_is_better_than_one_that_marks_some() -> None:
    right, alarmed = scores([1.0] * 40, [0.0] * 40), scores([0.0] * 40, [100.0] * 40)
    (comparison,) = compare({"right": right, "alarmed": alarmed})
    assert comparison.difference.value == 1.0
    assert comparison.verdict == "right is better than alarmed"


def test_one_group_shows_no_difference() -> None:
    a, b = table([True] * 4, views=4), table([False] * 4, views=4)
    (comparison,) = compare({"a": a, "b": b})
    assert (comparison.p, comparison.side) == (1.0, "")
    assert (
        comparison.verdict
        == "too few or too unequal groups to compare (effective 1.0 of 1); not decided"
    )


@pytest.mark.parametrize("num_groups", [2, 3])
def test_two_groups_that_differ_utterly_are_no_verdict(num_groups: int) -> None:
    num = 2 * num_groups
    (comparison,) = compare({"a": table([False] * num), "b": table([True] * num)})
    assert comparison.difference.value == -1
    assert comparison.verdict.endswith(f"(effective {num_groups}.0 of {num_groups}); not decided")


def test_two_blocks_with_most_defect_pixels_are_no_verdict() -> None:
    unions = [2400.0] * 2 + [100.0] * 12
    a, b = scores([0.9] * 14, unions), scores([0.4] * 14, unions)
    (comparison,) = compare({"a": a, "b": b})
    kish = sum(unions) ** 2 / sum(union**2 for union in unions)
    assert f"(effective {kish:.1f} of 14); not decided" in comparison.verdict


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"a": table([True] * 4)}, "1 run was given"),
        ({"a": table([True] * 4), "b": table([True] * 6)}, "2 only in the second"),
        (
            {"a": table([True] * 4), "b": table([True] * 4, sets="test_seen")},
            "no test set in common",
        ),
        ({"a": table([True] * 4), "b": table([True] * 4, names=list("wxyz"))}, "different rows"),
        (
            {"a": table([True] * 2), "b": scores([0.5, 0.5], [1.0, 1.0])},
            "different rows|classes and the other",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tables: dict[str, pa.Table], message: str) -> None:
    with pytest.raises(PredictionsError, match=message):
        compare(tables)
