"""Checkpoints: the full training state, atomic, checksummed, readable by any number of workers.

    checkpoints/
        step-00000420/
            __0_0.distcp ...  model and optimiser, sharded by torch.distributed.checkpoint
            .metadata         its index (a pickle: loaded only from the user's own run directory)
            position.json     epoch, step, best value, gradient scaler...
            checksums.json    SHA-256 of every other file, written last

A folder is filled under a hidden name and renamed when complete. Loading takes the newest folder
whose checksums hold. What is drawn at random is keyed by seed and position, so there is no
generator state to save.
"""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from assay.errors import CheckpointError

KEEP = 2
"""Checkpoints that stay on disk."""


def _ranks() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def save(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: dict[str, Any],
) -> Path:
    """Write `folder/step-<step>`; every rank must call it, on storage that all ranks share."""
    rank, _ = _ranks()
    final = folder / f"step-{step:08d}"
    hidden = folder / f".step-{step:08d}"
    if rank == 0:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
    _barrier()
    model_state, optimizer_state = get_state_dict(module, optimizer)
    with warnings.catch_warnings():
        # dcp says that it saves in a single process; that is what is wanted
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=hidden)
    _barrier()
    if rank == 0:
        (hidden / "position.json").write_text(json.dumps(position))
        (hidden / "checksums.json").write_text(json.dumps(_checksums(hidden)))
        shutil.rmtree(final, ignore_errors=True)
        hidden.rename(final)
        for old in sorted(folder.glob("step-*"))[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    _barrier()
    return final


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(p for p in folder.iterdir() if p.name != "checksums.json"):
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose checksums hold, or None where none was ever written.

    Raises:
        CheckpointError: checkpoints exist and all of them are damaged.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        try:
            sums = json.loads((path / "checksums.json").read_text())
        except (OSError, ValueError):
            sums = None
        if sums is not None and sums == _checksums(path):
            return path
        warnings.warn(
            f"The checkpoint {path} is damaged; falling back to the one before.", stacklevel=2
        )
    if found:
        raise CheckpointError(
            f"All {len(found)} checkpoints in {folder} are damaged; delete the folder to train from the start."
        )
    return None


def load(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore module and optimiser in place, on any number of workers; returns the position.

    Raises:
        CheckpointError: the checkpoint belongs to another model.
    """
    model_state, optimizer_state = get_state_dict(module, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
            dcp.load(state, checkpoint_id=path)
    except (RuntimeError, KeyError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise CheckpointError(
            f"The checkpoint {path} does not fit this model ({first_line}); use the settings it was trained with."
        ) from error
    set_state_dict(
        module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    position: dict[str, Any] = json.loads((path / "position.json").read_text())
    return position
