"""The right to write a run on object storage: one claim at a time, which ends by itself.

    <URI>/<run>/claims/<chance>.json    the host and process that write; renewed every 30 s
    <mirror>/.claim                     the name of the claim that this machine has

Who wants to write puts a claim of its own there and then lists them all: of two at once at least the
later sees the other's, and gives way. This needs no conditional write, which not every object store
has. Claims are as old as the storage's clock says, so clocks of machines do not matter.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.fs as pafs

from assay.errors import RunError
from assay.files import write_whole
from assay.runs.index import CLAIMS
from assay.runs.objects import Objects

STALE_S, RENEW_S = 180.0, 30.0
"""A claim that was not renewed for so long is nobody's; how often it is renewed."""

MARK = ".claim"

MOST_CLAIM_BYTES = 1 << 16


class TakenOverError(RunError):
    """Another machine writes the run now, and this one may not."""


@dataclass(frozen=True)
class Claim:
    """A claim of this process."""

    folder: Path
    objects: Objects
    name: str
    holder: bytes
    """Who it is, as JSON."""

    @classmethod
    def take(cls, folder: Path, objects: Objects, holder: Any) -> "Claim":
        """Claim the right to write.

        Args:
            folder: the mirror; no other process of this machine writes there.
            objects: the run's.
            holder: host and process.

        Raises:
            RunError: another machine has it; names it.
        """
        with suppress(FileNotFoundError):  # of a process of this machine that was killed
            objects.delete(f"{CLAIMS}/{Path((folder / MARK).read_text()).name}")
        claim = cls(folder, objects, f"{uuid4().hex}.json", json.dumps(holder).encode())
        objects.write(f"{CLAIMS}/{claim.name}", claim.holder)
        try:
            claim._refuse_others()
        except BaseException:
            objects.delete(f"{CLAIMS}/{claim.name}")
            raise
        write_whole(folder / MARK, claim.name.encode())
        return claim

    def _refuse_others(self) -> None:
        now = self.objects.modified(f"{CLAIMS}/{self.name}")
        others = [info for info in self.objects.list(CLAIMS) if info.base_name != self.name]
        for info in others:
            if info.type == pafs.FileType.File and (now or 0.0) - info.mtime_ns / 1e9 < STALE_S:
                who = _describe(self.objects.read(f"{CLAIMS}/{info.base_name}", MOST_CLAIM_BYTES))
                raise RunError(
                    f"{self.objects.name} in {self.objects.address} is being written by {who}; wait for it, or end that process and wait {STALE_S:g} s."
                )
        for info in others:
            self.objects.delete(f"{CLAIMS}/{info.base_name}")

    def renew(self) -> None:
        """Say that the process lives; a claim that was taken away is not renewed."""
        if self.objects.modified(f"{CLAIMS}/{self.name}") is not None:
            self.objects.write(f"{CLAIMS}/{self.name}", self.holder)

    def end(self) -> None:
        """Give it up."""
        (self.folder / MARK).unlink(missing_ok=True)
        self.objects.delete(f"{CLAIMS}/{self.name}")

    @staticmethod
    def check(folder: Path, objects: Objects) -> None:
        """Look whether this machine's claim still stands; on a node that has none another's counts.

        Raises:
            TakenOverError: another machine has taken it.
        """
        try:
            name = Path((folder / MARK).read_text()).name
        except FileNotFoundError:
            return
        if objects.modified(f"{CLAIMS}/{name}") is None:
            raise TakenOverError(
                f"{objects.name} in {objects.address} was taken over by another machine, since nothing was heard from here for {STALE_S:g} s; "
                "nothing more is pushed from here."
            )


def _describe(content: bytes | None) -> str:
    """Say who holds a claim, as far as it tells."""
    try:
        holder = json.loads(content or b"")
        return f"process {int(holder['pid'])} on {str(holder['host'])[:100]!r}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "another process"
