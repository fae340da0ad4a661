"""Two workers over gloo do what one does, and three what two left; gloo_worker.py is the program of each worker."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from assay.data.order import steps_of
from assay.runs.folder import Run

WORKER = Path(__file__).with_name("gloo_worker.py")
PROGRAM = runpy.run_path(str(WORKER))
TASK, CONFIG, STOPS = PROGRAM["TASK"], PROGRAM["CONFIG"], PROGRAM["STOPS"]
Deep, Limited, Resting = PROGRAM["Deep"], PROGRAM["Limited"], PROGRAM["Resting"]
work, updated, told_by = PROGRAM["work"], PROGRAM["updated"], PROGRAM["told_by"]
toy = sys.modules[TASK.__module__]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of one worker in this process, and of two and three workers in others."""
    folder = tmp_path_factory.mktemp("distributed")
    work(folder / "one")
    for copy in ("judged", "sharded"):
        shutil.copytree(folder / "one", folder / copy)
    for strategy in ("ddp", "fsdp"):
        work(folder / f"{strategy}-from-one", stop=STOPS[0])
    run_workers(folder, 2)
    stopped = [f"{strategy}-{stop}" for strategy in ("ddp", "fsdp") for stop in STOPS]
    for name in stopped:
        shutil.copytree(folder / name, folder / f"{name}-three")
    run_workers(folder, 3)
    for name in stopped:
        work(folder / name)
    return folder


def run_workers(folder: Path, num: int) -> None:
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(WORKER)]
    with ExitStack() as stack:
        logs = [stack.enter_context((folder / f"log-{rank}").open("w")) for rank in range(num)]
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(num), str(folder)], env=environment, stderr=log
            )
            for rank, log in enumerate(logs)
        ]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        failed = [rank for rank, process in enumerate(processes) if process.wait(timeout=240)]
        assert not failed, (folder / f"log-{failed[0]}").read_text()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "best" / "weights.safetensors")


def lines_of(folder: Path, kind: str) -> dict[int, dict]:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == kind}


def predictions(folder: Path) -> pa.Table:
    return pq.read_table(folder / "predictions.parquet")


def assert_same_run(folder: Path, other: Path) -> None:
    """Weights, losses and logits within the tolerance; everything that is counted exactly."""
    expected = weights(folder)
    tensors = weights(other)
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        assert torch.allclose(tensors[name], tensor, atol=TOLERANCE), name
    for kind, fields in (("step", ("loss", "lr", "grad_norm")), ("val", ("accuracy", "nll"))):
        ours, theirs = lines_of(folder, kind), lines_of(other, kind)
        assert list(ours) == sorted(theirs)
        for step, line in ours.items():
            for field in fields:
                assert theirs[step][field] == pytest.approx(line[field], abs=1e-4), (step, field)
    a, b = predictions(folder), predictions(other)
    assert a.drop(["logits"]).equals(b.drop(["logits"]))
    gap = np.array(a["logits"].to_pylist()) - np.array(b["logits"].to_pylist())
    assert np.abs(gap).max() < 10 * TOLERANCE


@pytest.mark.parametrize("run", ["ddp", "fsdp", "ddp-parts", "fsdp-parts"])
def test_two_workers_train_like_one(folder, run):
    assert_same_run(folder / "one", folder / run)


def test_sharded_blocks_learn_like_whole_ones(folder, tmp_path):
    torch.manual_seed(0)
    task = Deep(CONFIG, toy.make_job(tmp_path, CONFIG).dataset)
    expected = updated(task, task, 0, 1)
    found = np.load(folder / "deep-0.npz")  # gathered on the first worker
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert np.allclose(found[name], values, atol=TOLERANCE), name


