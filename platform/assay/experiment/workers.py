"""Where a run is computed: its workers, and their binding to Ray Train.

This file alone imports ray.train.
"""

import math
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assay.cluster.session import ray_session
from assay.errors import AssayError, ResourceError, RunError, disk_faults
from assay.experiment.resources import Resources, cpus_for_data, num_workers, worker_resources
from assay.files import describe
from assay.runs.remote import drop_ray_storage, mirror_of, pull, ray_storage
from assay.train.batches import Stream
from assay.train.loop import TrainState
from assay.train.notice import Notice, listening
from assay.train.share import fetch
from assay.train.tier import Tier, choose_tier
from assay.train.worker import Job, reached, work

START_TIMEOUT_S = 300


def cluster(resources: Resources) -> AbstractContextManager[Any]:
    """Enter a Ray to train on; nothing at all without workers."""
    return ray_session() if resources.workers else nullcontext()


def train(
    job: Job,
    resources: Resources,
    heartbeat: Callable[[TrainState], None] | None = None,
    callbacks: Sequence[Any] = (),
    trials: int = 1,
) -> None:
    """Train a run and predict the sets to be judged, on the workers asked for.

    Args:
        job: the run.
        resources: its workers.
        heartbeat: called after each look at val, where the run is trained in this process.
        callbacks: of Ray Train, called with the same where it is not.
        trials: runs at once that share the cluster's CPUs.

    Raises:
        AssayError: what the user can mend, raised on any worker.
    """
    # what learns nothing only predicts: that takes less than workers take to start
    if resources.workers == 0 or (job.device == "cpu" and not job.config["train"]["epochs"]):
        job = _settled(job, resources.tier)
        with listening() as notice:
            stream = _stream_here(job, resources, trials)
            work(job, stream, heartbeat or (lambda position: None), notice)
        return
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    _train_on_workers(job, resources, callbacks, trials)


def _train_on_workers(
    job: Job, resources: Resources, callbacks: Sequence[Any], trials: int
) -> None:
    """Launch workers, and again where some are lost: our own checkpoints resume.

    Raises:
        AssayError: of any worker; it names its remedy, and would only come again.
        ResourceError: workers are lost again and again.
    """
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    from assay.experiment.reservation import drop_reservation

    job.folder.mkdir(parents=True, exist_ok=True)  # workers look whether they see it
    for left in reversed(range(resources.retries + 1)):
        drop_reservation(job.folder)
        trainer = _trainer(job, resources, callbacks, trials)
        # Ray's own answer to Ctrl-C ends the process after half a minute, with 1 and without a word
        trainer._register_sigint_handler = lambda controller: None
        try:
            try:
                trainer.fit()
            finally:
                pull(job.folder)  # rank 0 may have been on another node
                drop_ray_storage(job.folder / "ray")
            return
        except (TrainingFailedError, RayActorError) as failed:  # the latter: of what steers them
            cause = _cause(failed)
            if isinstance(cause, AssayError):
                raise cause from None
            if left:
                print(
                    f"A worker failed ({describe(cause)}); resuming, {left - 1} retries left.",
                    file=sys.stderr,
                )
            elif _is_loss(cause):
                raise ResourceError(
                    f"Workers were lost {resources.retries + 1} times, at last: {describe(cause)}; see that their nodes stay and have memory enough, "
                    "and give the same command again, which goes on from the last checkpoint."
                ) from None
            else:  # a bug
                raise


def _stream_here(job: Job, resources: Resources, trials: int) -> Stream:
    """Return what feeds a run in this process: itself, or Ray Data where a trial's accelerator leaves the cluster's CPUs idle."""
    if not resources.gpus:
        return job.stream()
    import ray

    if not ray.is_initialized():
        return job.stream()
    from assay.experiment.stream import ray_stream

    _, config = job.load()
    each = resources.cpus_per_worker or 1.0
    cpus = cpus_for_data(each, 1, trials)
    return ray_stream(job.source, config, job.dataset, cpus, each * trials)


