"""metrics.jsonl and run.json say what was done, and what it took."""

import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from assay.runs import telemetry
from assay.runs.folder import Run
from assay.runs.telemetry import Telemetry
from assay.train.source import TaskSource, load_task

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
config_of, loop_of = toy.make_config, toy.make_loop
PARTS = {f"{part}_s" for part in ("wait", "forward", "backward", "update")}


def test_metrics_hold_every_documented_field_and_no_other(lines_of, straight):
    common = {"kind", "step", "epoch", "time"}
    trained = PARTS | {
        "loss",
        "extra",
        "lr",
        "grad_norm",
        "samples_per_s",
        "data_wait",
        "memory_mb",
    }
    kinds = {
        "start": common | {"total", "threads"},
        "step": common | trained | {"step_s"},
        "val": common | {"accuracy", "nll", "val_s"},
        "epoch": common | trained | {"epoch_s"},
    }
    lines = lines_of(straight)
    for line in lines:
        assert set(line) == kinds[line["kind"]]
        assert all(math.isfinite(v) for k, v in line.items() if k != "kind")
    counts = {kind: sum(line["kind"] == kind for line in lines) for kind in kinds}
    assert counts == {"start": 1, "step": 20, "val": 4, "epoch": 4}
    assert telemetry.__doc__ is not None
    documented = telemetry.__doc__.replace(",", " ").split()
    for name in set.union(*kinds.values()) - {"extra"}:
        assert name in documented


def test_epoch_lines_are_means_of_their_steps(lines_of, straight):
    steps = lines_of(straight, "step")
    for line in lines_of(straight, "epoch"):
        epoch_steps = [s for s in steps if s["epoch"] == line["epoch"]]
        assert len(epoch_steps) == 5
        assert line["step"] == epoch_steps[-1]["step"]
        for name in ("loss", "extra", "lr", "grad_norm"):
            assert line[name] == pytest.approx(np.mean([s[name] for s in epoch_steps]), rel=1e-4)
        assert line["epoch_s"] >= sum(s["step_s"] for s in epoch_steps) * 0.99
        assert line["samples_per_s"] == pytest.approx(21 / line["epoch_s"], rel=1e-3)


def test_a_rate_counts_only_what_this_launch_served(lines_of, work, tmp_path):
    config = config_of(train={"epochs": 1})
    with pytest.raises(toy.StoppedError):
        work(tmp_path, config, lambda stream: toy.stopping(stream, 4), every=1)
    work(tmp_path, config)
    (line,) = lines_of(tmp_path, "epoch")
    assert line["samples_per_s"] == pytest.approx(1 / line["epoch_s"], rel=1e-3)


def test_what_a_run_costs_is_noted_and_its_time_is_of_all_launches(work, tmp_path):
    """A launch that sleeps and breaks off after a checkpoint, and one that ends the run."""

    def slow(index: int, batch):
        time.sleep(0.1)
        return batch

    config = config_of(train={"epochs": 2})
    slowly = lambda stream: toy.stopping(toy.changed(stream, slow), 6)  # noqa: E731
    with pytest.raises(toy.StoppedError):
        work(tmp_path, config, slowly, every=5)
    assert Run(tmp_path).record.measured is None
    began = time.perf_counter()
    work(tmp_path, config)
    measured = Run(tmp_path).record.measured
    assert measured is not None
    layers = (6 * 16 + 16) + (6 * 16 + 16) + (16 * 3 + 3) + 16
    assert measured["num_params"] == measured["num_trainable"] == layers
    assert 0.5 <= measured["train_s"] <= 0.5 + time.perf_counter() - began + 2


def test_waiting_for_data_is_measured(lines_of, tmp_path):
    def slow(index: int, batch):
        time.sleep(0.05)
        return batch

    class Slow(TASK):
        def forward(self, batch, progress, phase="main"):
            time.sleep(0.05)
            return super().forward(batch, progress, phase)

    shares = {}
    for name, task, change in (("data", TASK, slow), ("model", Slow, lambda i, batch: batch)):
        folder = tmp_path / name
        loop = loop_of(folder, config_of(train={"epochs": 1}), task)
        loop.telemetry = Telemetry(folder)
        loop.stream = toy.changed(loop.stream, change)
        loop.fit()
        loop.telemetry.close()
        shares[name] = np.median([line["data_wait"] for line in lines_of(folder, "step")])
        (epoch,) = lines_of(folder, "epoch")
        shares[f"{name}, epoch"] = epoch["data_wait"]
    assert shares["data"] > shares["model"] + 0.3
    assert shares["data, epoch"] > shares["model, epoch"] + 0.3


def test_the_parts_explain_an_update(lines_of, tmp_path):
    """Also one that takes a millisecond, where what is done for each update counts."""
    loop = loop_of(tmp_path, config_of(train={"epochs": 12}))
    loop.telemetry = Telemetry(tmp_path)
    loop.fit()
    loop.telemetry.close()
    steps = lines_of(tmp_path, "step")
    explained = [sum(line[part] for part in PARTS) / line["step_s"] for line in steps]
    assert np.median(explained) > 0.95
    assert max(explained) <= 1