def test_two_workers_share_every_batch_and_pad_without_weight(folder):
    shares = [json.loads((folder / "ddp" / f"rows-{rank}.json").read_text()) for rank in (0, 1)]
    job = toy.make_job(folder / "plan", CONFIG)
    rows = job.split.rows("train")
    orders = [TASK.order(CONFIG, job.dataset, rows, epoch) for epoch in range(2)]
    plan = [step for epoch, order in enumerate(orders) for step in steps_of(order, epoch)]
    assert len(shares[0]) == len(shares[1]) == len(plan)
    for first, second, step in zip(*shares, plan, strict=True):
        rows = first + second if len(step.rows) > 1 else first
        assert sorted(rows) == sorted(step.rows.tolist())
        assert len(second) == max(1, len(step.rows) // 2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("stop", STOPS)
def test_one_worker_takes_up_what_two_left(folder, strategy, stop):
    stopped = folder / f"{strategy}-{stop}"
    starts = [json.loads(t) for t in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in starts if line["kind"] == "start"] == [0, stop]
    assert_same_run(folder / "one", stopped)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("stop", STOPS)
def test_three_workers_take_up_what_two_left(folder, strategy, stop):
    """At the next batch, with the same loss as without a break; of the batch of one row two have none."""
    stopped = folder / f"{strategy}-{stop}-three"
    assert_same_run(folder / "one", stopped)
    shares = [json.loads((stopped / f"rows-{rank}.json").read_text()) for rank in range(3)]
    job = toy.make_job(folder / "plan", CONFIG)
    rows = job.split.rows("train")
    orders = [TASK.order(CONFIG, job.dataset, rows, epoch) for epoch in range(2)]
    plan = [step for epoch, order in enumerate(orders) for step in steps_of(order, epoch)][stop:]
    assert [len(share) for share in shares] == [len(plan)] * 3
    for *parts, step in zip(*shares, plan, strict=True):
        assert {row for part in parts for row in part} == set(step.rows.tolist())
        assert sum(len(part) for part in parts) == max(3, len(step.rows))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_take_up_what_one_left(folder, strategy):
    assert_same_run(folder / "one", folder / f"{strategy}-from-one")


def test_predictions_are_the_same_to_the_bit_for_any_number_of_workers(folder):
    assert predictions(folder / "judged").equals(predictions(folder / "one"))


def test_a_sharded_model_predicts_the_same_on_every_rank(folder):
    expected = predictions(folder / "one").slice(0, 7)
    for rank in (0, 1):
        columns = np.load(folder / "sharded" / f"columns-{rank}.npz")
        assert (columns["shares"] < 1).all()
        assert np.allclose(columns["logits"], expected["logits"].to_pylist(), atol=TOLERANCE)
        assert columns["first"].tolist() == columns["row"].tolist() == list(range(21, 28))


@pytest.fixture(scope="module")
def told(folder) -> dict[str, list[str]]:
    """What both workers were told, which must be the same."""
    both = [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert both[0] == both[1]
    return both[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_limits_hold_for_the_global_batch(told, tmp_path, strategy):
    (warning,) = told[f"Limited-{strategy}"]
    assert "above 8 for 4 updates: so." in warning
    assert told_by(Limited, tmp_path) == [warning]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_workers_stop_together_where_one_finds_its_predictions_noisy(told, strategy):
    (stop,) = told[f"Noisy-{strategy}"]
    assert "when the same batch is predicted again" in stop


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_parameters_without_gradient_are_named_over_all_shards(told, tmp_path, strategy):
    assert told[f"Resting-{strategy}"] == told_by(Resting, tmp_path)
    assert "late.weight, late.bias;" in told[f"Resting-{strategy}"][0]


def test_workers_that_were_given_different_runs_stop_before_they_train(told, folder):
    assert told["diverging"] == [
        "Some of the 2 workers were not given the run of worker 0, different are: split (worker 1), settings (worker 1); "
        "draw split and settings once, on the driver, and send them to the workers."
    ]
    assert not list((folder / "diverging").iterdir())


@pytest.mark.parametrize("name", ["one", "ddp", "fsdp"])
def test_a_sound_run_is_warned_of_nothing(folder, name):
    assert not Run(folder / name).record.warnings
    assert not lines_of(folder / name, "warning")
