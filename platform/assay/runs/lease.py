"""The right of one process to write a run's folder."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from assay.errors import RunError
from assay.files import read_json, reading, write_json
from assay.typed import from_json

STALE_LEASE_S = 180
"""A lease of another machine that was not renewed for so long is nobody's."""

LEASE, WRITER = "lease.json", ".writer.json"
"""Who writes a run: of the processes that share its folder, and of those on other machines as was last seen on object storage."""


@dataclass(frozen=True)
class Holder:
    """Contents of lease.json: the process that writes a run."""

    host: str
    pid: int
    space: str = ""
    """The namespace of its pid: containers may share the name of a host, and count processes apart; "" where the system has none."""
    began: str = ""
    """When it began, by the system's count: a pid is given to others later."""


def us() -> Holder:
    """Name this process."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return Holder(socket.gethostname(), os.getpid(), space, _began(os.getpid()))


def is_held(lease: Path) -> bool:
    """Tell whether a living process holds a lease: on this host its process is there, be it asleep; elsewhere it was renewed of late."""
    holder, here = holder_of(lease), us()
    if holder is None:
        return False
    if holder.began and (holder.host, holder.space) == (here.host, here.space):
        return _began(holder.pid) == holder.began
    try:
        if time.time() - lease.stat().st_mtime >= STALE_LEASE_S:
            return False
        if holder.host == here.host and not holder.space:  # which tells no more than its pid
            os.kill(holder.pid, 0)
    except (FileNotFoundError, ProcessLookupError, OverflowError):  # or no number of a process
        return False
    except PermissionError:  # another user's
        return True
    return True


def take(lease: Path) -> str:
    """Write a lease of this process; return who has it instead, "" where nobody does: of several that try at once one succeeds."""
    with _locked(lease.parent):
        before = holder_of(lease)
        if before == us():
            return ""
        return _tell(before) if is_held(lease) else _replace(lease, before)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let no other process take a lease in this folder meanwhile, where its file system has such locks (NFS has none of folders)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(lease: Path, before: Holder | None) -> str:
    """Put our lease in the place of a dead one, if it still is that one; return who was faster, or ""."""
    # no name that its new holder would clear away as unfinished
    aside = lease.with_name(f".{lease.name}-{uuid4().hex}")
    try:
        with suppress(FileNotFoundError):
            lease.rename(aside)
            if (now := holder_of(aside)) != before:  # another was faster
                aside.rename(lease)
                return _tell(now)
        write_json(aside, vars(us()))
        try:
            os.link(aside, lease)
        except (FileExistsError, FileNotFoundError):  # or whoever took it has cleared ours away
            return _tell(holder_of(lease))
        except OSError:  # a file system without links
            aside.replace(lease)
        _clear_aside(lease)
    finally:
        aside.unlink(missing_ok=True)
    return ""


def _clear_aside(lease: Path) -> None:
    """Remove what processes left that ended while they took a lease; not ours, which another may just have moved and puts back."""
    for path in lease.parent.glob(f".{lease.name}-*"):
        if holder_of(path) != us():
            path.unlink(missing_ok=True)


def _tell(holder: Holder | None) -> str:
    return f"process {holder.pid} on {holder.host}" if holder else "another process"


def give_back(lease: Path) -> None:
    """End a lease of this process; another's stays."""
    if holder_of(lease) == us():
        lease.unlink(missing_ok=True)


def holder_of(lease: Path) -> Holder | None:
    """Read who holds a lease; None where nobody does, or where it does not say who."""
    try:
        with reading(lease):
            return from_json(Holder, read_json(lease))
    except RunError:
        return None


def _began(pid: int) -> str:
    """Return when a process of this system began, by its own count; "" where there is none that lives, or the system does not tell."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]
