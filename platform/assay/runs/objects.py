"""The objects of one run on object storage: read, written and copied, with sentences for what fails."""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from assay.errors import RunError
from assay.files import replacing
from assay.runs.index import PIECE, Synced, synced
from assay.storage import reach, reaching, refuse_without_room


@dataclass(frozen=True)
class Objects:
    """The objects below one name."""

    address: str
    """URI of the storage."""
    name: str

    @property
    def _place(self) -> tuple[pafs.FileSystem, str]:
        files, root = reach(self.address)
        return files, f"{root}/{self.name}".rstrip("/")

    def read(self, name: str, most: int) -> bytes | None:
        """Read an object of at most so many bytes; None where there is none."""
        files, root = self._place
        with reaching(self.address):
            try:
                with files.open_input_file(f"{root}/{name}") as file:
                    content: bytes = file.read(most + 1)
            except FileNotFoundError:
                return None
        if len(content) > most:
            raise RunError(
                f"{self.name}/{name} in {self.address} is larger than {most >> 20} MiB, as none of ours is; delete it there."
            )
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        files, root = self._place
        with reaching(self.address), files.open_output_stream(f"{root}/{name}") as file:
            file.write(content)

    def list(self, name: str = "") -> list[Any]:
        """List what lies directly below a name, as pyarrow describes it."""
        files, root = self._place
        selector = pafs.FileSelector(f"{root}/{name}".rstrip("/"), allow_not_found=True)
        with reaching(self.address):
            return files.get_file_info(selector)

    def modified(self, name: str) -> float | None:
        """Tell when an object was written, by the storage's clock in seconds; None where there is none."""
        files, root = self._place
        with reaching(self.address):
            info = files.get_file_info(f"{root}/{name}")
        return info.mtime_ns / 1e9 if info.type == pafs.FileType.File else None

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        files, root = self._place
        with reaching(self.address), suppress(FileNotFoundError):
            files.delete_file(f"{root}/{name}")

    def send(self, path: Path, name: str) -> Synced:
        """Copy a file to the storage."""
        files, root = self._place
        seen, before = hashlib.sha256(), synced(path, "")
        with (
            path.open("rb") as file,
            reaching(self.address),
            files.open_output_stream(f"{root}/{name}") as out,
        ):
            while piece := file.read(PIECE):
                seen.update(piece)
                out.write(piece)
        return Synced(before.size, before.mtime_ns, seen.hexdigest())

    def fetch(self, name: str, target: Path, mtime_ns: int) -> Synced:
        """Copy an object here, whole or not at all, with a time of modification."""
        files, root = self._place
        seen = hashlib.sha256()
        with replacing(target) as hidden, reaching(self.address), hidden.open("xb") as out:
            try:
                with files.open_input_file(f"{root}/{name}") as file:
                    refuse_without_room(name, target.parent, file.size())
                    while piece := file.read(PIECE):
                        seen.update(piece)
                        out.write(piece)
            except FileNotFoundError:
                raise RunError(
                    f"{self.name} in {self.address} has lost its file {name}; restore it, or train the run again with --again."
                ) from None
        os.utime(target, ns=(mtime_ns, mtime_ns))
        return synced(target, seen.hexdigest())
