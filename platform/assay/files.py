"""Files on this machine that appear when they are complete."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from uuid import uuid4

from assay.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa


def open_to_write(path: Path) -> TextIO:
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


def write_table(path: Path, table: "pa.Table") -> None:
    """Write a CSV table whole or not at all, with its folder; an OSError comes through."""
    import pyarrow as pa  # a bundle opens without it
    import pyarrow.csv

    content = pa.BufferOutputStream()
    pa.csv.write_csv(table, content)
    write_whole(path, content.getvalue().to_pybytes())


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Write a Parquet table whole or not at all, with its folder; an OSError comes through."""
    import pyarrow.parquet as pq  # a bundle opens without it

    with replacing(path) as hidden:
        pq.write_table(table, hidden)


def write_rows(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV under a header of these names, whole or not at all; what a row lacks is empty."""
    with replacing(path) as hidden, hidden.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
