"""Files on this machine: read as what they must be or refused in a sentence, and written whole."""

import csv
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from assay.errors import OF_DISKS, AssayError, ConfigError, RunError

if TYPE_CHECKING:
    import pyarrow as pa


RESTORE = "restore it, or train the run again"

NO_FILE = "no regular file but a pipe, a socket or a device"


def refuse_special(path: str | Path) -> None:
    """Refuse what would be waited for, or would not end, in a file's place; whether there is a file is for its reader to tell.

    Raises:
        OSError: it is a pipe, a socket or a device; has its name.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, f"it is {NO_FILE}", str(path))


def open_file(path: str | Path) -> BufferedReader:
    """Open a file that a user names, or could have put there, to be read; an OSError comes through, also of a pipe."""
    refuse_special(path)
    return open(path, "rb")


PATHS = frozenset(
    [
        "--data.root",
        "--storage",
        "--store",
        "--cache",
        "--config",
        "--registry",
        "--out",
        "--tasks",
        "--csv",
        "--json",
        "--token-file",
        "--folder",
        "--space-file",
        "--task",
        "--file",
        "--tls-cert",
        "--tls-key",
        "--model.weights",
        "--model.scorer-weights",
        "--teacher.weights",
        "--distill.teacher",
    ]
)
"""Options that name a folder or a file, of which an empty text would be the folder that one is in."""


def plain_paths(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line, with ~ in paths as the home it stands for: no shell does that behind a =.

    Raises:
        ConfigError: a path is empty; names the option.
    """
    words = [""]
    for word in arguments:
        name, sign, value = word.partition("=")
        if not (sign and name in PATHS):
            name, sign, value = words[-1], "", word
        if name in PATHS and not value.strip():
            raise ConfigError(
                f"{name} is empty, as where a variable of the shell is not set; give a path, or . for this folder."
            )
        is_path = name in PATHS
        words.append(f"{name}=" * bool(sign) + os.path.expanduser(value) if is_path else word)
    return words[1:]


def read_bytes(path: str | Path) -> bytes:
    """Read a file whole, as `open_file` opens it."""
    with open_file(path) as file:
        return file.read()


@contextmanager
def reading(
    path: str | Path, kind: type[AssayError] = RunError, remedy: str = RESTORE
) -> Iterator[None]:
    """Say in a sentence what is wrong with a file that is read, and taken apart, in this block.

    Raises:
        AssayError: of this kind, in the place of whatever a missing, torn or foreign file makes its
            reader raise, or of a pipe that it would wait for; names the file and what to do.
    """
    try:
        refuse_special(path)
        yield
    except AssayError:
        raise
    # parsers raise what they like of bytes that nobody foresaw: RecursionError, KeyError, MemoryError...
    except Exception as error:
        raise kind(f"{path} is missing or damaged ({describe(error)}); {remedy}.") from None


def describe(error: BaseException) -> str:
    """Say in a few words what was raised."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    text = text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
    return f"{text[:197]}..." if len(text) > 200 else text.rstrip(": .")


def read_json(
    path: Path, kind: type[AssayError] = RunError, remedy: str = RESTORE
) -> dict[str, Any]:
    """Read a JSON object, whose every name stands once.

    Raises:
        AssayError: of this kind; the file is missing or damaged, or holds something else.
    """
    with reading(path, kind, remedy):
        value = parse_json(read_bytes(path))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__} and no object")
    return value


def parse_json(content: bytes) -> Any:
    """Parse JSON (UTF-8, 16 or 32) of which nothing is lost: a name that stands twice would hide the first.

    Raises:
        ValueError: there is such a name, a text that is half a character, or it is no JSON.
    """
    value = json.loads(content, object_pairs_hook=_named_once)
    if b"\\ud" in content.lower():  # no table could hold it, nor a terminal show it
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {max(names, key=names.count)!r} twice")
    return value


def read_parquet(
    path: Path, needed: Sequence[str], others: Sequence[str] | None = None
) -> "pa.Table":
    """Read the columns of a Parquet table that are needed, and those of the others that it has.

    Args:
        path: the file.
        needed: columns that it must have.
        others: columns that it may have; None: whatever else it has.

    Raises:
        RunError: the file is missing or damaged, or lacks a column.
    """
    import pyarrow.parquet as pq  # a bundle opens without it

    with reading(path):
        # pq.read_table takes a second to import what it needs
        file = pq.ParquetFile(path, page_checksum_verification=True)
        names = file.schema_arrow.names
        missing = [name for name in needed if name not in names]
        if missing:
            raise ValueError(f"it has no column {missing[0]!r}")
        wanted = names if others is None else [n for n in (*needed, *others) if n in names]
        return file.read(wanted)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_whole(path, json.dumps(value, indent=1).encode())


def sha256_of(path: Path) -> str:
    """Digest a file, as 64 hex digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write what takes the place of `path` at the end of the block, whole or not at all.

    Makes its folder; an OSError comes through, also of a folder, a pipe or a device in its place, which would be
    gone. The name is hidden and nobody else's: nodes that share a folder may write the same file under the same
    process id.
    """
    if path.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "it is a folder, and a file is to be there", str(path)
        )
    refuse_special(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield hidden
        hidden.replace(path)
    except OSError as error:
        is_nameless = error.filename is None and error.errno in OF_DISKS
        if is_nameless or str(error.filename) == str(hidden):
            error.filename = str(path)  # a person knows this one
        raise
    finally:
        hidden.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove, below a folder, what processes that were killed had not finished writing; for its only writer."""
    for path in list(folder.rglob(".*")):
        if re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name):
            path.unlink(missing_ok=True)


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
        pq.write_table(table, hidden, write_page_checksum=True)


def write_rows(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV under a header of these names, whole or not at all; what a row lacks is empty."""
    with replacing(path) as hidden, hidden.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
