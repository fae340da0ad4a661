"""Files that others publish, copied to this machine and known by their SHA-256.

~/.cache/assay-files/<SHA-256>/<name>    a copy of the file at an URI
"""

import hashlib
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from assay.errors import ConfigError
from assay.files import describe, sha256_of

CACHE = Path("~/.cache/assay-files")

WEB = ("http", "https")

MOST_BYTES = 32 << 30
"""Largest file that is copied."""

PIECE = 1 << 20

TIMEOUT_S = 30
"""Longest silence of a web server."""


def fetch(address: str, sha256: str, option: str = "sha256") -> Path:
    """Return a copy on this machine of the file at an URI.

    Args:
        address: http://, https://, s3://, gs://, abfs:// or file://; credentials come from the environment
            as for pyarrow.fs.
        sha256: of the file, as 64 hex digits; "": not compared, which a file of the web must be. A copy
            that is here already is taken by it, without a look at the address.
        option: what the user gives it by.

    Raises:
        ConfigError: the file cannot be had, or is another than its SHA-256 says.
    """
    folder = CACHE.expanduser()
    name = re.sub(r"[^\w.-]", "_", address.rpartition("/")[2])[:100].lstrip(".") or "file"
    if sha256 and (folder / sha256 / name).is_file():
        check_sha256(folder / sha256 / name, sha256, option)
        return folder / sha256 / name
    hidden = folder / f".{uuid4().hex}"
    folder.mkdir(parents=True, exist_ok=True)
    digest = download(address, hidden, sha256, option)
    (folder / digest).mkdir(exist_ok=True)
    return hidden.replace(folder / digest / name)


def download(address: str, target: Path, sha256: str, option: str = "sha256") -> str:
    """Copy the file at an URI to a new file on this machine, and return its SHA-256; see `fetch`.

    Raises:
        ConfigError: the file cannot be had, or is another than its SHA-256 says; no copy is left.
    """
    if not sha256 and urlsplit(address).scheme.lower() in WEB:
        raise ConfigError(
            f"{address} is fetched by its SHA-256 only, as what lies there may be another file tomorrow; give {option}."
        )
    try:
        digest = _copy(address, target)
        if sha256 not in ("", digest):
            raise _mismatch(address, digest, sha256, option)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return digest


def check_sha256(path: Path, sha256: str, option: str = "sha256") -> None:
    """Compare a file with what its SHA-256 should be.

    Raises:
        ConfigError: it is another.
    """
    digest = sha256_of(path)
    if digest != sha256:
        raise _mismatch(path, digest, sha256, option)


def _mismatch(address: str | Path, digest: str, sha256: str, option: str) -> ConfigError:
    return ConfigError(
        f"{address} has the SHA-256 {digest} and {option} asks for {sha256}; give the file that is meant, or its own."
    )


def _copy(address: str, target: Path) -> str:
    """Copy piece by piece, and return the SHA-256.

    Raises:
        ConfigError: nothing lies there, it cannot be reached, or it is too large.
    """
    seen, size = hashlib.sha256(), 0
    try:
        with _opened(address) as file, target.open("xb") as out:
            while piece := file.read(PIECE):
                seen.update(piece)
                size += out.write(piece)
                if size > MOST_BYTES:
                    raise ValueError(f"it is larger than {MOST_BYTES >> 30} GiB")
    except (OSError, HTTPException, ValueError) as error:
        raise ConfigError(
            f"{address} cannot be fetched ({describe(error)}); give an address that answers, or the path of a file."
        ) from error
    return seen.hexdigest()


@contextmanager
def _opened(address: str) -> Iterator[Any]:
    if urlsplit(address).scheme.lower() in WEB:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
            yield response
    else:
        from assay.storage import reach  # a bundle opens without pyarrow

        files, path = reach(address)
        with files.open_input_stream(path, compression=None) as stream:
            yield stream
