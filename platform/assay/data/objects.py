"""Images on object storage, copied to this machine before they are read.

    ~/.cache/assay-images/<URI, quoted>/<name below it>

A copy has the size and the time of its object, by which it is known to be the same the next time; so
what is changed at the same size within a tick of the storage's clock (1 s on S3) is not seen. The path
of a copy says where it is from, so that any node can copy it again.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

import pyarrow.fs as pafs

from assay.data.walk import is_left_out, show
from assay.errors import ManifestError
from assay.files import replacing
from assay.progress import progress_bar
from assay.storage import is_uri, join, reach, reaching, refuse_without_room

CACHE = Path("~/.cache/assay-images")

PIECE, AT_ONCE = 16 << 20, 16


def uri_of(path: Path) -> str | None:
    """Return the URI that a path stands for, or that it is a copy of; None where it is neither.

    A path writes s3://bucket as s3:/bucket.
    """
    match = re.fullmatch(r"([a-z0-9]+):/+(.+)", str(path), re.DOTALL)
    if match and is_uri(f"{match[1]}://"):
        return f"{match[1]}://{match[2]}"
    for folder in (path, *path.parents):
        address = unquote(folder.name)
        if folder.parent.name == CACHE.name and is_uri(address):
            name = path.relative_to(folder).as_posix()
            return address if name == "." else join(address, name)
    return None


def local(path: Path) -> Path:
    """Return a path on this machine: itself, or a copy of what lies at the URI that it stands for.

    Raises:
        ManifestError: nothing lies there, it cannot be reached, or there is no room for it.
    """
    address = uri_of(path)
    return path.absolute() if address is None else _fetch_folder(address)


def restore(path: Path) -> Path:
    """Copy one image again where this node lacks it.

    Raises:
        ManifestError: it cannot be had.
    """
    address = None if path.exists() else uri_of(path)
    if address is not None:
        files, root = reach(address)
        with reaching(address, ManifestError):
            info = files.get_file_info(root)
        if info.type == pafs.FileType.File:
            _fetch(files, info, path, address)
    return path


@lru_cache(maxsize=64)
def _fetch_folder(address: str) -> Path:
    """Copy what lies below an URI, once in a process; of a file, such as a table, what lies beside it."""
    files, root = reach(address)
    with reaching(address, ManifestError):
        info = files.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        raise ManifestError(
            f"Nothing lies at {address}, or you may not see it; give the URI of a folder of images, or of a table."
        )
    if info.type == pafs.FileType.File:
        path, mark, query = address.partition("?")
        return _fetch_folder(f"{path.rpartition('/')[0]}{mark}{query}") / info.base_name
    with reaching(address, ManifestError):
        infos = files.get_file_info(pafs.FileSelector(root, recursive=True))
    objects = {info.path[len(root) + 1 :]: info for info in infos if info.is_file}
    objects = {name: info for name, info in objects.items() if _is_wanted(name, address)}
    folder = CACHE.expanduser() / quote(address, safe="")
    _drop_others(folder, objects)
    wanted = [name for name, info in objects.items() if not _is_same(folder / name, info)]
    refuse_without_room(
        address, folder, sum(objects[name].size for name in wanted), kind=ManifestError
    )
    _fetch_all(files, [(objects[name], folder / name) for name in wanted], address)
    return folder


def _is_wanted(name: str, address: str) -> bool:
    """Tell whether an object counts; refuse a name that leads out of the folder."""
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).as_posix() != name or {"..", "/"} & set(parts) or "\\" in name:
        raise ManifestError(
            f"{address} holds {show(name)}, which is no path of a file below it; rename it."
        )
    return not any(map(is_left_out, parts))


def _is_same(path: Path, info: Any) -> bool:
    if not path.is_file():
        return False
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) == (info.size, info.mtime_ns)


def _drop_others(folder: Path, names: Any) -> None:
    """Delete copies of what is no longer there."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _fetch_all(files: pafs.FileSystem, wanted: Sequence[tuple[Any, Path]], address: str) -> None:
    with (
        progress_bar(len(wanted), "copy") as bar,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        copies = [pool.submit(_fetch, files, info, path, address) for info, path in wanted]
        try:
            for copy in copies:
                copy.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch(files: pafs.FileSystem, info: Any, target: Path, address: str) -> None:
    """Copy an object, which must be the one that was listed."""
    with replacing(target) as hidden, reaching(address, ManifestError):
        try:
            with files.open_input_file(info.path) as file, hidden.open("xb") as out:
                is_same = file.size() == info.size
                while is_same and (piece := file.read(PIECE)):
                    out.write(piece)
            after = files.get_file_info(info.path)
        except FileNotFoundError:
            is_same, after = False, info
        if not is_same or (after.size, after.mtime_ns) != (info.size, info.mtime_ns):
            raise ManifestError(
                f"{show(info.path)} was changed or deleted while {address} was read; give the same command again when nobody writes there."
            )
        os.utime(hidden, ns=(info.mtime_ns, info.mtime_ns))
