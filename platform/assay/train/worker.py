"""What every worker of a run does: train to the end, then predict the sets to be judged."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from assay.cluster.heap import ALL, keep_freed_memory
from assay.config import fingerprint, from_dict
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.manifest import Manifest
from assay.data.split import Split
from assay.errors import ConfigError, RunError, disk_faults
from assay.nn.blocks import blocks_of, compile_blocks, recompute
from assay.runs.folder import Run
from assay.runs.results import write_predictions
from assay.runs.telemetry import Telemetry
from assay.train import checkpoint
from assay.train.batches import Stream, batches
from assay.train.best import share_best
from assay.train.loop import Loop, TrainState
from assay.train.memory import BUILDING, HOLDING, judging, learning, memory_faults
from assay.train.notice import NO_NOTICE, Notice
from assay.train.predict import Predictor, world
from assay.train.share import share
from assay.train.source import TaskSource, load_task
from assay.train.task_config import TaskConfig
from assay.train.tier import Tier

TIE = 1e-6
"""Weight of nll where scores are equal; no two scores of fewer than 10000 images are as close."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to train and judge one run; travels to the workers by value."""

    source: TaskSource
    config: dict[str, Any]
    manifest: Manifest
    split: Split
    pixels: Pixels
    folder: Path
    device: str
    strategy: str
    track: tuple[str, ...] = ()
    judged: tuple[str, ...] = field(default=())
    checkpoint_steps: int = 0
    tier: Tier = "disk"
    accumulate: int = 1
    recompute: bool = False
    compile: bool = False
    keep: checkpoint.Keep = checkpoint.KEEP

    def load(self) -> tuple[Any, TaskConfig]:
        """Load the task's class and settings."""
        task = load_task(self.source)
        return task, from_dict(task.Config, self.config)

    @cached_property
    def dataset(self) -> Dataset:
        """What the task is given of the data."""
        rows = (self.split.rows(name) for name in ("train", "unlabelled"))
        return Dataset.of(self.manifest, self.pixels, *rows)

    def stream(self) -> Stream:
        """Return a stream of batches prepared in this process."""
        (task, config), dataset = self.load(), self.dataset
        return lambda steps, train: batches(task, config, dataset, steps, train)


@disk_faults()
def work(
    job: Job,
    stream: Stream,
    heartbeat: Any = lambda position: None,
    notice: Notice = NO_NOTICE,
) -> TrainState:
    """Train to the end and predict the sets to be judged; the same on every worker and without Ray.

    Raises:
        RunError: the workers were not given the same run, or a monitor stops it.
        DiskError: something cannot be written.
    """
    refuse_divergence(job)
    device = torch.device(job.device)
    if device.type == "cpu":
        keep_freed_memory(ALL)
    with memory_faults(device, *BUILDING):
        task, costs = _build(job, device)
    rank, _ = world()
    with _telemetry(job, task, rank) as telemetry:
        position = _fit(job, task, stream, telemetry, heartbeat, notice)
        if rank == 0:
            measured = {name: float(num) for name, num in costs.items()}
            Run(job.folder).note(measured=measured | {"train_s": position.seconds})
        _predict(job, stream, device)
    share(job.folder)
    return position


def _build(job: Job, device: torch.device) -> tuple[Any, dict[str, int]]:
    """Build the task as it is to be trained, and count what it costs."""
    task_class, config = job.load()
    torch.manual_seed(config.train.seed)
    task = task_class(config, job.dataset).to(device)
    costs = task.costs()
    if not config.train.epochs:  # what could be trained is not
        costs |= dict.fromkeys({"num_trainable", "trainable_macs"} & costs.keys(), 0)
    if job.recompute and not recompute(task):
        raise ConfigError(
            f"--recompute was given and {job.source.name} has no repeated blocks that are trained; leave it out."
        )
    if job.compile and not compile_blocks(task):
        raise ConfigError(
            f"--compile was given and {job.source.name} trains no network; leave it out."
        )
    task.refuse_sets({name: job.split.rows(name) for name in ("val", *job.judged)})
    rows = job.split.rows("train")
    if checkpoint.latest(job.folder / "checkpoints") is None:
        task.begin(rows)  # before its tensors are shared out
    if job.tier == "device":
        with memory_faults(device, *HOLDING):
            task.hold(rows)
    return task, costs


@contextmanager
def _telemetry(job: Job, task: Any, rank: int) -> Iterator[Telemetry | None]:
    """Write down what the first worker measures, from its doubts on."""
    if rank:
        yield None
        return
    telemetry = Telemetry(job.folder, job.track, job.config, Run(job.folder).warn)
    try:
        for text in task.doubts():
            telemetry.warn(text, 0)
        yield telemetry
    finally:
        telemetry.close()


