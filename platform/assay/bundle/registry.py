"""The registry: which bundle answers for a task, on a folder or on object storage.

    <address>/<task>/
        <version>/bundle/             a copy of a bundle, never changed; bundle.json written last
        <version>/judged.parquet      its test rows, to compare the next one on
        history/<time>-<id>.json      one record per promotion or rollback, never changed
        champion.json                 the record in force; challenger.json; written last

A version is the first 12 hex digits of the SHA-256 of bundle.json, which holds the SHA-256 of every
other file. Of two promotions at once the last wins, and both are in the history.
"""

import errno
import hashlib
import io
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from assay.bundle.aliases import ALIASES
from assay.bundle.card import CACHE, MOST_BYTES, NAME, Card, parse_card
from assay.errors import RegistryError
from assay.files import read_bytes, refuse_special
from assay.storage import FREE_BYTES, reach, whole
from assay.typed import from_json

SCHEMA = 1

TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""A task's name, which is a folder here."""


RESERVED = frozenset(
    {
        *("docs", "front", "health", "healthz", "login", "metrics", "models", "openapi"),
        *("page", "ready", "redoc", "routes", "static", "v1"),
    }
)
"""What no task may be called, since the server has paths or applications of these names."""


PIECE = 16 << 20
"""Bytes that are read at once."""


MOST_RECORD_BYTES, MOST_ROWS_BYTES = 16 << 20, 1 << 30
"""Largest record, and largest table of test rows."""


