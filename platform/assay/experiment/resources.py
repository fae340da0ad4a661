"""Where a run is computed: workers, devices, folders."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from assay.cluster.nodes import gather, growth, refuse_beyond, sizes_of_nodes, up
from assay.config import Settings
from assay.errors import ConfigError, ResourceError
from assay.train.tier import Tier


@dataclass(frozen=True, kw_only=True)
class Resources(Settings):
    """Where a run is computed; none of this changes what is computed."""

    workers: Annotated[int, Interval(ge=0, le=10_000)] = 1
    """Training workers; 0 trains in this process, without Ray, for debugging. 2..8: two at least, and up to eight as nodes come (with --gpus)."""
    workers_max: Annotated[int, Interval(ge=0, le=10_000)] = 0
    """Workers to grow to while nodes come, as --workers 2..8 says it; 0: as many as --workers."""
    resize_s: Annotated[float, Interval(ge=1, le=86_400)] = 60.0
    """Seconds between looks whether a range of workers can grow; each growth begins again from the last checkpoint."""
    gpus: bool = False
    """Give each worker one GPU (not checked on a GPU yet)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the workers; auto: cuda with --gpus, else cpu (cuda and mps: not checked on hardware yet)."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Replicate the model on the workers, or shard it over them (FSDP2)."""
    cpus_per_worker: Annotated[float, Interval(ge=0, le=1000)] = 0.0
    """CPUs reserved for each worker, and its threads; 0: what leaves one CPU for Ray Data, at most 1, and as many threads as the node has for it."""
    retries: Annotated[int, Interval(ge=0, le=1000)] = 3
    """Worker failures survived before the run is given up."""
    wait_s: Annotated[float, Interval(ge=0, le=604_800)] = 900.0
    """Seconds to wait for nodes on a cluster that can grow; 0: take what is there, as on one that cannot."""
    storage: str = ""
    """Folder of the runs, shared by all nodes, or URI (s3://, gs://, abfs://); none: runs/ here, or ~/assay/runs in a submitted job."""
    store: str = ""
    """Folder or URI of decoded pixels; none: store/ below the storage, of an URI on this machine where no cluster is joined."""
    cache: str = ""
    """Folder on each node for copies of what is read from the store, such as a local disk or /dev/shm; none: only of an URI, below ~/.cache."""
    tier: Tier = "auto"
    """Where pixels are held: disk (the store or copies of it), memory (copies in each node's /dev/shm, which stay for the next run), device (also in the accelerator's memory, equalised, from which patches are cut, turned and rescaled there, not checked on hardware yet); auto: what half of would do, memory for an URI only."""
    accumulate: Annotated[int, Interval(ge=1, le=1_000_000)] = 1
    """Parts of a worker's share of each batch that are learnt from in turn, so that the memory need hold one; the update is the same, but for batch norm, the draws of dropout and losses that compare the images of a batch."""
    recompute: bool = False
    """Keep the input of each block of the networks alone, and compute the rest again in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Let torch compile the blocks of the networks: minutes at the start, less time for each update after; what is learnt differs by rounding."""
    checkpoint_steps: Annotated[int, Interval(ge=0, le=1_000_000_000)] = 0
    """Updates between two checkpoints besides those at each look at val; 0: none besides."""
    keep_last: Annotated[int, Interval(ge=1, le=1_000_000)] = 2
    """Newest checkpoints that stay on disk."""
    keep_every: Annotated[int, Interval(ge=0, le=1_000_000_000)] = 0
    """Updates between two checkpoints that stay for good, the first at or after each multiple; 0: none."""
    track: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Trackers besides metrics.jsonl; W&B stays offline unless logged in."""

    def __post_init__(self) -> None:
        """Refuse a range of workers that is none, or that nothing bounds on a node."""
        super().__post_init__()
        if not self.workers_max:
            return
        if not 1 <= self.workers <= self.workers_max:
            raise ConfigError(
                f"--workers is {self.workers}..{self.workers_max}; give 1 or more, and no fewer for the second."
            )
        if not self.gpus:
            raise ConfigError(
                f"--workers is {self.workers}..{self.workers_max} without --gpus, so workers would take the CPUs that Ray Data needs; add --gpus, or give one number."
            )


FOR_DATA = {"CPU": 1.0}
"""What Ray Data needs besides the workers."""


def grows(resources: Resources) -> bool:
    """Tell whether what the cluster lacks may be asked for and waited for."""
    return resources.wait_s > 0 and growth() is not None


def make_room_for_data(resources: Resources) -> None:
    """Let Ray Data have a CPU before it is given images, since it would wait for one without end.

    Raises:
        ResourceError: there is none, and none came in time.
    """
    lower = "train without Ray by --workers 0"
    if grows(resources):
        gather([FOR_DATA], resources.wait_s, lower)
    else:
        refuse_beyond(FOR_DATA, up(), lower, "Images to be decoded")


def cpus_for_data(each: float, workers: int, trials: int) -> float | None:
    """Return the CPUs that Ray Data may take for one worker, so that trials at once do not take each other's; None: any that are free.

    Args:
        each: CPUs of a worker.
        workers: of a trial.
        trials: at once.
    """
    if trials == 1:
        return None
    return max(FOR_DATA["CPU"], (up()["CPU"] / trials - workers * each) / workers)


def num_workers(resources: Resources, one: dict[str, float]) -> int | tuple[int, int]:
    """Return the number of workers, or the least and the most.

    Args:
        resources: what was asked for.
        one: CPUs and GPUs of one worker.
    """
    if not resources.workers_max:
        return resources.workers
    most = resources.workers_max
    if not grows(resources):
        most = min(most, int((up()["CPU"] - FOR_DATA["CPU"]) / one["CPU"] + 1e-9))
    return resources.workers, max(resources.workers, most)


def worker_resources(resources: Resources) -> dict[str, float]:
    """Return the CPUs and GPUs of one worker, once a cluster that can grow has room for all of them.

    Raises:
        ResourceError: the cluster has too few for the workers and for Ray Data, and will not have
            more; says how many.
    """
    import ray

    if grows(resources):
        one = {"CPU": resources.cpus_per_worker or 1.0} | ({"GPU": 1.0} if resources.gpus else {})
        lower = "lower --workers or --cpus-per-worker"
        gather([one] * resources.workers + [FOR_DATA], resources.wait_s, lower)
        return one
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    most = int(gpus) if resources.gpus else int(cpus)
    sizes = sizes_of_nodes()
    each = resources.cpus_per_worker or _share(sizes, resources.workers)
    if resources.workers > most:
        raise ResourceError(
            f"{resources.workers} workers were asked for and the cluster has {int(cpus)} CPUs and {int(gpus)} GPUs; "
            f"take --workers {most} or fewer{'' if most else ' without --gpus'}, or a larger cluster."
        )
    if each <= 0 or each * resources.workers > cpus - 1:
        raise ResourceError(
            f"{resources.workers} workers of {each:g} CPUs and 1 CPU for Ray Data need {max(each, 0) * resources.workers + 1:g} CPUs, the cluster has {cpus:g}; "
            "lower --workers or --cpus-per-worker, or train without Ray by --workers 0."
        )
    if not _leaves_one(sizes, resources.workers, each):
        raise ResourceError(
            f"{resources.workers} workers of {each:g} CPUs fill the cluster's nodes of {', '.join(f'{size:g}' for size in sizes)} CPUs so that none has 1 left for Ray Data; "
            f"take --cpus-per-worker {_share(sizes, resources.workers):.3g}, or lower --workers."
        )
    return {"CPU": each} | ({"GPU": 1.0} if resources.gpus else {})


def _share(sizes: Sequence[float], workers: int) -> float:
    """Return the most CPUs that each worker can have, 1 at most, where one whole CPU of a node is left; 0: none."""
    shares = {1.0} | {
        (size - kept) / num
        for size in set(sizes)
        for kept in (0.0, 1.0)
        for num in range(1, workers + 1)
    }
    falling = sorted((share for share in shares if 0 < share <= 1), reverse=True)
    return next((share for share in falling if _leaves_one(sizes, workers, share)), 0.0)


def _leaves_one(sizes: Sequence[float], workers: int, each: float) -> bool:
    """Tell whether workers that fill node after node leave a whole CPU somewhere, whichever node is the last."""
    places = [math.floor(size / each + 1e-9) for size in sizes]
    beside = [math.floor((size - FOR_DATA["CPU"]) / each + 1e-9) for size in sizes]
    if any(whole == less for whole, less in zip(places, beside, strict=True)):
        return sum(places) >= workers  # a node that is full has one left all the same
    return all(
        sum(places) - whole + less >= workers for whole, less in zip(places, beside, strict=True)
    )


def pick_device(resources: Resources) -> str:
    """Return the device of the workers.

    Raises:
        ResourceError: it is not there.
    """
    device = "cuda" if resources.gpus else "cpu"
    if resources.device != "auto":
        device = resources.device
    if device == "cuda" and resources.workers == 0 and not torch.cuda.is_available():
        raise ResourceError(
            "--device cuda was asked for and this machine has no CUDA device; use --device cpu."
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ResourceError(
            "--device mps was asked for and this machine has no Apple GPU; use --device cpu."
        )
    return device
