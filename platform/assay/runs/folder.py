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

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.errors import RunError
from assay.files import remove_unfinished
from assay.runs.lease import LEASE, give_back, holder_of, take, us
from assay.runs.record import RunRecord, State, record_of, write_record
from assay.runs.remote import writing


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
        return record_of(self.folder)

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

        What is on object storage is pulled first, without what training alone needs, and pushed at the end.

        Raises:
            RunError: another process holds it, or object storage cannot be used.
        """
        path = self.folder / LEASE
        self.folder.mkdir(parents=True, exist_ok=True)
        is_new = holder_of(path) != us()
        if holder := take(path):
            raise RunError(
                f"{self.folder} is being written by {holder}; wait for it, or end that process."
            )
        if is_new:
            remove_unfinished(self.folder)
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(30):
                with suppress(OSError):  # a lease that is not renewed becomes nobody's
                    path.touch()

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            with writing(self.folder):
                yield
        finally:
            ended.set()
            thread.join()
            give_back(path)
