"""Checkpoints: the full training state, atomic, checksummed, readable by any number of workers.

    checkpoints/
        step-00000420/
            __0_0.distcp ...  model and optimiser, sharded by torch.distributed.checkpoint
            .metadata         its index (a pickle, of which nothing is run: see `plain`)
            position.json     epoch, step, best value, gradient scaler...
            checksums.json    SHA-256 of every other file, written last

A folder is filled under a hidden name and renamed when complete. Loading takes the newest folder
whose checksums hold. What is drawn at random is keyed by seed and position, so there is no
generator state to save.
"""

import json
import pickle
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from assay.errors import CheckpointError, DiskError, RunError
from assay.files import describe, read_json, reading, sha256_of
from assay.train.plain import PlainPlanner, PlainReader
from assay.train.share import leads


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay on disk."""

    last: int = 2
    """The newest."""
    every: int = 0
    """Updates between two of those that stay for good; 0: none."""

    def prune(self, folder: Path) -> None:
        """Remove all others: of those for good, the first at or after each multiple of `every` stays."""
        steps, previous = _steps(folder), 0
        for step, path in steps[: -self.last]:
            multiple = step // self.every if self.every else 0
            if multiple == previous:
                shutil.rmtree(path, ignore_errors=True)
            previous = multiple


KEEP = Keep()
"""What stays where nothing else is asked for."""


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """List checkpoints, the newest last; a copy that a person made of one (step-00000420-old) is none."""
    paths = [path for path in folder.glob("step-*") if re.fullmatch("step-[0-9]{8,}", path.name)]
    return sorted((int(path.name.removeprefix("step-")), path) for path in paths)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def save(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: dict[str, Any],
    keep: Keep = KEEP,
) -> Path:
    """Write `folder/step-<step>`, and remove what need not be kept; every rank must call it.

    Where the ranks share no storage, each node holds what its own ranks wrote (see `share`).
    """
    rank, is_leading = dist.get_rank() if dist.is_initialized() else 0, leads(folder)
    final = folder / f"step-{step:08d}"
    hidden = folder / f".step-{step:08d}"
    if is_leading:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
    _barrier()
    model_state, optimizer_state = get_state_dict(module, optimizer)
    with warnings.catch_warnings():
        # dcp says that it saves in a single process; that is what is wanted
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        try:
            state_dict_saver.save(
                {"model": model_state, "optimizer": optimizer_state}, checkpoint_id=hidden
            )
        except CheckpointException as error:
            if any(isinstance(fault, KeyboardInterrupt) for fault, _ in error.failures.values()):
                raise KeyboardInterrupt from None
            raise DiskError(
                f"The checkpoint {final} cannot be written ({_reasons(error)}); free space and give the same command again, which goes on from the one before."
            ) from error
    _barrier()
    if rank == 0:
        (hidden / "position.json").write_text(json.dumps(position))
    sums = _of_all_nodes(_checksums(hidden) if is_leading else {})
    if is_leading:
        if rank == 0:
            (hidden / "checksums.json").write_text(json.dumps(sums))
        shutil.rmtree(final, ignore_errors=True)
        hidden.rename(final)
        keep.prune(folder)
    _barrier()
    return final


def _of_all_nodes(sums: dict[str, str]) -> dict[str, str]:
    if not dist.is_initialized():
        return sums
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, sums)
    return {name: digest for part in parts for name, digest in part.items()}


def _checksums(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.iterdir() if path.name != "checksums.json")
    return {path.name: sha256_of(path) for path in paths}


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint whose checksums hold, or None where none was ever written.

    Raises:
        CheckpointError: checkpoints exist and all of them are damaged.
    """
    paths = [path for _, path in reversed(_steps(folder))]
    for path in paths:
        if _is_whole(path):
            return path
        warnings.warn(
            f"The checkpoint {path} is damaged; falling back to the one before.", stacklevel=2
        )
    if paths:
        raise CheckpointError(
            f"All {len(paths)} checkpoints in {folder} are damaged; delete the folder to train from the start."
        )
    return None


def _is_whole(path: Path) -> bool:
    try:
        with reading(path):
            return read_json(path / "checksums.json") == _checksums(path)
    except RunError:
        return False


def load(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore module and optimiser in place, on any number of workers; return the position.

    Raises:
        CheckpointError: the checkpoint belongs to another model.
    """
    model_state, optimizer_state = get_state_dict(module, optimizer)
    try:
        saved = PlainReader(path).read_metadata().state_dict_metadata
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"The checkpoint {path} is none of ours ({error}); delete its folder to go on from the one before."
        ) from None
    _refuse_other_model(path, model_state, saved)
    # parameters that had rested so far (no gradient yet) had no state, and get none
    moments: Any = optimizer_state["state"]
    optimizer_state["state"] = {
        name: moment
        for name, moment in moments.items()
        if any(key.startswith(f"optimizer.state.{name}.") for key in saved)
    }
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
            state_dict_loader.load(state, storage_reader=PlainReader(path), planner=PlainPlanner())
    except CheckpointException as error:
        raise _misfit(path, _reasons(error)) from error
    set_state_dict(
        module,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(strict=False),
    )
    position: dict[str, Any] = json.loads((path / "position.json").read_text())
    return position


def _refuse_other_model(path: Path, model_state: Mapping[str, Any], saved: Iterable[str]) -> None:
    """Refuse names that do not agree in both directions; shapes are compared by dcp."""
    names = {name.removeprefix("model.") for name in saved if name.startswith("model.")}
    different = sorted(names ^ set(model_state))
    if different:
        side = "the checkpoint" if different[0] in names else "this model"
        raise _misfit(path, f"only {side} has {different[0]}")


def _reasons(error: CheckpointException) -> str:
    """Tell what went wrong on the workers, each fault once."""
    return "; ".join(dict.fromkeys(describe(failure[0]) for failure in error.failures.values()))


def _misfit(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {path} does not fit this model ({reason}); use the settings it was trained with."
    )
