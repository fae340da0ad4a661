"""One worker of several over gloo, for test_distributed.py.

`python gloo_worker.py RANK NUM FOLDER` is one worker of NUM; one start of each number serves every check.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from assay.data.order import Step
from assay.data.split import Split
from assay.errors import RunError
from assay.nn.blocks import recompute
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
