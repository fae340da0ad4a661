"""Files that appear when they are complete, on this machine or on object storage."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs as pafs

from assay.errors import ConfigError, RunError

OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems that show a file when it is complete, and not before."""


@lru_cache(maxsize=8)
def reach(address: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of an address, and the path in it.

    Args:
        address: a folder, or the URI of one (s3://, gs://, abfs://, file://); credentials come from
            the environment as for pyarrow.fs.

    Raises:
        ConfigError: it is no address that can be used.
    """
    uri = address if "://" in address else Path(address).absolute().as_uri()
    try:
        files, root = pafs.FileSystem.from_uri(uri)
    except (ValueError, OSError, NotImplementedError) as error:
        raise ConfigError(
            f"{address} is no address that can be used ({str(error).splitlines()[0]}); give a folder, or an URI such as s3://bucket/folder."
        ) from None
    return files, root.rstrip("/")


@contextmanager
def whole(files: pafs.FileSystem, target: str) -> Iterator[str]:
    """Yield where to write what is to appear as `target` at the end of the block."""
    if files.type_name in OBJECT_STORES:
        yield target
        return
    files.create_dir(target.rpartition("/")[0])
    hidden = f"{target}.{uuid4().hex}"
    yield hidden
    files.move(hidden, target)


def opened(path: Path) -> TextIO:
    """Open a file to write.

    Raises:
        RunError: it cannot be written.
    """
    try:
        return path.open("w", newline="")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); name another file.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise RunError(f"{path} is missing or damaged; restore it, or train the run again.")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_whole(path, json.dumps(value, indent=1).encode())


def sha256_of(path: Path) -> str:
    """Digest a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write what takes the place of `path` at the end of the block, whole or not at all.

    Makes its folder; an OSError comes through. The name is hidden and nobody else's: nodes that
    share a folder may write the same file under the same process id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield hidden
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, with its folder; an OSError comes through."""
    with replacing(path) as hidden:
        hidden.write_bytes(content)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a CSV table whole or not at all, with its folder; an OSError comes through."""
    content = pa.BufferOutputStream()
    pa.csv.write_csv(table, content)
    write_whole(path, content.getvalue().to_pybytes())
