"""A storage of runs by its address: a folder as it is, or the mirror of one on object storage.

What is no mirror is left alone by all of these.
"""

import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow.fs as pafs

from assay.errors import ConfigError, RunError
from assay.runs.claim import MOST_CLAIM_BYTES, RENEW_S, Claim, TakenOverError
from assay.runs.index import CLAIMS, Synced
from assay.runs.lease import LEASE, WRITER, is_held
from assay.runs.mirror import AT_ONCE, Mirror, Needs, needs_all, needs_judged, needs_numbers
from assay.runs.objects import Objects
from assay.storage import is_uri, reach, reaching

CACHE = Path("~/.cache/assay-runs")

MOST_NAME = 255
"""Bytes that a folder's name may have."""


def folder_of(address: str) -> Path:
    """Return where runs of an address are on this machine.

    Raises:
        ConfigError: it is an URI too long to name a folder, or of no known kind.
    """
    if not is_uri(address):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", address):
            raise ConfigError(
                f"--storage is {address}; allowed: a folder, or an URI of s3://, gs:// or abfs://."
            )
        return Path(address)
    name = quote(address.rstrip("/"), safe="")
    if len(name) > MOST_NAME:
        raise ConfigError(f"--storage {address} is too long by {len(name) - MOST_NAME} characters.")
    return CACHE.expanduser() / name


def address_of(folder: Path) -> str | None:
    """Return the URI that a folder of runs mirrors, or None."""
    address = unquote(folder.name)
    return address if folder.parent.name == CACHE.name and is_uri(address) else None


def mirror_of(folder: Path) -> Mirror | None:
    """Return the mirror that the folder of a run or a sweep is, or None."""
    for storage in folder.parents:
        address = address_of(storage)
        if address:
            return Mirror(folder, address, folder.relative_to(storage).as_posix())
    return None


def open_storage(address: str, name: str = "", needs: Needs = needs_numbers) -> Path:
    """Return the folder of the runs at an address, with what is on object storage copied there.

    Args:
        address: a folder, or an URI.
        name: a part of the names of the runs that are wanted.
        needs: which of their files are needed.

    Raises:
        ConfigError: it is no address that can be used.
        RunError: object storage cannot be used, or what it holds is damaged.
    """
    folder = folder_of(address)
    if not is_uri(address):
        return folder
    files, root = reach(address)
    bucket = root.partition("/")[0]
    with reaching(address):
        if files.get_file_info(bucket).type == pafs.FileType.NotFound:
            raise RunError(
                f"There is no bucket {bucket!r} for {address}, or you may not look into it; make it, or name another --storage."
            )
    folder.mkdir(parents=True, exist_ok=True)
    names = [info.base_name for info in Objects(address, "").list()]
    names = [each for each in names if name in each and _is_plain(each) and each != "sweeps"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda each: look_at(folder / each, needs), names))
    return folder


def _is_plain(name: str) -> bool:
    return name.isprintable() and not name.startswith(".") and not {"/", "\\"} & set(name)


def look_at(folder: Path, needs: Needs = needs_judged) -> None:
    """Pull a run for one who only reads it, and note who writes it.

    Raises:
        RunError: object storage cannot be used, or what it holds is damaged.
    """
    mirror = mirror_of(folder)
    if mirror is None or is_held(folder / LEASE):  # by a process here, whose files are newer
        return
    mirror.pull(needs)
    if not mirror.folder.is_dir():
        return
    writer = mirror.folder / WRITER
    writer.unlink(missing_ok=True)
    for info in mirror.objects.list(CLAIMS):
        content = mirror.objects.read(f"{CLAIMS}/{info.base_name}", MOST_CLAIM_BYTES)
        if content is not None:
            writer.write_bytes(content)
            os.utime(writer, ns=(info.mtime_ns, info.mtime_ns))


def catch_up(folder: Path) -> None:
    """Pull a run that may be written here next, and push what an earlier process here could not.

    Raises:
        RunError: another machine writes it, or object storage cannot be used.
    """
    look_at(folder)
    mirror = mirror_of(folder)
    if mirror is not None and not is_held(folder / LEASE) and mirror.is_pending:
        with writing(folder):
            pass


def pull(folder: Path, needs: Needs = needs_all) -> None:
    """Copy here what a run or a sweep has on object storage; see `Mirror.pull`."""
    mirror = mirror_of(folder)
    if mirror is not None:
        mirror.pull(needs)


def push(folder: Path) -> None:
    """Copy to object storage what a run or a sweep has here; see `Mirror.push`."""
    mirror = mirror_of(folder)
    if mirror is not None:
        mirror.push()


def try_push(folder: Path, others: Mapping[str, Synced] | None = None) -> None:
    """Push on the way; where that fails work goes on, and the next push makes up for it.

    Raises:
        TakenOverError: another machine has the run now.
    """
    mirror = mirror_of(folder)
    try:
        if mirror is not None:
            mirror.push(others)
    except TakenOverError:
        raise
    except RunError as error:
        print(f"Not pushed for now: {error}", file=sys.stderr)


def ray_storage(folder: Path) -> dict[str, Any]:
    """Return where Ray keeps what its own workers tell one another, which all nodes must reach."""
    mirror = mirror_of(folder)
    if mirror is None:
        return {"storage_path": str(folder)}
    files, root = reach(mirror.address)
    return {"storage_path": f"{root}/{mirror.name}", "storage_filesystem": files}


def drop_ray_storage(folder: Path) -> None:
    """Delete what Ray kept in a folder, which nobody reads again."""
    shutil.rmtree(folder, ignore_errors=True)
    mirror = mirror_of(folder)
    if mirror is not None:
        files, root = reach(mirror.address)
        with suppress(OSError):
            files.delete_dir(f"{root}/{mirror.name}")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Claim a run or a sweep on object storage, pull it first and push it at the end.

    Raises:
        RunError: another machine writes it, or the storage cannot be used.
    """
    mirror = mirror_of(folder)
    if mirror is None:
        yield
        return
    claim = Claim.take(folder, mirror.objects)
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(claim, ended), daemon=True)
    thread.start()
    try:
        mirror.pull(needs_judged)
        try:
            yield
        except BaseException:
            with suppress(RunError):  # of a storage that fails the first error counts
                mirror.push()
            raise
        mirror.push()
    finally:
        ended.set()
        thread.join()
        with suppress(RunError):  # it ends by itself
            claim.end()


def _renew(claim: Claim, ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        with suppress(RunError):  # a claim that is not renewed becomes nobody's
            claim.renew()
