"""Hashes of files' contents, remembered between runs."""

import hashlib
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from assay.errors import ManifestError


def content_hashes(paths: Sequence[Path], cache: Path) -> list[str]:
    """Hash each file's bytes (BLAKE2b, 32 hex digits); unchanged files are looked up, not read.

    A file counts as unchanged while its path, size, and times of modification and of change stay
    the same: tools that copy may restore the first time, none the second.

    Raises:
        ManifestError: a file does not exist or its bytes cannot be read.
    """
    keys = [_cache_key(path) for path in paths]
    cache.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(cache, timeout=60)
    try:
        database.execute(
            "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, mtime INT, ctime INT, content TEXT)"
        )
        rows = database.execute("SELECT path, size, mtime, ctime, content FROM files")
        contents = {tuple(key): content for *key, content in rows}
        fresh = [i for i, key in enumerate(keys) if key not in contents]
        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(_digest, [paths[i] for i in fresh]))
        contents |= {keys[i]: digest for i, digest in zip(fresh, digests, strict=True)}
        added = [(*keys[i], contents[keys[i]]) for i in fresh]
        database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", added)
        database.commit()
    finally:
        database.close()
    return [contents[key] for key in keys]


def _cache_key(path: Path) -> tuple[str, int, int, int]:
    if not path.is_file():
        raise ManifestError(
            f"The image {path} does not exist; correct the table or restore the file."
        )
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise ManifestError(
            f"The image {path} cannot be read ({error.strerror}); mend it, or leave it out of the data."
        ) from None
