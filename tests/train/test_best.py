"""The named rule chooses the epoch and its weights; patience ends a run."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from assay.errors import RunError
from assay.train.best import load_best
from assay.train.source import TaskSource, load_task

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
config_of, loop_of = toy.make_config, toy.make_loop


@pytest.mark.parametrize(
    ("select", "accuracies", "nlls", "best"),
    [
        ("score", [0.5, 0.7, 0.7, 0.7, 0.6], [1.0, 0.9, 0.8, 0.85, 0.1], 2),
        ("score", [0.7, 0.7, 0.7, 0.7, 0.7], [0.5, 0.5, 0.5, 0.5, 0.5], 0),
        ("nll", [0.5, 0.7, 0.9, 0.7, 0.6], [1.0, 0.9, 0.8, 0.85, 0.1], 4),
        ("nll", [0.5, 0.7, 0.6, 0.5, 0.6], [0.3, 0.3, 0.3, 0.3, 0.3], 1),
        ("score", [0.5, 0.5, 0.5, 0.4, 0.4], [math.nan, 0.9, math.inf, 0.1, 0.1], 1),
        ("nll", [0.9, 0.5, 0.5, 0.4, 0.4], [math.nan, 0.9, 0.8, 0.9, 0.9], 2),
    ],
)
def test_the_named_rule_chooses_the_epoch_and_its_weights(
    plant_val, tmp_path, select, accuracies, nlls, best
):
    plant_val(accuracies, nlls)
    loop = loop_of(tmp_path, config_of(train={"epochs": 5, "select": select}))
    weights: list[dict[str, torch.Tensor]] = []
    loop.heartbeat = lambda _: weights.append(
        {k: v.clone() for k, v in loop.task.state_dict().items()}
    )
    assert loop.fit().best_epoch == best
    fresh = TASK(loop.task.config, loop.task.dataset)
    load_best(fresh, tmp_path)
    for epoch, state in enumerate(weights):
        same = all(torch.equal(fresh.state_dict()[k], v) for k, v in state.items())
        assert same == (epoch == best)


def test_patience_ends_the_run_for_good(lines_of, plant_val, work, tmp_path):
    plant_val([0.5, 0.6, 0.6, 0.5, 0.9, 0.9], [1.0] * 6)
    config = config_of(train={"epochs": 6, "patience": 2})
    position = work(tmp_path, config)
    assert (position.epoch, position.step, position.best_epoch) == (4, 20, 1)
    assert position.done
    assert work(tmp_path, config).step == 20
    assert len(lines_of(tmp_path, "val")) == 4


def test_patience_may_ask_for_a_least_improvement(plant_val, work, tmp_path):
    """Steps of .01 are no improvement, but together they are; the best weights follow every one."""
    plant_val([0.5, 0.51, 0.52, 0.56, 0.565, 0.57], [1.0] * 6)
    train = {"epochs": 6, "patience": 3, "min_improvement": 0.05}
    position = work(tmp_path / "counted", config_of(train=train))
    assert (position.epoch, position.best_epoch) == (6, 5)
    plant_val([0.5, 0.51, 0.52, 0.53, 0.565, 0.57], [1.0] * 6)
    position = work(tmp_path / "stopped", config_of(train=train))
    assert (position.epoch, position.best_epoch) == (4, 3)


def test_patience_survives_a_resume(plant_val, work, tmp_path):
    plant_val([0.6, 0.5, 0.5, 0.9], [1.0] * 4)
    config = config_of(train={"patience": 2})
    with pytest.raises(toy.StoppedError):
        work(tmp_path, config, lambda stream: toy.stopping(stream, 12))
    assert work(tmp_path, config).epoch == 3


def test_predictions_come_from_the_best_weights_not_the_last(plant_val, work, tmp_path):
    plant_val([0.9, 0.5, 0.5, 0.5], [1.0] * 4)
    config = config_of()
    work(tmp_path, config)
    loop = loop_of(tmp_path / "again", config)
    load_best(loop.task, tmp_path)
    expected = loop.val.predict()["logits"]
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert np.array_equal(np.array(table["logits"].to_pylist()[:7], np.float32), expected)


def test_the_table_is_computed_in_float32_whatever_training_computes_in(work, tmp_path):
    config = config_of(train={"precision": "bf16"})
    work(tmp_path, config)
    loop = loop_of(tmp_path / "again", config)
    load_best(loop.task, tmp_path)
    looked_at = loop.val.predict()["logits"]
    with torch.no_grad():
        parts = [loop.task.predict(batch)["logits"] for batch in loop.stream(loop.val.steps, False)]
    exact = torch.cat(parts).numpy()
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert np.array_equal(np.array(table["logits"].to_pylist()[:7], np.float32), exact)
    assert not np.array_equal(looked_at, exact)


def test_best_weights_of_another_model_are_refused(tmp_path, straight, config):
    dataset = toy.make_job(tmp_path, config).dataset
    with pytest.raises(RunError, match="no best weights yet"):
        load_best(TASK(config, dataset), tmp_path)
    with pytest.raises(RunError, match="do not fit this model"):
        load_best(TASK(config, replace(dataset, classes=("a", "b"))), straight)
