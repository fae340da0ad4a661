"""What of a run lies on object storage, and what of its mirror here was last the same.

index.json, written last, lists a run's files with their sizes and digests: a run without it is not
there. Names and sizes in a bucket are whatever someone put there, so they are checked before use.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from assay.errors import RunError
from assay.files import read_json, reading, write_json
from assay.typed import from_json, to_json

INDEX = "index.json"

STATE = ".mirror.json"

CLAIMS = "claims"

LOCAL = frozenset({INDEX, CLAIMS, "lease.json", "ray", "tune", "wandb"})
"""What is this machine's alone, or the storage's."""

MOST_INDEX_BYTES, MOST_FILE_BYTES = 64 << 20, 1 << 40

PIECE = 16 << 20


@dataclass(frozen=True)
class Entry:
    """One file."""

    size: int
    sha256: str
    mtime_ns: int
    """When it was written, on the machine that wrote it."""


@dataclass(frozen=True)
class Index:
    """Contents of index.json."""

    files: Mapping[str, Entry]
    schema: int = 1


@dataclass(frozen=True)
class Synced:
    """A file here when it was last the same as on the storage."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass
class MirrorState:
    """Contents of .mirror.json."""

    index: str = ""
    """Digest of the index that was last read or written."""
    files: dict[str, Synced] = field(default_factory=dict)


def read_index(content: bytes, where: str) -> dict[str, Entry]:
    """Read index.json.

    Raises:
        RunError: it is damaged, or lists what no run of ours holds.
    """
    with reading(where, RunError, "restore it, or delete the run there and train it again"):
        index = from_json(Index, json.loads(content))
        for name, entry in index.files.items():
            is_digest = re.fullmatch("[0-9a-f]{64}", entry.sha256)
            if not (
                is_ours(name)
                and is_digest
                and 0 <= entry.size <= MOST_FILE_BYTES
                and 0 <= entry.mtime_ns < 1 << 62
            ):
                raise ValueError(f"it lists {name[:80]!r}")
    return dict(index.files)


def write_index(files: Mapping[str, Entry]) -> bytes:
    """Return the content of index.json."""
    return json.dumps(to_json(Index(dict(sorted(files.items())))), indent=0).encode()


def is_ours(name: str) -> bool:
    """Tell whether a file of this name, relative to a run's folder, is pushed and pulled."""
    parts = name.split("/")
    is_plain = name.isprintable() and "\\" not in name and PurePosixPath(name).as_posix() == name
    has_hidden = any(part.startswith(".") for part in parts[:-1])
    # a checkpoint has a hidden file of its own; what else is hidden is not complete
    is_hidden = parts[-1].startswith(".") and parts[-1] != ".metadata"
    return (
        bool(name) and is_plain and parts[0] not in LOCAL | {""} and not (has_hidden or is_hidden)
    )


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """List the files of a run's folder that are pushed, with their names there; links are left out."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_ours(name) and path.is_file() and not path.is_symlink():
            yield name, path


def read_state(folder: Path) -> MirrorState:
    """Read .mirror.json; where it is missing or damaged, nothing here is known to be the same."""
    try:
        return from_json(MirrorState, read_json(folder / STATE))
    except (RunError, ValueError):
        return MirrorState()


def write_state(folder: Path, state: MirrorState) -> None:
    """Write .mirror.json."""
    write_json(folder / STATE, to_json(state))


def synced(path: Path, sha256: str) -> Synced:
    """Note a file that is the same in both places."""
    stat = path.stat()
    return Synced(stat.st_size, stat.st_mtime_ns, sha256)


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes, as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()
