"""predictions.py: planted errors are refused, and what is sound is read."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from assay.errors import PredictionsError
from assay.metrics.checks import check, paired, refuse_strangers
from assay.metrics.predictions import class_names, domain_columns, logits_of, rows_of, sets_of

CLASSES = ["m1", "m2", "m3"]


def make_table(num: int = 12, **columns: Any) -> pa.Table:
    """Make a table of `num` rows, two per group; `columns` replace or join its own."""
    logits = np.random.default_rng(0).normal(size=(num, 3))
    values = {
        "id": [f"s{i:05d}" for i in range(num)],
        "split": ["val" if i % 6 < 2 else "test_seen" for i in range(num)],
        "group": [f"g{i // 2:05d}" for i in range(num)],
        "domain.machine": [("a", "b")[i // 2 % 2] for i in range(num)],
        "truth": pa.array([i // 2 % 3 for i in range(num)], pa.int32()),
        "logits": pa.array(logits.tolist(), pa.list_(pa.float32())),
    } | columns
    return pa.table(values).replace_schema_metadata({"classes": json.dumps(CLASSES)})


def with_logits(rows: list[list[float | None]]) -> pa.Table:
    return make_table(len(rows), logits=pa.array(rows, pa.list_(pa.float32())))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (make_table(3, id=["a", "b", "a"]), r"1 ids stand more than once .* 'a'"),
        (make_table(3, id=["a", None, "c"]), "nulls in id"),
        (make_table(3, **{"domain.machine": ["a", None, "b"]}), r"nulls in domain\.machine"),
        (make_table(3, truth=pa.array([0, None, 1], pa.int32())), "nulls in truth"),
        (make_table(3).drop_columns(["id", "logits"]), "lacks id, logits"),
        (make_table(3, id=[1, 2, 3]), "id is int64"),
        (make_table(3, truth=[0.0, 1.0, 2.0]), "truth is double"),
        (make_table(3, logits=[0.0, 1.0, 2.0]), "logits is double"),
        (make_table(3, truth=pa.array([0, 3, 1], pa.int32())), r"from 0 to 3, .* 0 to 2"),
        (make_table(3, truth=pa.array([0, -1, 1], pa.int32())), "from -1 to 1"),
        (make_table(3).slice(0, 0), "empty"),
        (make_table(3).replace_schema_metadata(None), "does not name its classes"),
        (make_table(3).replace_schema_metadata({"classes": "[]"}), "0 classes are named"),
        (with_logits([[0.0, 1.0, 2.0], [0.0, 1.0]]), "one of the logits for each of the 3 classes"),
        (with_logits([[0.0, 1.0, float("nan")], [0.0, 1.0, 2.0]]), "1 of 2 rows .* NaN"),
        (with_logits([[0.0, 1.0, float("inf")], [0.0, 1.0, 2.0]]), "1 of 2 rows .* infinite"),
        (with_logits([[0.0, 1.0, None], [0.0, 1.0, 2.0]]), "1 of 2 rows .* NaN"),
    ],
)
def test_check_refuses(table: pa.Table, message: str) -> None:
    with pytest.raises(PredictionsError, match=message):
        check(table)
    with pytest.raises(PredictionsError, match=message):
        paired(make_table(3), table)


def test_check_passes_a_sound_table_with_other_columns() -> None:
    check(make_table(3, cells=[[1, 2], [3], []], attn=[0.1, None, 0.3]))


def test_a_sound_table_is_read() -> None:
    logits = np.arange(15, dtype=np.float32).reshape(5, 3)
    listed = pa.array(logits.tolist(), pa.list_(pa.float32()))
    table = make_table(5, logits=listed, **{"domain.design": list("xxyyz")})
    assert class_names(table) == CLASSES
    assert domain_columns(table) == ["domain.machine", "domain.design"]
    np.testing.assert_array_equal(logits_of(table.slice(1, 3)), logits[1:4])
    assert sets_of(make_table(12)) == ["test_seen", "val"]
    assert rows_of(make_table(12), "val")["id"].to_pylist() == [
        "s00000",
        "s00001",
        "s00006",
        "s00007",
    ]


def test_pairing_brings_both_into_the_order_of_their_ids() -> None:
    table = make_table(12)
    rng = np.random.default_rng(1)
    for ordered in paired(table.take(rng.permutation(12)), table.take(rng.permutation(12))):
        assert ordered.equals(table)


def test_pairing_refuses_other_rows() -> None:
    table = make_table(12)
    with pytest.raises(PredictionsError, match="4 ids are only in the first and 0 only in the sec"):
        paired(table, table.slice(4))
    with pytest.raises(PredictionsError, match="0 ids are only in the first and 4 only in the sec"):
        paired(table.slice(4), table)
    with pytest.raises(PredictionsError, match="2 ids are only in the first and 3 only in the sec"):
        paired(table.slice(0, 9), table.slice(2))


@pytest.mark.parametrize("column", ["split", "group", "truth"])
def test_pairing_refuses_rows_that_changed(column: str) -> None:
    table = make_table(12)
    values = table[column].to_pylist()
    # in another group that has other rows too, so that neither table's groups lie within the other's
    values[3] = {"truth": 0, "split": "other", "group": values[-1]}[column]
    assert column != "group" or values.count(values[-1]) > 1 < table["group"].to_pylist().count(
        table["group"][3].as_py()
    )
    with pytest.raises(PredictionsError, match="1 of 12 ids have another"):
        paired(table, make_table(12, **{column: pa.array(values, table[column].type)}))


def test_pairing_takes_the_groups_that_join_the_other_tables() -> None:
    table = make_table(12)
    groups = table["group"].to_pylist()
    alone = make_table(12, group=pa.array([f"image-{i}" for i in range(12)]))
    joined = make_table(12, group=pa.array([min(group, "g2") for group in groups]))
    for a, b, expected in ((table, alone, groups), (alone, table, groups), (joined, table, None)):
        for ordered in paired(a, b):
            assert ordered["group"].to_pylist() == (expected or joined["group"].to_pylist())


def test_pairing_refuses_other_classes() -> None:
    table = make_table(12)
    renamed = table.replace_schema_metadata({"classes": json.dumps(CLASSES[::-1])})
    with pytest.raises(PredictionsError, match="different classes"):
        paired(table, renamed)


def with_probs(rows: list[list[float]]) -> pa.Table:
    table = make_table(len(rows))
    return table.drop_columns(["logits"]).append_column("probs", pa.array(rows))


def test_probs_stand_for_logits() -> None:
    table = with_probs([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    check(table)
    assert np.exp(logits_of(table)) == pytest.approx(np.array([[0.2, 0.5, 0.3], [1, 1e-12, 1e-12]]))


@pytest.mark.parametrize("row", [[0.2, 0.5, 0.1], [1.2, -0.2, 0.0], [0.5, float("nan"), 0.5]])
def test_probs_that_are_none_are_refused(row: list[float]) -> None:
    with pytest.raises(PredictionsError, match="1 of 2 rows have probs"):
        check(with_probs([[0.2, 0.5, 0.3], row]))


def score_table(scores: list[float], weights: list[float]) -> pa.Table:
    num = len(scores)
    names = [f"s{i}" for i in range(num)]
    columns = {
        "id": names,
        "split": ["test"] * num,
        "group": names,
        "score": scores,
        "weight": weights,
    }
    return pa.table(columns).replace_schema_metadata({"score": "IoU"})


@pytest.mark.parametrize(
    ("scores", "weights", "message"),
    [
        ([0.5, 1.5], [1.0, 1.0], "1 of 2 rows have a score"),
        ([0.5, float("nan")], [1.0, 1.0], "1 of 2 rows have a score"),
        ([0.5, 0.5], [1.0, -1.0], "Weights run from -1 to 1"),
    ],
)
def test_scores_that_are_none_are_refused(
    scores: list[float], weights: list[float], message: str
) -> None:
    with pytest.raises(PredictionsError, match=message):
        check(score_table(scores, weights))
    check(score_table([0.5, 0.5], [1.0, 0.0]))
    check(score_table([1.0, 1.0], [0.0, 0.0]))
    with pytest.raises(PredictionsError, match="does not name its score"):
        check(score_table([0.5], [1.0]).replace_schema_metadata(None))


SPLIT = {
    "id": ["t1", "t2", "v1", "e1", "e2"],
    "group": ["A", "A", "B", "C", "C"],
    "split": ["train", "train", "val", "test", "test"],
    "content": ["1", "2", "3", "4", "5"],
}


def predicted(rows: list[tuple[str, str, str]]) -> pa.Table:
    ids, sets, groups = zip(*rows, strict=True)
    table = make_table(len(rows))
    for name, values in (("id", ids), ("split", sets), ("group", groups)):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(values))
    return table


SOUND = [("v1", "val", "B"), ("e1", "test", "C"), ("e2", "test", "C")]


def test_predictions_of_whole_sets_are_let_through() -> None:
    for rows in (SOUND, SOUND[1:]):
        assert refuse_strangers(predicted(rows), pa.table(SPLIT)) is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*SOUND, ("t1", "test", "A")], "'t1': predicted as test, it is of train"),
        ([*SOUND, ("x9", "test", "A")], "'x9': predicted as test, it is of no set"),
        ([("v1", "test", "B"), *SOUND[1:]], "'v1': predicted as test, it is of val"),
        ([("v1", "val", "Z"), *SOUND[1:]], "another group"),
        (SOUND[:2], "1 rows have no prediction, first 'e2' of test"),
    ],
)
def test_metrics_on_rows_of_another_set_are_refused(
    rows: list[tuple[str, str, str]], message: str
) -> None:
    with pytest.raises(PredictionsError, match=message):
        refuse_strangers(predicted(rows), pa.table(SPLIT))


def test_two_test_sets_may_share_a_part_and_train_with_neither() -> None:
    tests = SPLIT | {"split": ["train", "train", "val", "test_seen", "test_unseen"]}
    rows = [("e1", "test_seen", "C"), ("e2", "test_unseen", "C")]
    assert refuse_strangers(predicted(rows), pa.table(tests)) is None
    leaking = pa.table(tests | {"group": list("AABCA")})
    with pytest.raises(PredictionsError, match="'A' is in train and in test_unseen"):
        refuse_strangers(predicted(rows), leaking)
    with pytest.raises(PredictionsError, match="content '4' is in test_seen and in test_unseen"):
        refuse_strangers(predicted(rows), pa.table(tests | {"content": list("12344")}))


@pytest.mark.parametrize(("key", "values"), [("group", list("AABBC")), ("content", list("12313"))])
def test_a_leaking_split_is_refused_when_judged_too(key: str, values: list[str]) -> None:
    with pytest.raises(PredictionsError, match=f"The {key} '[AB13]' is in"):
        refuse_strangers(predicted(SOUND), pa.table(SPLIT | {key: values}))
