"""predictions.py: planted errors are refused, and what is sound is read."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from assay.errors import PredictionsError
from assay.predictions import check, class_names, domain_columns, logits_of, paired

CLASSES = ["m1", "m2", "m3"]


def make_table(num: int = 12, **columns: Any) -> pa.Table:
    """A table of `num` rows, two per group; columns given replace or join those made."""
    logits = np.random.default_rng(0).normal(size=(num, 3))
    made = {
        "id": [f"s{i:05d}" for i in range(num)],
        "split": ["val" if i % 6 < 2 else "test_seen" for i in range(num)],
        "group": [f"g{i // 2:05d}" for i in range(num)],
        "domain.machine": [("a", "b")[i // 2 % 2] for i in range(num)],
        "truth": pa.array([i // 2 % 3 for i in range(num)], pa.int32()),
        "logits": pa.array(logits.tolist(), pa.list_(pa.float32())),
    } | columns
    return pa.table(made).replace_schema_metadata({"classes": json.dumps(CLASSES)})


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
        (with_logits([[0.0, 1.0, 2.0], [0.0, 1.0]]), "one logit for each of the 3 classes"),
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


def test_pairing_brings_both_into_the_order_of_their_ids() -> None:
    table = make_table(12)
    rng = np.random.default_rng(1)
    for one in paired(table.take(rng.permutation(12)), table.take(rng.permutation(12))):
        assert one.equals(table)


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
    values[3] = 0 if column == "truth" else "other"
    with pytest.raises(PredictionsError, match="1 of 12 ids have another"):
        paired(table, make_table(12, **{column: pa.array(values, table[column].type)}))


def test_pairing_refuses_other_classes() -> None:
    table = make_table(12)
    renamed = table.replace_schema_metadata({"classes": json.dumps(CLASSES[::-1])})
    with pytest.raises(PredictionsError, match="different classes"):
        paired(table, renamed)
