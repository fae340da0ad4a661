"""The right to write a run on object storage: one claim at a time, which ends by itself.

    <URI>/<run>/claims/<chance>.json    the host and process that write; renewed every 30 s
    <mirror>/.claim                     the same of this machine, with the name of its claim

Who wants to write puts a claim of its own there and then lists them all: of two at once at least the
later sees the other's, and gives way. This needs no conditional write, which not every object store
has. Claims are as old as the storage's clock says, so clocks of machines do not matter.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow.fs as pafs

from assay.errors import RunError
from assay.files import read_json, write_json
from assay.runs.index import CLAIMS
from assay.runs.lease import holder_of, is_held, us
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
    def take(cls, folder: Path, objects: Objects) -> "Claim":
        """Claim the right to write.

        Args:
            folder: the mirror.
            objects: the run's.

        Raises:
            RunError: another process has it; names it.
        """
        mark, before = folder / MARK, holder_of(folder / MARK)
        if before is not None and is_held(mark) and before != us():
            raise cls._refusal(objects, f"process {before.pid} on {before.host!r}")
        if before is not None and before.host == us().host:  # it was killed
            objects.delete(f"{CLAIMS}/{_name_in(mark)}")
        claim = cls(folder, objects, f"{uuid4().hex}.json", json.dumps(vars(us())).encode())
        objects.write(f"{CLAIMS}/{claim.name}", claim.holder)
        try:
            claim._refuse_others()
        except BaseException:
            objects.delete(f"{CLAIMS}/{claim.name}")
            raise
        write_json(mark, vars(us()) | {"name": claim.name})
        return claim

    def _refuse_others(self) -> None:
        now = self.objects.modified(f"{CLAIMS}/{self.name}")
        others = [info for info in self.objects.list(CLAIMS) if info.base_name != self.name]
        for info in others:
            if info.type == pafs.FileType.File and (now or 0.0) - info.mtime_ns / 1e9 < STALE_S:
                who = _describe(self.objects.read(f"{CLAIMS}/{info.base_name}", MOST_CLAIM_BYTES))
                raise self._refusal(self.objects, who)
        for info in others:
            self.objects.delete(f"{CLAIMS}/{info.base_name}")

    @staticmethod
    def _refusal(objects: Objects, who: str) -> RunError:
        return RunError(
            f"{objects.name} in {objects.address} is being written by {who}; wait for it, or end that process and wait {STALE_S:g} s."
        )

    def renew(self) -> None:
        """Say that the process lives; a claim that was taken away is not renewed."""
        with suppress(OSError):
            (self.folder / MARK).touch()
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
        name = _name_in(folder / MARK)
        if name and objects.modified(f"{CLAIMS}/{name}") is None:
            raise TakenOverError(
                f"{objects.name} in {objects.address} was taken over by another machine, since nothing was heard from here for {STALE_S:g} s; "
                "nothing more is pushed from here."
            )


def _name_in(mark: Path) -> str:
    """Read the name of this machine's claim; "" where it has none."""
    try:
        return Path(str(read_json(mark).get("name", ""))).name
    except RunError:
        return ""


def _describe(content: bytes | None) -> str:
    """Say who holds a claim, as far as it tells."""
    try:
        holder = json.loads(content or b"")
        return f"process {int(holder['pid'])} on {str(holder['host'])[:100]!r}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "another process"
