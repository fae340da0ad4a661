"""Folders on this machine or on object storage, in which files appear when they are complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import pyarrow.fs as pafs

from assay.errors import ConfigError

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
