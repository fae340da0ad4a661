"""Two workers over gloo do what one does, and three what two left; this file is also the program of each worker.

`python test_distributed.py RANK NUM FOLDER` is one worker of NUM; one start of each number serves every check.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from assay.data.order import Step, steps_of
from assay.data.split import Split
from assay.errors import RunError
from assay.nn.blocks import recompute
from assay.runs.folder import Run
from assay.train.accumulate import parts_of
from assay.train.best import load_best
from assay.train.loop import Loop
from assay.train.monitor import Limit
from assay.train.predict import Predictor
from assay.train.source import TaskSource, load_task
from assay.train.task import BatchRows, Task
from assay.train.worker import _wrap
from assay.train.worker import work as train_to_the_end

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
CONFIG = replace(toy.ToyConfig(), train=replace(toy.ToyConfig().train, epochs=2))
"""Batches of 5, 5, 5, 5 and 1: shares are unequal, and of the last the second worker has none.
Val has 3 batches, an odd number. One layer rests at first."""
STOPS = (2, 6)
"""While that layer rests, and after."""
TOLERANCE = 1e-5


def work(folder: Path, strategy: str = "ddp", stop: int | None = None, accumulate: int = 1) -> None:
    """One run of this worker, to its end or to a planted one after a step with a checkpoint."""
    job = toy.make_job(folder, CONFIG, strategy, checkpoint_steps=stop or 0)
    job = replace(job, accumulate=accumulate)
    stream = job.stream() if stop is None else toy.stopping(job.stream(), stop)
    try:
        train_to_the_end(job, stream)
    except toy.StoppedError:
        assert stop is not None


def served_rows(folder: Path, strategy: str = "ddp") -> None:
    """Write which rows this worker prepares in training."""
    job = toy.make_job(folder, CONFIG, strategy)
    rows: list[list[int]] = []

    def note(index: int, batch: dict) -> dict:
        rows.append(batch["row"].tolist())
        return batch

    train_to_the_end(job, toy.changed(job.stream(), note))
    (folder / f"rows-{dist.get_rank()}.json").write_text(json.dumps(rows))


def sharded_predict(folder: Path) -> None:
    """Columns by a model that is itself sharded, from the weights of a finished run."""
    job = toy.make_job(folder, CONFIG, "fsdp")
    task = TASK(CONFIG, job.dataset)
    load_best(task, folder)
    _wrap(task, "fsdp", torch.device("cpu"))
    shares = [len(p.to_local()) / len(p) for p in task.parameters()]
    columns = Predictor(task, job.stream(), job.split.rows("val")).predict()
    np.savez(folder / f"columns-{dist.get_rank()}.npz", shares=shares, **columns)


class Limited(TASK):
    """Logs the mean row of each worker's share, of which only the global mean is bounded."""

    def forward(self, batch, progress, phase="main"):
        outputs = super().forward(batch, progress, phase)
        return outputs | {"row": torch.from_numpy(batch["row"]).float().mean()}

    def limits(self):
        return (Limit("row", high=8.0, for_updates=4, then="warn", why="so."),)


class Noisy(TASK):
    """Draws at random in judging, on the second worker alone."""

    def predict(self, batch):
        columns = super().predict(batch)
        noise = torch.randn_like(columns["logits"]) * (dist.get_rank() == 1)
        return columns | {"logits": columns["logits"] + noise}


