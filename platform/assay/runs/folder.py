"""A run: one training of one task on one manifest, and its directory.

    runs/fingerprint-3f2a.../
        run.json             schema, state, launches, code stamp, quarantined files, warnings; written atomically
        config.json          what is computed; pass it back with --config to replay
        split.parquet        the manifest with the drawn sets
        metrics.jsonl        see `telemetry`
        checkpoints/         see `checkpoint`
        best/weights.safetensors
        predictions.parquet  one row per judged image: every number is computed from it
        result.json          the numbers; comparison.json: beside the baselines
        samples/             images of the report
        report.html          see `report`
        bundle/              what ships
        lease.json           who is writing

A run is identified by *what* it computes (settings, data, source of the task and of the modules it
trains with), not by *where*; the same command finds the same directory again.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.errors import RunError
from assay.files import read_json, reading, write_json
from assay.runs.record import RunRecord, State, read_record, write_record
from assay.typed import from_json

STALE_LEASE_S = 180
"""A lease that was not renewed for so long is nobody's."""


@dataclass(frozen=True)
class Run:
    """One run's directory."""

    folder: Path

    @property
    def record(self) -> RunRecord:
        """Contents of run.json, or nothing where the run is new.

        Raises:
            RunError: run.json is damaged, or was written by a newer Assay.
        """
        return read_record(self.folder) if (self.folder / "run.json").exists() else RunRecord()

    def note(self, **fields: Any) -> None:
        """Change fields of run.json."""
        write_record(self.folder, replace(self.record, **fields))

    def warn(self, text: str) -> None:
        """Keep a monitor's warning in run.json, once."""
        warnings = self.record.warnings
        if text not in warnings:
            self.note(warnings=(*warnings, text))

    @property
    def state(self) -> State:
        """How far the run came."""
        return self.record.state

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the right to write; renewed every 30 s, given up at the end.

        Raises:
            RunError: another process holds it.
        """
        path = self.folder / "lease.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        holder = _holder(path)
        if holder is not None and is_held(path) and holder != _us():
            raise RunError(
                f"{self.folder} is being written by process {holder.pid} on {holder.host}; wait for it, or end that process."
            )
        write_json(path, vars(_us()))
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(30):
                with suppress(OSError):  # a lease that is not renewed becomes nobody's
                    path.touch()

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            path.unlink(missing_ok=True)


def is_held(lease: Path) -> bool:
    """Tell whether a living process holds a lease: it was renewed of late and, on this host, its process is there."""
    holder = _holder(lease)
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


def _us() -> Holder:
    return Holder(socket.gethostname(), os.getpid())


def _holder(lease: Path) -> Holder | None:
    """Read who holds a lease; None where nobody does, or where it does not say who."""
    try:
        with reading(lease):
            return from_json(Holder, read_json(lease))
    except RunError:
        return None