def _fit(
    job: Job,
    task: Any,
    stream: Stream,
    telemetry: Telemetry | None,
    heartbeat: Any,
    notice: Notice,
) -> TrainState:
    device = torch.device(job.device)
    size, (_, workers) = task.config.train.batch_size, world()
    wrapped = _wrap(task, job.strategy, device)
    with memory_faults(device, *learning(size, workers, job.accumulate, job.recompute)):
        loop = Loop(
            task,
            wrapped,
            {name: job.split.rows(name) for name in ("train", "val")},
            stream,
            job.folder,
            telemetry,
            heartbeat,
            job.checkpoint_steps,
            job.accumulate,
            job.keep,
            saved=lambda: share(job.folder),
            notice=notice,
        )
        return loop.fit()


def reached(position: TrainState, select: str) -> dict[str, int | float]:
    """Return what a run says to whoever may stop it: epochs done, and the best of val until then.

    `rank` orders by score, and by nll where scores are equal: early on many runs guess one class, and
    the score of few images has few values.
    """
    assert position.best is not None
    first, second = position.best  # ordered as `train.select` says
    score, fit = (first, second) if select == "score" else (second, first)
    return {"epoch": position.epoch, "score": score, "nll": -fit, "rank": score + TIE * fit}


def refuse_divergence(job: Job) -> None:
    """Compare what every worker was given; nothing to compare with one worker.

    Raises:
        RunError: on all workers, where any differs from the first; names what and which.
    """
    group = torch.distributed
    if not group.is_initialized():
        return
    digests = {
        "split": fingerprint(job.split.sets),
        "settings": fingerprint(job.config),
        "images": fingerprint([job.manifest.column("id"), job.manifest.truth.tolist()]),
        "classes": fingerprint([job.manifest.classes, job.manifest.mask_classes]),
        "task file": fingerprint(job.source.code.decode()),
    }
    everyone: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(everyone, digests)
    differing = {
        what: [str(rank) for rank, theirs in enumerate(everyone) if theirs[what] != first]
        for what, first in everyone[0].items()
    }
    parts = [f"{what} (worker {', '.join(ranks)})" for what, ranks in differing.items() if ranks]
    if parts:
        raise RunError(
            f"Some of the {len(everyone)} workers were not given the run of worker 0, different are: {', '.join(parts)}; "
            "draw split and settings once, on the driver, and send them to the workers."
        )


def _wrap(task: Any, strategy: str, device: torch.device) -> torch.nn.Module:
    group = torch.distributed
    num_workers = group.get_world_size() if group.is_initialized() else 0
    if num_workers == 0 or (num_workers == 1 and strategy == "ddp"):
        wrapped: torch.nn.Module = task
        return wrapped
    if strategy == "ddp":
        ids = [device] if device.type == "cuda" else None
        # parts of a model may rest in some phases (a scorer while the backbone warms up)
        return torch.nn.parallel.DistributedDataParallel(
            task, device_ids=ids, find_unused_parameters=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # which torch cannot shard channels-last, as networks of images lie
    task.to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for child in task.children():
        # a block's weights are gathered when it computes, and let go again; a teacher's like its student's
        for block in blocks_of(child):
            fully_shard(block, mesh=mesh)
        # what is at rest may be entered by other ways than its forward pass, and stays with the task
        if any(p.requires_grad for p in child.parameters()):
            fully_shard(child, mesh=mesh)
    sharded: torch.nn.Module = fully_shard(task, mesh=mesh)
    register_fsdp_forward_method(sharded, "predict")
    return sharded


def _predict(job: Job, stream: Stream, device: torch.device) -> None:
    """Predict val and the judged sets with the best weights, unsharded, in fixed batches."""
    task_class, config = job.load()
    with memory_faults(device, *BUILDING):
        task = task_class(config, job.dataset).to(device)
    share_best(task, job.folder)
    tables = []
    for name in (*task.reference, "val", *job.judged):
        with memory_faults(device, *judging(config.train.eval_batch_size)):
            predictor = Predictor(task, stream, job.split.rows(name), once=True)
            columns = predictor.predict()
        tables.append(predictions_table(job.manifest, task.classes, name, columns))
    if predictor.rank == 0:
        write_predictions(job.folder, pa.concat_tables(tables))


def predictions_table(
    manifest: Manifest, classes: Sequence[str], name: str, columns: dict[str, np.ndarray]
) -> pa.Table:
    """Return one set's predictions as a table; see `predictions` for its columns."""
    chosen = manifest.take(columns["row"]).table
    domains = {c: chosen[c] for c in chosen.column_names if c.startswith("domain.")}
    arrays = {
        key: pa.array(list(values)) if values.ndim > 1 else pa.array(values)
        for key, values in columns.items()
        if key != "row"
    }
    keys = {"id": chosen["id"], "split": pa.array([name] * len(chosen)), "group": chosen["group"]}
    truth = {"truth": pa.array(manifest.truth[columns["row"]])}
    table = pa.table(keys | domains | truth | arrays)
    return table.replace_schema_metadata({b"classes": json.dumps(list(classes)).encode()})
