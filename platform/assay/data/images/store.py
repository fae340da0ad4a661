"""The pixel store: every image decoded once, in a folder or on object storage.

    <place>/<first two digits>/<content>.pixels          see `entry`
    <place>/<first two digits>/<content>.pixels.clahe-*  tables of equalisation, see `clahe`

An entry is keyed by the image file's content, the page that was chosen of it and the version of its
layout alone: labels, domains
and splits never enter, and added images cost only themselves. From object storage, or where a
cache is named, each node copies an entry on first use and maps its own copy from then on; copies
that were not used for longest make room for others.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from assay.data.hashes import read_as_hashed
from assay.data.images import decode
from assay.data.images.entry import MASK, SUFFIX, hash_of, open_entry, page_of, write_entry
from assay.data.images.pyramid import ImagePyramid
from assay.data.objects import restore
from assay.errors import ImageError, ManifestError, StoreError
from assay.files import replacing
from assay.storage import reach, whole

SPARE_DISK = 1 << 30
"""Bytes that a store or a cache leaves free."""


@dataclass(frozen=True)
class Store:
    """A place for entries.

    Args:
        address: a folder, or the URI of one (s3://, gs://, abfs://, file://); credentials come from
            the environment as for pyarrow.fs.
        cache: a folder on each node for copies; none: a folder's entries are read where they are,
            an URI's are copied below ~/.cache.
    """

    address: str
    cache: str = ""

    @property
    def is_folder(self) -> bool:
        """Entries are read where they are."""
        return "://" not in self.address and not self.cache

    @property
    def here(self) -> Path:
        """Where this node reads entries."""
        if self.is_folder:
            return Path(self.address)
        # a folder of its own, so that making room deletes nothing but copies
        return Path(self.cache or "~/.cache").expanduser() / "assay-copies"

    def path(self, content: str) -> Path:
        """Return where this node has, or would have, an entry."""
        return self.here / _name(content)

    def missing(self, contents: Sequence[str]) -> list[str]:
        """Return those contents that have no entry yet, each once.

        Raises:
            StoreError: the store cannot be reached.
        """
        unique = dict.fromkeys(contents)
        if self.is_folder:
            return [content for content in unique if not self.path(content).exists()]
        sizes = self._sizes()
        return [content for content in unique if content not in sizes]

    def num_bytes(self, contents: Sequence[str]) -> int:
        """Add up the bytes of the entries that are there, each content once.

        Raises:
            StoreError: the store cannot be reached.
        """
        sizes = self._sizes()
        return sum(sizes.get(content, 0) for content in dict.fromkeys(contents))

    def build(self, content: str, source: decode.Source) -> int:
        """Decode one image or mask into the store, unless it is there; return its number of pixels.

        Raises:
            ImageError: the file cannot be read.
            StoreError: the store cannot be written, or the disk is full.
        """
        path = self.path(content)
        if path.exists() and self.is_folder:
            return 0
        if content.endswith(MASK):
            entry = ImagePyramid.of_mask(decode.read_plane(source, "index"))
        else:
            entry = ImagePyramid.read(source, page_of(content))
        try:
            if not self.is_folder:
                self._make_room(sum(level.nbytes for level in entry.levels))
            write_entry(path, entry)
            if not self.is_folder:
                self._send(path, content)
        except OSError as error:
            raise self._refusal(error) from None
        return entry.size[0] * entry.size[1]

    def open(self, content: str) -> ImagePyramid:
        """Map an entry, after copying it to this node where that is due.

        Raises:
            StoreError: the entry is missing, foreign, of another image or cut short, or the store cannot be reached.
        """
        path = self.path(content)
        if not self.is_folder:
            try:
                if not path.exists():
                    self._fetch(path, content)
                os.utime(path)  # the order in which copies make room
            except OSError as error:
                raise self._refusal(error) from None
        return open_entry(path, content)

    def _sizes(self) -> dict[str, int]:
        """Read the bytes of every entry in the store, by content."""
        try:
            files, root = reach(self.address)
            selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
            infos = files.get_file_info(selector)
        except OSError as error:
            raise self._refusal(error) from None
        ready = [info for info in infos if info.base_name.endswith(SUFFIX)]
        return {info.base_name.removesuffix(SUFFIX): info.size for info in ready}

    def _send(self, path: Path, content: str) -> None:
        files, root = reach(self.address)
        with whole(files, f"{root}/{_name(content)}") as target:
            _copy(path, None, target, files)

    def _fetch(self, path: Path, content: str) -> None:
        files, root = reach(self.address)
        source = f"{root}/{_name(content)}"
        info = files.get_file_info(source)
        if info.type != pafs.FileType.File:
            raise StoreError(
                f"The store {self.address} has no entry {content} any more; run the task again, which decodes what is missing."
            )
        self._make_room(info.size)
        with replacing(path) as hidden:
            _copy(source, files, hidden, None)

    def _make_room(self, need: int) -> None:
        """Delete the copies on this node that were not used for longest, until `need` bytes fit."""
        self.here.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.here).free - SPARE_DISK >= need:
            return
        # a copy that is mapped somewhere lives on there until it is closed
        for copy in sorted(self.here.glob(f"*/*{SUFFIX}"), key=_last_used):
            copy.unlink(missing_ok=True)
            for tables in copy.parent.glob(f"{copy.name}.*"):
                tables.unlink(missing_ok=True)
            if shutil.disk_usage(self.here).free - SPARE_DISK >= need:
                return
        free = shutil.disk_usage(self.here).free
        raise StoreError(
            f"An image of {need / 1e9:.2f} GB is to be kept in {self.here}, and its disk has {free / 1e9:.2f} GB free of which 1 GB is spared; "
            "free some, or pass --cache on a larger one."
        )

    def _refusal(self, error: OSError) -> StoreError:
        why = error.strerror or str(error).splitlines()[0]
        return StoreError(
            f"The store {self.address} cannot be used ({why}); free some disk, check the address and your rights, or pass another --store."
        )


def decode_into(store: Store, work: dict[str, Any]) -> dict[str, Any]:
    """Run `Store.build` on one work item (content, path); adds the number of pixels decoded, and why the image cannot be read, or "".

    Raises:
        StoreError: no other can be stored either.
    """
    outcome = {"pixels": 0, "reason": ""}
    try:
        data = read_as_hashed(restore(Path(work["path"])), hash_of(work["content"]))
        outcome["pixels"] = store.build(work["content"], data)
    except (ImageError, ManifestError) as error:
        outcome["reason"] = str(error).replace(decode.name(b""), work["path"], 1)
    return work | outcome


def _name(content: str) -> str:
    return f"{content[:2]}/{content}{SUFFIX}"


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process made room
        return 0.0


def _copy(
    source: str | Path,
    files: pafs.FileSystem | None,
    target: str | Path,
    into: pafs.FileSystem | None,
) -> None:
    here = pafs.LocalFileSystem()
    pafs.copy_files(
        str(source),
        str(target),
        source_filesystem=files or here,
        destination_filesystem=into or here,
    )
