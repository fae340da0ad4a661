"""The right of one process to write a run's folder."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from assay.errors import RunError
from assay.files import read_json, reading
from assay.typed import from_json

STALE_LEASE_S = 180
"""A lease that was not renewed for so long is nobody's."""

LEASE, WRITER = "lease.json", ".writer.json"
"""Who writes a run: of the processes that share its folder, and of those on other machines as was last seen on object storage."""


def is_held(lease: Path) -> bool:
    """Tell whether a living process holds a lease: it was renewed of late and, on this host, its process is there."""
    holder = holder_of(lease)
    if holder is None or time.time() - lease.stat().st_mtime >= STALE_LEASE_S:
        return False
    if holder.host != socket.gethostname():
        return True
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):  # no process, or no number of one
        return False
    except PermissionError:  # another user's
        return True
    return True


@dataclass(frozen=True)
class Holder:
    """Contents of lease.json: the process that writes a run."""

    host: str
    pid: int


def us() -> Holder:
    """Name this process."""
    return Holder(socket.gethostname(), os.getpid())


def holder_of(lease: Path) -> Holder | None:
    """Read who holds a lease; None where nobody does, or where it does not say who."""
    try:
        with reading(lease):
            return from_json(Holder, read_json(lease))
    except RunError:
        return None
