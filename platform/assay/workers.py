"""Where a run is computed: its workers, and their binding to Ray Train.

This file alone imports ray.train.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import assay
from assay.config import Settings
from assay.errors import AssayError, ResourceError
from assay.loop import Position
from assay.run import Job, reached, work
from assay.tier import Tier, settle

START_TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Where(Settings):
    """Where a run is computed; none of this changes what is computed."""

    workers: int = 1
    """Training workers; 0 trains in this process, without Ray, for debugging."""
    gpus: bool = False
    """Give each worker one GPU (not checked on a GPU yet)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the workers; auto: cuda with --gpus, else cpu (cuda and mps: not checked on hardware yet)."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Replicate the model on the workers, or shard it over them (FSDP2)."""
    cpus_per_worker: float = 0.0
    """CPUs reserved for each worker, and its threads; 0: what leaves one CPU for Ray Data, at most 1, and as many threads as the node has for it."""
    retries: int = 3
    """Worker failures survived before the run is given up."""
    storage: Path | None = None
    """Folder of the runs, shared by all nodes; none: runs/ here, or ~/assay/runs in a submitted job."""
    store: str = ""
    """Folder or URI (s3://, gs://, abfs://) of decoded pixels; none: store/ below the storage."""
    cache: str = ""
    """Folder on each node for copies of what is read from the store, such as a local disk or /dev/shm; none: only of an URI, below ~/.cache."""
    tier: Tier = "auto"
    """Where pixels are held: disk (the store or copies of it), memory (copies in each node's /dev/shm, which stay for the next run), device (also in the accelerator's memory, from which patches that are whole pixels of the image are cut, not checked on hardware yet); auto: what half of would do, memory for an URI only."""
    checkpoint_steps: int = 0
    """Updates between two checkpoints besides those at each look at val; 0: none besides."""
    track: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Trackers besides metrics.jsonl; W&B stays offline unless logged in."""


@contextmanager
def cluster(where: Where) -> Iterator[None]:
    """A Ray to work on: the one that runs here already, else the cluster of RAY_ADDRESS, else a
    local one that ends with this block. Nothing at all without workers.
    """
    if where.workers == 0:
        yield
        return
    import ray

    if ray.is_initialized():
        yield
        return
    package = Path(assay.__file__).parent
    if os.environ.get("RAY_ADDRESS"):
        # the cluster's nodes work with the very package that runs here
        ray.init(runtime_env={"py_modules": [str(package)]}, log_to_driver=False)
    else:
        paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        token = Path.home() / ".ray" / "auth_token"
        if token.exists():
            token.chmod(0o600)  # Ray writes it readable by everyone
    try:
        yield
    finally:
        ray.shutdown()


def worker_resources(where: Where) -> dict[str, float]:
    """CPUs and GPUs of one worker.

    Raises:
        ResourceError: the cluster has too few for the workers and for Ray Data; says how many.
    """
    import ray

    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    most = int(gpus) if where.gpus else int(cpus)
    each = where.cpus_per_worker or min(1.0, (cpus - 1) / where.workers)
    if where.workers > most:
        raise ResourceError(
            f"{where.workers} workers were asked for and the cluster has {int(cpus)} CPUs and {int(gpus)} GPUs; "
            f"take --workers {most} or fewer{'' if most else ' without --gpus'}, or a larger cluster."
        )
    if each <= 0 or each * where.workers > cpus - 1:
        raise ResourceError(
            f"{where.workers} workers of {each:g} CPUs and 1 CPU for Ray Data need {max(each, 0) * where.workers + 1:g} CPUs, the cluster has {cpus:g}; "
            "lower --workers or --cpus-per-worker, or train without Ray by --workers 0."
        )
    return {"CPU": each} | ({"GPU": 1.0} if where.gpus else {})


def pick_device(where: Where) -> str:
    """The device of the workers.

    Raises:
        ResourceError: it is not there.
    """
    device = where.device if where.device != "auto" else ("cuda" if where.gpus else "cpu")
    if device == "cuda" and where.workers == 0 and not torch.cuda.is_available():
        raise ResourceError(
            "--device cuda was asked for and this machine has no CUDA device; use --device cpu."
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ResourceError(
            "--device mps was asked for and this machine has no Apple GPU; use --device cpu."
        )
    return device


def train(
    job: Job,
    where: Where,
    heartbeat: Callable[[Position], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> None:
    """Train a run and predict the sets to be judged, on the workers asked for.

    Args:
        job: the run.
        where: its workers.
        heartbeat: called after each look at val, where the run is trained in this process.
        callbacks: of Ray Train, called with the same where it is not.

    Raises:
        AssayError: what the user can mend, raised on any worker.
    """
    # what learns nothing only predicts: that takes less than workers take to start
    if where.workers == 0 or (job.device == "cpu" and not job.config["train"]["epochs"]):
        job = _settled(job, where.tier)
        work(job, job.stream(), heartbeat or (lambda position: None))
        return
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    for failures in range(where.retries + 1):
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "job": job,
                "tier": where.tier,
                "threads": math.ceil(where.cpus_per_worker),
            },
            torch_config=TorchConfig(backend="nccl" if where.gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=where.workers,
                use_gpu=where.gpus,
                resources_per_worker=worker_resources(where),
            ),
            run_config=ray.train.RunConfig(
                name=f"launch-{time.time_ns()}",
                storage_path=str(job.folder / "ray"),
                callbacks=list(callbacks),
                failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=3),  # type: ignore[call-arg]
            ),
        )
        # our own checkpoints resume, so a lost worker needs no more than another launch;
        # an error that names its remedy would only come again
        try:
            trainer.fit()
            return
        except ray.train.TrainingFailedError as failed:
            cause = _cause(failed)
            if isinstance(cause, AssayError) or failures == where.retries:
                raise cause from None
            print(
                f"A worker failed ({str(cause).splitlines()[0]}); resuming, {where.retries - failures - 1} retries left.",
                file=sys.stderr,
            )


def _settled(job: Job, tier: Tier) -> Job:
    """The job with its pixels in the tier that this node has room for."""
    rows, device = job.split.rows("train").tolist(), torch.device(job.device)
    chosen, pixels = settle(tier, job.pixels, rows, device)
    return replace(job, tier=chosen, pixels=pixels)


def _cause(failed: BaseException) -> BaseException:
    """The worker's own AssayError where there is one."""
    failures = getattr(failed, "worker_failures", {}) or {}
    for failure in failures.values():
        inner = getattr(failure, "cause", failure)
        if isinstance(inner, AssayError):
            return inner
    return failed


def _worker(settings: dict[str, Any]) -> None:
    import ray.train

    from assay.ingest import ray_stream

    job = _settled(settings["job"], settings["tier"])
    if job.device == "cpu":
        torch.set_num_threads(settings["threads"] or _share_of_node())
    _, config = job.load()
    stream = ray_stream(job.source, config, job.pixels, job.manifest.truth)
    work(job, stream, lambda p: ray.train.report(reached(p, config.train.select)))


def _share_of_node() -> int:
    """Threads of a worker; Ray itself gives as many as CPUs are reserved, which is one on any machine."""
    import ray.train

    here = ray.get_runtime_context().get_node_id()
    cpus = next(n["Resources"]["CPU"] for n in ray.nodes() if n["NodeID"] == here)  # type: ignore[no-untyped-call]
    return max(1, int(cpus) // ray.train.get_context().get_local_world_size())