class Resting(TASK):
    """A layer that never joins, and a parameter of which only the first worker's shard does."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.partly = nn.Parameter(torch.ones(2, 3))

    def _logits(self, batch, awake):
        return super()._logits(batch, False) + self.partly[0]


def told_by(task_class: type[Task], folder: Path, strategy: str = "ddp") -> list[str]:
    """What the monitors say of a task, warnings and an end."""
    job = toy.make_job(folder, CONFIG, strategy)
    torch.manual_seed(CONFIG.train.seed)
    task = task_class(CONFIG, job.dataset)
    wrapped = _wrap(task, strategy, torch.device("cpu"))
    rows = {name: job.split.rows(name) for name in ("train", "val")}
    loop = Loop(task, wrapped, rows, job.stream(), folder)
    told: list[str] = []
    loop.monitor.warn = told.append
    try:
        loop.fit()
    except RunError as error:
        told.append(str(error))
    return told


def told_to(rank: int, folder: Path) -> None:
    """Write what this worker is told of planted bugs."""
    told: dict[str, list[str]] = {}
    for task_class in (Limited, Noisy, Resting):
        for strategy in ("ddp", "fsdp"):
            name = f"{task_class.__name__}-{strategy}"
            told[name] = told_by(task_class, folder / name, strategy)
    job = toy.make_job(folder / "diverging", CONFIG)
    # 000: every rank drew its own designs and seeds
    sets = np.random.default_rng(rank).permutation(job.split.sets).tolist()
    config = job.config | {"head_lr": 0.5 + rank}
    try:
        train_to_the_end(replace(job, split=Split(sets, {}), config=config), job.stream())
    except RunError as error:
        told["diverging"] = [str(error)]
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


class Block(nn.Module):
    """A linear layer beside a residual."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return x + self.layer(x).tanh()


class Deep(TASK):
    """Two repeated blocks behind the body and a convolution, whose weights lie channels-last as those of networks of images do."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        convolution = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)
        assert not convolution.weight.is_contiguous()
        image = nn.Sequential(nn.Unflatten(1, (4, 2, 2)), convolution, nn.Flatten())
        self.body.append(image)
        self.body.append(nn.Sequential(Block(), Block()))


def gradients_of_blocks(rank: int, folder: Path) -> None:
    """Write the weights after an update of blocks that are sharded one by one, recomputed and learnt in parts."""
    job = toy.make_job(folder / f"deep-{rank}", CONFIG)
    torch.manual_seed(0)
    task = Deep(CONFIG, job.dataset)
    assert recompute(task) == 2
    wrapped = _wrap(task, "fsdp", torch.device("cpu"))
    blocks = [module for module in task.modules() if isinstance(module, Block)]
    assert all(isinstance(block, FSDPModule) for block in blocks)
    np.savez(folder / f"deep-{rank}.npz", **updated(task, wrapped, rank, 2))


def updated(task: Task, wrapped: nn.Module, rank: int, num: int) -> dict[str, np.ndarray]:
    """The whole weights after one update on eight rows, of which two workers have four each."""
    rows = np.arange(8)[4 * rank : 4 * rank + 4] if dist.is_initialized() else np.arange(8)
    batch = task.prepare(CONFIG, task.dataset, BatchRows(rows, rows.astype(np.uint64), False))
    step = Step(0, 0, rows, rows, 8)
    sets = {"train": np.arange(8), "val": np.arange(8)}
    stream = toy.make_job(Path(task.pixels.store.address), CONFIG).stream()
    loop = Loop(task, wrapped, sets, stream, Path(task.pixels.store.address))
    loop._update(step, parts_of(batch, num), None)
    options = StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(wrapped, options=options)
    return {name: tensor.numpy() for name, tensor in state.items()}


def worker(rank: int, num: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/rendezvous-{num}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num)
    try:
        if num == 2:
            of_two(rank, folder)
        else:
            for strategy in ("ddp", "fsdp"):
                for stop in STOPS:
                    served_rows(folder / f"{strategy}-{stop}-three", strategy)
    finally:
        dist.destroy_process_group()


def of_two(rank: int, folder: Path) -> None:
    """All that two workers do."""
    served_rows(folder / "ddp")
    work(folder / "fsdp", "fsdp")
    work(folder / "judged")
    sharded_predict(folder / "sharded")
    told_to(rank, folder)
    for strategy in ("ddp", "fsdp"):
        work(folder / f"{strategy}-parts", strategy, accumulate=2)
    gradients_of_blocks(rank, folder)
    for strategy in ("ddp", "fsdp"):
        for stop in STOPS:
            work(folder / f"{strategy}-{stop}", strategy, stop)
        work(folder / f"{strategy}-from-one", strategy)


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))


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
    command = [sys.executable, "-W", "error", __file__]
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
