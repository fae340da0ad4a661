"""A run's best weights, as a file that any task of the same settings can load."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from assay.errors import AssayError, DiskError, RunError
from assay.files import reading, replacing
from assay.train.predict import world
from assay.train.task import Task


def _file(folder: Path) -> Path:
    return folder / "best" / "weights.safetensors"


def save_best(task: Task, folder: Path) -> None:
    """Save the weights as the run's best; all workers call it, and the first one writes.

    Raises:
        DiskError: the file cannot be written.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(task, options=options)
    rank, _ = world()
    if rank:
        return
    path = _file(folder)
    try:
        with replacing(path) as hidden:
            save_file({k: v.contiguous() for k, v in state.items()}, hidden)
    except SafetensorError as error:  # which holds the disk's fault as a text
        raise DiskError(
            f"{path} cannot be written ({error}); free space and give the same command again, which goes on from the last checkpoint."
        ) from None


def load_best(task: Task, folder: Path) -> None:
    """Load a run's best weights into a fresh, unsharded task.

    Raises:
        RunError: the run has no best weights, they are damaged, or another model's.
    """
    path = _file(folder)
    if not path.is_file():
        raise RunError(f"{folder} has no best weights yet; train it first.")
    with reading(path):
        weights = load_file(path)
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"The weights in {path} do not fit this model ({str(error).splitlines()[0]}); use the run's own settings."
        ) from None


def share_best(task: Task, folder: Path) -> None:
    """Load a run's best weights from the first worker's disk into each worker's fresh, unsharded task.

    They go over the group and not over the storage, which other nodes would find as it was where the
    first one could not push.

    Raises:
        AssayError: on all workers, what `load_best` raises on the first.
    """
    rank, num = world()
    fault: list[AssayError | None] = [None]
    if rank == 0:
        try:
            load_best(task, folder)
        except AssayError as error:
            fault = [error]
    if num > 1:
        dist.broadcast_object_list(fault)
    if fault[0] is not None:
        raise fault[0]
    if num > 1:
        for tensor in task.state_dict().values():
            dist.broadcast(tensor, 0)
