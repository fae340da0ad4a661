"""Drift: a planted move is found in its own unit, chance alone is small, too little says nothing."""

import json

import numpy as np
import pyarrow as pa
import pytest

from assay.serving.drift import LEAST, WINDOW, Drift


def rows(logits: np.ndarray) -> pa.Table:
    num = len(logits)
    ids = [f"s{i}" for i in range(num)]
    table = pa.table({
        "id": ids, "split": ["test"] * num, "group": ids, "truth": pa.array([0] * num, pa.int32()),
        "logits": pa.array(logits.tolist()),
    })  # fmt: skip
    return table.replace_schema_metadata({"classes": json.dumps(["a", "b", "c"])})


@pytest.mark.parametrize("moved", [0.0, 1.5])
def test_a_planted_move_is_found_in_deviations(moved):
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 2.0, 5.0])
    drift = Drift.from_rows(rows(rng.normal(3, 1, (4000, 3)) * spread))
    for _ in range(WINDOW):
        drift.add((rng.normal(3, 1, 3) + moved * np.array([0, 1, 0])) * spread)
    assert drift.value == pytest.approx(moved, abs=0.2)


def test_old_answers_are_forgotten_and_few_say_nothing():
    drift = Drift(np.zeros(2), np.ones(2))
    for i in range(LEAST):
        assert (drift.value is None) == (i < LEAST)
        drift.add(np.array([9.0, 0.0]))
    assert drift.value == pytest.approx(9.0)
    for _ in range(WINDOW):
        drift.add(np.array([0.0, -1.0]))
    assert drift.value == pytest.approx(1.0)


def test_rows_without_classes_have_none():
    scored = pa.table({"id": ["a"], "split": ["test"], "group": ["a"], "score": [0.5], "weight": [1.0]})  # fmt: skip
    assert Drift.from_rows(scored) is None