def _trainer(job: Job, resources: Resources, callbacks: Sequence[Any], trials: int) -> Any:
    """Return Ray Train's trainer of one launch, once there is room for its workers."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from assay.experiment.process_group import ReachableConfig

    one = worker_resources(resources)
    return TorchTrainer(
        _worker,
        train_loop_config={
            "job": job,
            "tier": resources.tier,
            "threads": math.ceil(resources.cpus_per_worker),
            "cpus_for_data": cpus_for_data(one["CPU"], resources.workers, trials),
            "cpus": one["CPU"] * trials,
        },
        torch_config=ReachableConfig(backend="nccl" if job.device == "cuda" else "gloo"),
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]
            num_workers=num_workers(resources, one),  # type: ignore[arg-type]
            use_gpu=resources.gpus,
            resources_per_worker=one,
            elastic_resize_monitor_interval_s=resources.resize_s,
        ),
        run_config=ray.train.RunConfig(
            name=f"launch-{time.time_ns()}",
            **ray_storage(job.folder / "ray"),
            callbacks=list(callbacks),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=3),  # type: ignore[call-arg]
        ),
    )


def _settled(job: Job, tier: Tier) -> Job:
    """Return the job with its pixels in the tier that this node has room for."""
    rows, device = job.split.rows("train").tolist(), torch.device(job.device)
    chosen, pixels = choose_tier(tier, job.pixels, rows, device)
    return replace(job, tier=chosen, pixels=pixels)


def _cause(failed: BaseException) -> BaseException:
    """Return what ended the workers: the sentence of any of them, a loss, or else what the first raised."""
    failures = getattr(failed, "worker_failures", {}).values()
    # Ray keeps what a worker's code raised here, and shows its traceback alone
    causes = [getattr(each, "_base_exc", each) for each in failures]
    causes = [getattr(each, "health_check_failure", each) for each in causes]
    # where one is lost, another's talk to it breaks off
    causes.sort(key=lambda cause: (not isinstance(cause, AssayError), not _is_loss(cause)))
    return causes[0] if causes else failed


def _is_loss(cause: BaseException) -> bool:
    from ray.exceptions import RayError
    from ray.train import ControllerError

    from assay.experiment.stream import StarvedError

    return isinstance(cause, RayError | ControllerError | StarvedError)


def _worker(settings: dict[str, Any]) -> None:
    import ray.train

    from assay.experiment.reservation import note_reservation
    from assay.experiment.stream import ray_stream

    with disk_faults():  # of Ray's many errors, `_cause` knows an AssayError
        refuse_unshared(settings["job"].folder)
        fetch(settings["job"].folder)
        if ray.train.get_context().get_world_rank() == 0:
            note_reservation(settings["job"].folder)
        job = _settled(settings["job"], settings["tier"])
        torch.set_num_threads(settings["threads"] or _share_of_node())
        _, config = job.load()
        held = settings["cpus"] * ray.train.get_context().get_world_size()
        stream = ray_stream(job.source, config, job.dataset, settings["cpus_for_data"], held)
        # Ray tells all workers of a node that drains, and ends them when it is taken away
        notice = Notice(lambda: ray.train.get_preemption_info() is not None)
        work(job, stream, lambda p: ray.train.report(reached(p, config.train.select)), notice)


def refuse_unshared(folder: Path) -> None:
    """Refuse to work where the run's folder, which the driver has made, cannot be seen: what is written there would be on this node alone.

    Raises:
        RunError: it is not there; names the node.
    """
    if mirror_of(folder) is None and not folder.exists():
        raise RunError(
            f"{folder} is not there on {socket.gethostname()}, where a worker runs; give a --storage that all nodes share, or an URI such as s3://bucket/runs "
            f"(assay doctor --storage {folder.parent} looks at every node)."
        )


def _share_of_node() -> int:
    """Return the threads of a worker; Ray itself gives as many as CPUs are reserved, which is one on any machine."""
    import ray.train

    here = ray.get_runtime_context().get_node_id()
    cpus = next(n["Resources"]["CPU"] for n in ray.nodes() if n["NodeID"] == here)  # type: ignore[no-untyped-call]
    return max(1, int(cpus) // ray.train.get_context().get_local_world_size())
