"""A run's best weights, as a file that any task of the same settings can load."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from assay.errors import DiskError, RunError
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
