"""Hashes of files' contents, remembered between runs."""

import hashlib
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path

from assay.data.walk import show, why_unreadable
from assay.errors import ManifestError
from assay.files import read_bytes, refuse_special

FileState = tuple[str, int, int, int]
"""Path, size in bytes, times of modification and of change in ns."""

BUSY_S = 10.0
"""Longest wait for another process that has the cache: writing a million hashes takes a few seconds."""

DIGEST_BYTES = 16

EMPTY = hashlib.blake2b(digest_size=DIGEST_BYTES).hexdigest()
"""Hash of a file without a byte."""


def content_hashes(paths: Sequence[Path], cache: Path) -> list[str]:
    """Hash each file's bytes (BLAKE2b, 32 hex digits); unchanged files are looked up, not read.

    A file counts as unchanged while its path, size, and times of modification and of change stay
    the same: tools that copy may restore the first time, none the second. What this cannot see is
    bytes that were changed within one tick of the file system's clock after they were hashed
    (milliseconds on a disk here, up to 2 s on FAT and some network folders), at the same size.

    A cache that is damaged is set aside and begun anew; one that cannot be written, or that another
    process keeps for longer than `BUSY_S`, is done without.

    Raises:
        ManifestError: a file does not exist or its bytes cannot be read.
    """
    keys = [_state_of(path) for path in paths]
    kept = _load(cache)
    contents = kept or {}
    fresh = [i for i, key in enumerate(keys) if key not in contents]
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(_digest, [paths[i] for i in fresh]))
    added = {keys[i]: digest for i, digest in zip(fresh, digests, strict=True)}
    if added and kept is not None:
        _save(cache, added)
    contents |= added
    return [contents[key] for key in keys]


def read_as_hashed(path: Path, content: str) -> bytes:
    """Read a file whose bytes must be those that were hashed.

    Raises:
        ManifestError: they are others, or cannot be read.
    """
    with _readable(path):
        data = read_bytes(path)
    if hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest() != content:
        raise ManifestError(
            f"The image {show(path)} changed after it was found; give the command again when nothing writes there any more."
        )
    return data


def _load(cache: Path) -> dict[FileState, str] | None:
    """Read what was kept; of a damaged cache, nothing, and it is set aside; None where it is to be left alone."""
    if not cache.is_file():
        return {}
    try:
        with closing(_connect(cache)) as database:
            rows = database.execute("SELECT path, size, mtime, ctime, content FROM files")
            return {
                (path, size, mtime, ctime): content
                for path, size, mtime, ctime, content in rows
                if isinstance(content, str) and re.fullmatch("[0-9a-f]{32}", content)
            }
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):  # another process has just begun it
            return {}
        _say(
            f"{show(cache)} cannot be read ({error}), so every file is read again, and not remembered."
        )
        return None
    except (sqlite3.Error, OverflowError) as error:
        aside = cache.with_name(f"{cache.name}.damaged")
        with suppress(OSError):
            cache.replace(aside)
        _say(
            f"{show(cache)} is damaged ({error}) and was moved to {aside.name}; every file is read again."
        )
        return {}


def _save(cache: Path, added: dict[FileState, str]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with closing(_connect(cache)) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, mtime INT, ctime INT, content TEXT)"
            )
            rows = [(*key, content) for key, content in added.items()]
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
            database.commit()
    except (sqlite3.Error, OSError) as error:
        _say(
            f"{show(cache)} cannot be written ({error}), so that the next run reads every file again."
        )


def _connect(cache: Path) -> sqlite3.Connection:
    refuse_special(cache)
    return sqlite3.connect(cache, timeout=BUSY_S)


@lru_cache(maxsize=64)
def _say(text: str) -> None:
    """Say once what is wrong with a cache."""
    print(text, file=sys.stderr)


def _state_of(path: Path) -> FileState:
    reason = why_unreadable(path)
    if reason:
        raise ManifestError(
            f"The image {show(path)} {reason}; correct the table or restore the file."
        )
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _digest(path: Path) -> str:
    with _readable(path), path.open("rb") as file:
        digest = partial(hashlib.blake2b, digest_size=DIGEST_BYTES)
        return hashlib.file_digest(file, digest).hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say in a sentence that a file cannot be read in this block."""
    try:
        yield
    except OSError as error:
        raise ManifestError(
            f"The image {show(path)} cannot be read ({error.strerror}); mend it, or leave it out of the data."
        ) from None
