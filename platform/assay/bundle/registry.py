"""The registry: which bundle answers for a task, on a folder or on object storage.

    <address>/<task>/
        <version>/bundle/             a copy of a bundle, never changed; bundle.json written last
        <version>/judged.parquet      its test rows, to compare the next one on
        history/<time>-<id>.json      one record per promotion or rollback, never changed
        champion.json                 the record in force; challenger.json; written last

A version is the first 12 hex digits of the SHA-256 of bundle.json, which holds the SHA-256 of every
other file. Of two promotions at once the last wins, and both are in the history.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from assay.errors import RegistryError
from assay.storage import reach, whole

SCHEMA = 1

TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""A task's name, which is a folder here."""


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

    def __init__(self, address: str, cache: Path = Path("~/.cache/assay-bundles")) -> None:
        self.address, self.cache = address, cache.expanduser()
        self.files, self.root = reach(address)

    def tasks(self) -> list[str]:
        """List the tasks that have any record."""
        return sorted(name for name in self._list("") if TASK_NAME.fullmatch(name))

    def holder(self, task: str, alias: str) -> Record | None:
        """Read the record in force; None where the alias was never given."""
        content = self._read(f"{task}/{alias}.json")
        return None if content is None else self._record(f"{task}/{alias}.json", content)

    def history(self, task: str) -> list[Record]:
        """Read every record of a task, the oldest first."""
        names = [name for name in self._list(f"{task}/history") if name.endswith(".json")]
        return [self.record(task, name.removesuffix(".json")) for name in sorted(names)]

    def record(self, task: str, name: str) -> Record:
        """Read a record of the history."""
        path = f"{task}/history/{name}.json"
        return self._record(path, self._read(path) or b"")

    def test_rows(self, record: Record) -> pa.Table:
        """Read the test rows that a version was judged on.

        Raises:
            RegistryError: they are gone.
        """
        content = self._read(f"{record.task}/{record.version}/judged.parquet")
        if content is None:
            raise RegistryError(
                f"The registry {self.address} has lost the test rows of {record.task} {record.version}; restore them, or force the promotion by --force REASON."
            )
        return pq.ParquetFile(io.BytesIO(content)).read()

    def add(self, folder: Path, test_rows: pa.Table) -> tuple[str, str]:
        """Copy a bundle and its test rows, unless they are there; return version and SHA-256."""
        card = (folder / "bundle.json").read_bytes()
        content = json.loads(card)
        task, sha256 = content["task"], hashlib.sha256(card).hexdigest()
        home = f"{task}/{sha256[:12]}"
        if self._read(f"{home}/bundle/bundle.json") == card:
            return sha256[:12], sha256
        parquet = io.BytesIO()
        pq.write_table(test_rows, parquet)
        self._write(f"{home}/judged.parquet", parquet.getvalue())
        for name in content["sha256"]:
            self._write(f"{home}/bundle/{name}", (folder / name).read_bytes())
        self._write(f"{home}/bundle/bundle.json", card)
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
        card = self._read(f"{home}/bundle.json")
        if card is None or hashlib.sha256(card).hexdigest() != record.sha256:
            raise RegistryError(
                f"The bundle {record.task} {record.version} in {self.address} is missing or was changed; promote the run again."
            )
        if isinstance(self.files, pafs.LocalFileSystem):
            return Path(self.root) / home
        folder = self.cache / record.sha256
        if not (folder / "bundle.json").exists():
            self._download(home, ("bundle.json", *json.loads(card)["sha256"]), folder)
        return folder

    def _download(self, home: str, names: Iterable[str], folder: Path) -> None:
        """Copy files to `folder`, by way of one that has a name of its own, so that two processes may."""
        hidden = self.cache / f".{uuid4().hex}"
        hidden.mkdir(parents=True)
        for name in names:
            (hidden / name).write_bytes(self._read(f"{home}/{name}") or b"")
        try:
            hidden.rename(folder)
        except OSError:  # the other one was first
            for path in hidden.iterdir():
                path.unlink()
            hidden.rmdir()

    def _record(self, name: str, content: bytes) -> Record:
        try:
            values = json.loads(content)
            if values.pop("schema") > SCHEMA:
                raise RegistryError(
                    f"{name} of the registry {self.address} was written by a newer Assay; update Assay."
                )
            return Record(**values)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RegistryError(
                f"{name} of the registry {self.address} is damaged; restore it, or promote again."
            ) from None

    def _read(self, name: str) -> bytes | None:
        try:
            with self.files.open_input_file(f"{self.root}/{name}") as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refusal(error) from None

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