_RECORD_NAME = re.compile(r"[0-9]{18}-[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One promotion, or one step back."""

    id: str
    """Its name in the history: time and chance."""
    task: str
    alias: str
    version: str
    sha256: str
    """Of bundle.json."""
    kind: str
    """promoted or rolled back."""
    time: float
    """Seconds since 1970."""
    previous: str
    """The record that a rollback returns to, or ""."""
    reason: str
    """Why it was forced, or ""."""
    objections: list[str]
    """What stood against it, and was overruled by the reason."""
    run: str
    data: str
    """Fingerprint of the manifest."""
    code: dict[str, Any]
    """Versions it was made with."""
    metrics: dict[str, Any]
    """Of each test set, every number with its interval."""
    comparisons: list[dict[str, Any]]
    """Against the champion of that moment, on the same test rows."""


class Registry:
    """Bundles by task and alias.

    Args:
        address: a folder, or the URI of one (s3://, gs://, abfs://, file://); credentials come from
            the environment as for pyarrow.fs.
        cache: where bundles from an URI are copied to.

    Raises:
        ConfigError: the address cannot be used.
    """

    def __init__(self, address: str, cache: Path = CACHE) -> None:
        self.address, self.cache = address, cache.expanduser()
        self.files, self.root = reach(address)

    def tasks(self) -> list[str]:
        """List the tasks that have any record, but for names that no task may have."""
        names = [name for name in self._list("") if TASK_NAME.fullmatch(name)]
        return sorted(set(names) - RESERVED)

    def reserved(self) -> list[str]:
        """List what lies here under a name that no task may have; nothing answers for it."""
        return sorted(RESERVED.intersection(self._list("")))

    def holder(self, task: str, alias: str) -> Record | None:
        """Read the record in force; None where the alias was never given."""
        content = self._read(f"{task}/{alias}.json", MOST_RECORD_BYTES)
        return None if content is None else self._record(task, f"{alias}.json", content)

    def history(self, task: str) -> list[Record]:
        """Read every record of a task, the oldest first."""
        names = [name for name in self._list(f"{task}/history") if name.endswith(".json")]
        return [self.record(task, name.removesuffix(".json")) for name in sorted(names)]

    def record(self, task: str, name: str) -> Record:
        """Read a record of the history.

        Raises:
            RegistryError: it is gone or damaged.
        """
        path = f"history/{name}.json"
        has_name = _RECORD_NAME.fullmatch(name)
        content = self._read(f"{task}/{path}", MOST_RECORD_BYTES) if has_name else None
        return self._record(task, path, content or b"")

    def test_rows(self, record: Record) -> pa.Table:
        """Read the test rows that a version was judged on.

        Raises:
            RegistryError: they are gone.
        """
        content = self._read(f"{record.task}/{record.version}/judged.parquet", MOST_ROWS_BYTES)
        try:
            return pq.ParquetFile(
                io.BytesIO(content or b""), page_checksum_verification=True
            ).read()
        except (pa.ArrowException, OSError):
            raise RegistryError(
                f"The registry {self.address} has lost the test rows of {record.task} {record.version}; restore them, or force the promotion by --force REASON."
            ) from None

    def add(self, folder: Path, test_rows: pa.Table) -> tuple[str, str]:
        """Copy a bundle and its test rows, unless they are there; return version and SHA-256."""
        card = read_bytes(folder / "bundle.json")
        content = json.loads(card)
        task, sha256 = content["task"], hashlib.sha256(card).hexdigest()
        home = f"{task}/{sha256[:12]}"
        if self._read(f"{home}/bundle/{NAME}", MOST_BYTES) == card:
            return sha256[:12], sha256
        parquet = io.BytesIO()
        pq.write_table(test_rows, parquet, write_page_checksum=True)
        self._write(f"{home}/judged.parquet", parquet.getvalue())
        for name in content["sha256"]:
            self._write(f"{home}/bundle/{name}", read_bytes(folder / name))
        self._write(f"{home}/bundle/{NAME}", card)
        return sha256[:12], sha256

    def point(self, record: Record) -> None:
        """Write a record into the history, then put it in force."""
        content = json.dumps({"schema": SCHEMA} | asdict(record), indent=1).encode()
        self._write(f"{record.task}/history/{record.id}.json", content)
        self._write(f"{record.task}/{record.alias}.json", content)

    def fetch(self, record: Record) -> Path:
        """Return a folder on this machine with the bundle of a record.

        Raises:
            RegistryError: it is gone, or is another than the record says.
        """
        home = f"{record.task}/{record.version}/bundle"
        card = self.card(record)
        if isinstance(self.files, pafs.LocalFileSystem):
            return Path(self.root) / home
        folder = self.cache / record.sha256
        if not (folder / NAME).exists():
            self._download(home, {NAME: record.sha256, **card.sha256}, folder)
        return folder

    def card(self, record: Record) -> Card:
        """Read what the bundle of a record says of itself.

        Raises:
            RegistryError: it is gone, or is another than the record says.
            BundleError: it is of another schema.
        """
        name = f"{record.task}/{record.version}/bundle/{NAME}"
        content = self._read(name, MOST_BYTES)
        if content is None or hashlib.sha256(content).hexdigest() != record.sha256:
            raise RegistryError(
                f"The bundle {record.task} {record.version} in {self.address} is missing or was changed; promote the run again."
            )
        return parse_card(content, f"{name} of {self.address}")

    def _download(self, home: str, digests: Mapping[str, str], folder: Path) -> None:
        """Copy files of plain names to `folder`, by way of one that has a name of its own, so that two processes may.

        Raises:
            RegistryError: one is missing or changed, or there is no room for it.
        """
        hidden = self.cache / f".{uuid4().hex}"
        hidden.mkdir(parents=True)
        try:
            for name, digest in digests.items():
                self._copy(f"{home}/{name}", hidden / name, digest)
            with suppress(OSError):  # the other one was first
                hidden.rename(folder)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def _copy(self, name: str, target: Path, digest: str) -> None:
        """Copy a file piece by piece, and check its hash on the way."""
        seen = hashlib.sha256()
        try:
            with (
                self.files.open_input_file(f"{self.root}/{name}") as file,
                target.open("xb") as out,
            ):
                room = shutil.disk_usage(target.parent).free
                if file.size() > room - FREE_BYTES:
                    raise OSError(errno.ENOSPC, f"{file.size()} bytes of {name} have no room")
                while piece := file.read(PIECE):
                    seen.update(piece)
                    out.write(piece)
        except OSError as error:
            raise self._refusal(error) from None
        if seen.hexdigest() != digest:
            raise RegistryError(
                f"{name} in the registry {self.address} was changed after promotion; promote the run again."
            )

    def _record(self, task: str, path: str, content: bytes) -> Record:
        """Build a record that is of this task, and names nothing outside its folder."""
        name = f"{task}/{path}"
        try:
            values = json.loads(content)
            if values.pop("schema") > SCHEMA:
                raise RegistryError(
                    f"{name} of the registry {self.address} was written by a newer Assay; update Assay."
                )
            record = from_json(Record, values)
            names = [record.id, *filter(None, [record.previous])]
            if not (
                record.task == task
                and record.alias in ALIASES
                and 0 <= record.time < 1e11
                and re.fullmatch(r"[0-9a-f]{64}", record.sha256)
                and record.version == record.sha256[:12]
                and all(map(_RECORD_NAME.fullmatch, names))
            ):
                raise ValueError
            return record
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise RegistryError(
                f"{name} of the registry {self.address} is damaged; restore it, or take it away, and promote again if it was an alias."
            ) from None

    def _read(self, name: str, most: int) -> bytes | None:
        """Read a file of at most so many bytes; None where there is none."""
        try:
            if isinstance(self.files, pafs.LocalFileSystem):
                refuse_special(f"{self.root}/{name}")
            with self.files.open_input_file(f"{self.root}/{name}") as file:
                content: bytes = file.read(most + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refusal(error) from None
        if len(content) > most:
            raise RegistryError(
                f"{name} of the registry {self.address} is larger than {most >> 20} MiB; restore it, or promote again."
            )
        return content

    def _write(self, name: str, content: bytes) -> None:
        try:
            with (
                whole(self.files, f"{self.root}/{name}") as target,
                self.files.open_output_stream(target) as file,
            ):
                file.write(content)
        except OSError as error:
            raise self._refusal(error) from None

    def _list(self, name: str) -> list[str]:
        selector = pafs.FileSelector(f"{self.root}/{name}".rstrip("/"), allow_not_found=True)
        try:
            return [info.base_name for info in self.files.get_file_info(selector)]
        except OSError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> RegistryError:
        why = error.strerror or str(error).splitlines()[0]
        return RegistryError(
            f"The registry {self.address} cannot be used ({why}); check the address and your rights, or pass another --registry."
        )
