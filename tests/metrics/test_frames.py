"""Frames in order of time: planted answers that come right after some seconds, and alarms counted by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest

from assay.metrics.alarm import AlarmConfig, false_alarms_per_hour
from assay.metrics.estimate import Estimate
from assay.metrics.frames import (
    Print,
    doubt_alarms,
    early_figure,
    fit_alarms,
    frame_seconds,
    judge_alarms,
    prints_of,
)

EVERY_S = 2.0


def print_of(name: str, odds: list[float], truth: int | list[int]) -> Print:
    """A print of two classes, whose second has these log odds."""
    logits = np.stack([np.zeros(len(odds)), odds], axis=1)
    classes = np.full(len(odds), truth) if isinstance(truth, int) else np.array(truth)
    return Print(name, EVERY_S * np.arange(len(odds)), logits, classes)


def table_of(prints: list[Print]) -> pa.Table:
    columns = {
        "id": [f"{p.name}/{i}" for p in prints for i in range(len(p.seconds))],
        "split": ["val" for p in prints for _ in p.seconds],
        "group": [p.name for p in prints for _ in p.seconds],
        "truth": pa.array(np.concatenate([p.truth for p in prints]).astype(np.int32)),
        "logits": list(np.concatenate([p.logits for p in prints]).astype(np.float32)),
        "seconds": np.concatenate([p.seconds for p in prints]).tolist(),
    }
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    return table.replace_schema_metadata({b"classes": json.dumps(["0", "1"]).encode()})


def test_prints_are_in_order_of_time_whatever_the_order_of_rows():
    prints = [print_of("a", [1.0, 2.0, 3.0], 1), print_of("b", [4.0, 5.0], 0)]
    shuffled = table_of(prints).take([3, 2, 4, 0, 1])
    for sorted_print, expected in zip(prints_of(shuffled), prints, strict=True):
        assert sorted_print.name == expected.name
        np.testing.assert_array_equal(sorted_print.seconds, expected.seconds)
        np.testing.assert_allclose(sorted_print.odds(1), expected.odds(1))
    assert frame_seconds(prints) == EVERY_S
    assert frame_seconds([]) == 0


def test_odds_of_three_classes_are_log_p_less_log_of_the_rest():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    odds = Print("a", np.arange(5.0), logits, np.zeros(5, int)).odds(1)
    np.testing.assert_allclose(odds, np.log(probs[:, 1] / (1 - probs[:, 1])))


def test_a_fault_that_shows_late_is_answered_late():
    """Wrong for ten frames, then right, and twice as sure: the mean turns at the fifteenth."""
    prints = [print_of(f"p{i}", [-1.0] * 10 + [2.0] * 11, 1) for i in range(6)]
    figure = early_figure({"test_unseen": prints})
    assert figure is not None
    single, until = figure.series.values()
    assert (single.y[0], single.y[-1]) == (0.0, 1.0)
    right = [x for x, y in zip(single.x, single.y, strict=True) if y == 1.0]
    assert min(right) == pytest.approx(10 * EVERY_S, abs=2 * EVERY_S)
    right = [x for x, y in zip(until.x, until.y, strict=True) if y == 1.0]
    assert min(right) == pytest.approx(15 * EVERY_S, abs=2 * EVERY_S)
    assert single.low is not None
    assert early_figure({"test": [print_of("a", [1.0], 1)]}) is None


def judged_of(
    sets: dict[str, list[Print]], config: AlarmConfig | None = None
) -> dict[str, dict[str, Estimate]]:
    """What alarms on class 1 are worth."""
    return judge_alarms(fit_alarms(config or AlarmConfig(), 1, sets.get("val", [])), 1, sets)


SOUND = [print_of(f"sound {i}", [-1.0] * 20, 0) for i in range(4)]
FAULTY = [print_of(f"faulty {i}", [1.0] * 20, 1) for i in range(4)]


def test_alarms_come_when_sums_say():
    """Thresholds of silent val are 0: a sum of 1 exceeds it at the first frame, a mean of 3 frames at the third."""
    judged = judged_of({"val": SOUND, "test": [*SOUND, *FAULTY]}, AlarmConfig(window=3))
    test = judged["test"]
    assert test["cusum_detected"].value == test["average_detected"].value == 1.0
    assert test["cusum_delay_s"].value == 0.0
    assert test["average_delay_s"].value == pytest.approx(2 * EVERY_S)
    assert test["cusum_false_per_hour"].value == 0.0
    assert "cusum_detected" not in judged["val"]
    assert judged["val"]["cusum_false_per_hour"].num == 4


def test_a_fault_without_an_alarm_counts_to_its_end_and_false_alarms_by_the_hour():
    quiet = print_of("quiet", [-1.0] * 20, 1)
    loud = print_of("loud", [-1.0] * 9 + [5.0] * 11, 0)
    test = judged_of({"val": SOUND, "test": [quiet, FAULTY[0], loud, SOUND[0]]})["test"]
    assert test["cusum_detected"].value == 0.5
    assert test["cusum_delay_s"].value == pytest.approx((20 * EVERY_S + 0) / 2)
    (cusum, _) = fit_alarms(AlarmConfig(), 1, SOUND)
    paths = [cusum.path(p.odds(1)) for p in (loud, SOUND[0])]
    expected = false_alarms_per_hour(paths, 0.0, EVERY_S)
    assert expected == pytest.approx(3600 / (30 * EVERY_S))
    assert test["cusum_false_per_hour"].value == pytest.approx(expected)


def test_an_alarm_before_the_fault_detects_nothing():
    early = print_of("early", [5.0] + [-1.0] * 9 + [5.0] * 10, [0] * 10 + [1] * 10)
    late = print_of("late", [-1.0] * 13 + [5.0] * 7, [0] * 10 + [1] * 10)
    test = judged_of({"val": SOUND, "test": [early, late]})["test"]
    assert test["cusum_detected"].value == 0.5
    assert test["cusum_delay_s"].value == pytest.approx((10 + 3) * EVERY_S / 2)


def test_without_a_sound_print_in_val_there_is_no_threshold_and_no_number():
    assert judged_of({"val": FAULTY, "test": SOUND}) == {"val": {}, "test": {}}
    assert judged_of({"test": SOUND}) == {"test": {}}
    (why,) = doubt_alarms([], {"val": FAULTY, "test": SOUND})
    assert "no print that is sound throughout" in why


def test_a_window_longer_than_every_print_is_said():
    for window, num in ((20, 0), (21, 1)):
        alarms = fit_alarms(AlarmConfig(window=window), 1, SOUND)
        doubts = doubt_alarms(alarms, {"val": SOUND, "test": FAULTY})
        assert len(doubts) == num
        assert all("--alarm.window is 21, and no print has more than 20" in d for d in doubts)
