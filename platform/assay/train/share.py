"""What workers of several nodes have written, brought together on object storage.

Nodes that share a folder have nothing to bring together. On others each holds the parts of a
checkpoint that its own workers wrote; the first worker of a node copies these, and that of the first
node copies the rest and then lists all of it.
"""

import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from assay.errors import RunError
from assay.runs.claim import MARK
from assay.runs.index import read_state
from assay.runs.lease import holder_of, us
from assay.runs.remote import mirror_of, try_push


def leads(folder: Path) -> bool:
    """Tell whether this worker writes what its node has once, in a run's folder or below."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        return True
    mirror = mirror_of(folder)
    if mirror is None or os.environ.get("LOCAL_RANK") != "0":
        return False
    driver = holder_of(
        mirror.folder / MARK
    )  # which is there on its own node, unless nodes share a home
    return driver is None or driver.host == us().host


def share(folder: Path) -> None:
    """Push a run, where it is on object storage; every worker must call it.

    Raises:
        TakenOverError: another machine has the run now.
    """
    mirror = mirror_of(folder)
    if mirror is None:
        return
    parts: list[Any] = [{}]
    if dist.is_initialized() and dist.get_world_size() > 1:
        part: Any = {}
        if leads(folder) and dist.get_rank() > 0:
            try:
                part = mirror.upload(read_state(folder).files, below="checkpoints/")
            except RunError as error:
                part = error
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, part)
    if not dist.is_initialized() or dist.get_rank() == 0:
        failed = [part for part in parts if isinstance(part, RunError)]
        others = {name: file for part in parts if part not in failed for name, file in part.items()}
        try_push(folder, None if failed else others)


def fetch(folder: Path) -> None:
    """Bring to each node what the storage has, before any worker writes; every worker must call it.

    Raises:
        RunError: the storage cannot be used.
    """
    mirror = mirror_of(folder)
    if mirror is None:
        return
    num = dist.get_world_size() if dist.is_initialized() else 1
    if leads(folder):
        # nodes resume from one checkpoint, so what one of them could not push goes
        mirror.pull(is_exact=os.environ.get("LOCAL_WORLD_SIZE", str(num)) != str(num))
    if num > 1:
        dist.barrier()
