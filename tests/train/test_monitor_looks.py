"""What the monitors find in looks at val: probabilities for logits, answers that are alike or not finite, columns that move."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from assay.errors import RunError
from assay.nn.optim import OptimConfig
from assay.train.monitor import CONSTANT_LOOKS, REPEAT_TOLERANCE, Limit, Monitor, check_repeat
from assay.train.predict import Predictor
from assay.train.source import TaskSource, load_task

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
NAN, INF = math.nan, math.inf


def monitor_of(*limits: Limit, optim: OptimConfig | None = None, total: int = 10**6):
    """Make a monitor, and the list of its warnings."""
    warnings: list[str] = []
    return Monitor(optim or OptimConfig(), limits, total, "abc", warnings.append), warnings


def look(monitor: Monitor, logits: np.ndarray, truth=(0, 1, 2, 0, 1)) -> None:
    module = nn.Linear(1, 1).eval()
    columns = {"logits": logits.astype(np.float32), "row": np.arange(len(logits))}
    monitor.check_look(module, columns, np.array(truth)[: len(logits)])


LOGITS = np.random.default_rng(0).normal(size=(5, 3))
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("logits", "stops"),
    [
        (LOGITS, False),
        (PROBS, True),
        (np.eye(3)[[0, 1, 2, 0, 1]], True),
        (PROBS * 1.00005, True),
        (PROBS * 1.001, False),
        (np.log(PROBS), False),
        (PROBS - 0.01, False),
        (LOGITS - LOGITS.mean(1, keepdims=True) + 1 / 3, False),
        (np.vstack([PROBS[:4], 2 * PROBS[4:]]), False),
    ],
)
def test_probabilities_are_told_from_logits(logits, stops):
    if stops:
        with pytest.raises(RunError, match="softmax twice"):
            look(monitor_of()[0], logits)
    else:
        look(monitor_of()[0], logits)


@pytest.mark.parametrize("wrong", [NAN, INF])
def test_predictions_that_are_not_finite_stop_a_run(wrong):
    logits = LOGITS * 1e30  # whose squares are beyond float32
    look(monitor_of()[0], logits)
    logits[3, 1] = wrong
    with pytest.raises(RunError, match=r"logits of val are not finite.*lower --optim\.lr"):
        look(monitor_of()[0], logits)


def test_logits_are_constant_only_if_all_are_and_looks_count_in_a_row():
    same = np.tile([5.0, -1.0, 2.0], (5, 1))
    little = same + 1e-6 * LOGITS
    one_class = same + np.array([0, 0, 1.0]) * 1e-3 * LOGITS
    monitor, _ = monitor_of()
    for varied in (LOGITS, one_class, same[:1]):
        for logits in [same] * (CONSTANT_LOOKS - 1) + [varied] + [little] * (CONSTANT_LOOKS - 1):
            look(monitor, logits)
        look(monitor, LOGITS)
    for logits in [same] * (CONSTANT_LOOKS - 1):
        look(monitor, logits)
    with pytest.raises(RunError, match="same for all 5 rows"):
        look(monitor, little)


@pytest.mark.parametrize(
    ("predicted", "truth", "warned"),
    [
        ([1] * 5, [0, 1, 2, 0, 1], True),
        ([1] * 5, [1] * 5, False),
        ([1, 1, 1, 2, 1], [0, 1, 2, 0, 1], False),
    ],
)
def test_one_class_said_to_all_is_worth_a_warning_where_val_has_several(predicted, truth, warned):
    module = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    monitor, warnings = monitor_of()
    look(monitor, np.eye(3)[predicted] * 4 - LOGITS * 0.1, truth)
    monitor.check_end(module, optimizer)
    assert [text[:48] for text in warnings] == [
        "At the last look every row of val was said to be"
    ] * warned


@pytest.mark.parametrize(("precision", "tolerance"), REPEAT_TOLERANCE.items())
def test_rounding_may_move_a_column_and_more_may_not(precision, tolerance):
    still = {"logits": 0.0, "attn": 0.99 * tolerance}
    check_repeat(still, still, precision)
    moved = still | {"attn": 1.01 * tolerance}
    with pytest.raises(RunError, match=r"attn of val change by .* predicted again; draw nothing"):
        check_repeat(moved, still, precision)
    with pytest.raises(RunError, match=r"attn of val change by .* other rows .*; in predict use"):
        check_repeat(still, moved, precision)


class Odd(TASK):
    """Columns that move in known ways."""

    calls = 0

    def predict(self, batch):
        self.calls += 1
        rows = torch.from_numpy(batch["row"]).float()
        size = torch.tensor([100.0, -400.0, 50.0])[: len(rows)]
        return {
            "logits": rows[:, None].expand(-1, 3),
            "again": size + (2.0 if self.calls > 3 else 0.0),
            "among": rows.mean().expand(len(rows)),
            "number": torch.full((len(rows),), int(self.calls > 3)),
            "nan": torch.full((len(rows),), math.nan),
            "born": torch.zeros(len(rows)) + (1.0 if self.calls > 3 else 0.0),
        }


def test_moves_are_measured_against_the_size_of_a_column(tmp_path):
    job = toy.make_job(tmp_path, toy.ToyConfig())
    task = Odd(toy.ToyConfig(), job.dataset)
    rows = job.split.rows("val")
    predictor = Predictor(task, job.stream(), rows)
    predictor.predict()
    again, among = predictor.probe()
    assert task.calls == 5  # three batches, and the first of them twice
    assert again["logits"] == again["nan"] == again["among"] == among["logits"] == 0
    assert again["again"] == pytest.approx(2 / 400)
    assert again["number"] == 1
    assert again["born"] > 1e30
    assert among["among"] == pytest.approx(1 / (rows[0] + 1))
