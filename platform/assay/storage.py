"""Folders on this machine or on object storage, in which files appear when they are complete."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import pyarrow.fs as pafs

from assay.errors import AssayError, ConfigError, RunError

OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems that show a file when it is complete, and not before."""


CONNECT_S, SILENCE_S, ATTEMPTS = 5, 20, 3
"""Of S3: longest wait for a connection and for a byte, and how often a request is tried."""


GS_RETRY_S = 60
"""How long a request to Google Cloud Storage is tried again; by itself it would be 15 minutes."""


FREE_BYTES = 1 << 30
"""What copies leave free on the disk."""


_S3_OPTIONS = {"endpoint_override", "region", "scheme"}


def is_uri(address: str) -> bool:
    """Tell whether an address names object storage."""
    return address.startswith(("s3://", "gs://", "gcs://", "abfs://", "abfss://"))


@lru_cache(maxsize=8)
def reach(address: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of an address, and the path in it.

    Args:
        address: a folder, or the URI of one (s3://, gs://, abfs://, file://); credentials come from
            the environment as for pyarrow.fs. Of S3 it may end in ?region=...&endpoint_override=HOST:PORT&scheme=http,
            and AWS_ENDPOINT_URL counts where it does not.

    Raises:
        ConfigError: it is no address that can be used.
    """
    if re.match(r"(s3|gs|gcs|abfs|abfss|file):/(?!/)", address):
        raise ConfigError(
            f"{address} is no address that can be used (an URI has two slashes); give a folder, or an URI such as s3://bucket/folder."
        )
    if "://" in address and "#" in address:  # behind which an URI names no place any more
        raise ConfigError(
            f"{address} is no address that can be used (an URI ends at a #); give a folder without one in its name."
        )
    uri = address if "://" in address else Path(address).absolute().as_uri()
    try:
        if urlsplit(uri).scheme == "s3":
            files, root = _reach_s3(uri)
        else:
            files, root = pafs.FileSystem.from_uri(_bounded(uri))
    except (ValueError, OSError, NotImplementedError) as error:
        shown = re.sub(r"//[^/]*@", "//...@", address)  # what is written ends in logs
        raise ConfigError(
            f"{shown} is no address that can be used ({str(error).splitlines()[0]}); give a folder, or an URI such as s3://bucket/folder."
        ) from None
    return files, root.rstrip("/")


def _reach_s3(uri: str) -> tuple[pafs.FileSystem, str]:
    """Reach S3 by requests that end; pyarrow's own reading of an URI waits minutes for a silent server."""
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.username is not None:
        raise ValueError("it holds credentials, which would be kept with the runs: set AWS_...")
    if unknown := sorted(options.keys() - _S3_OPTIONS):
        raise ValueError(f"it has the option {unknown[0]!r}; allowed: {sorted(_S3_OPTIONS)}")
    if not parts.netloc:
        raise ValueError("it names no bucket")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in options:
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/")} | ({"scheme": scheme} if scheme else {})
    retry = pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    has_region = {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys()
    if not (has_region or {"region", "endpoint_override"} & options.keys()):
        options["region"] = pafs.resolve_s3_region(parts.netloc)
    files = pafs.S3FileSystem(
        **options, connect_timeout=CONNECT_S, request_timeout=SILENCE_S, retry_strategy=retry
    )
    return files, f"{parts.netloc}{parts.path}"


def _bounded(uri: str) -> str:
    """Let requests to Google Cloud Storage end in time, where the URI does not say when."""
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={GS_RETRY_S}"


def refuse_without_room(
    what: str, folder: Path, need: int, kind: type[AssayError] = RunError
) -> None:
    """Refuse to copy more to this machine than its disk holds.

    Raises:
        AssayError: of this kind; there is no room for so many bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if need > free - FREE_BYTES:
        raise kind(
            f"{need / 1e9:.2f} GB of {what} are to be copied to {folder}, and its disk has {free / 1e9:.2f} GB free of which 1 GB is spared; free some."
        )


def join(address: str, name: str) -> str:
    """Return the address of what lies below one."""
    path, mark, query = address.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def why(error: OSError) -> str:
    """Say in a few words what object storage refused."""
    text = " ".join((error.strerror or str(error)).split())
    _, mark, reason = text.partition("AWS Error ")
    text = f"{mark}{reason}" if mark else text
    return text.partition(" (Request ID")[0][:200].rstrip(": .") or type(error).__name__


@contextmanager
def reaching(address: str, kind: type[AssayError] = RunError) -> Iterator[None]:
    """Say in a sentence why object storage cannot be used; a fault of this machine's disk comes through.

    Raises:
        AssayError: of this kind, in the place of what pyarrow raises.
    """
    try:
        yield
    except OSError as error:
        if error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise kind(
            f"{address} cannot be used ({why(error)}); check the address, your rights and the network, or name another place."
        ) from None


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
