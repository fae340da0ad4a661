"""The images that `assay predict` is given, as a list on disk: ten million paths do not sit in memory.

A folder is listed entry by entry; of tables, and of one folder's own entries, the names are held.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from assay.data import table as tables
from assay.data.images import decode
from assay.data.images.entry import MASK, SUFFIX
from assay.data.spellings import compose, refuse_spellings
from assay.data.walk import show, walk_entries, why_unreadable
from assay.errors import ManifestError
from assay.files import replacing

PICTURES = ("overlays", "masks")
"""Folders of pictures beside the answers."""

ROWS = 1 << 14
"""Rows that are written together; a multiple of any number that is read together."""


# a name may be no UTF-8, and its row will say so
_SCHEMA = pa.schema({"image": pa.binary(), "group": pa.string()})


def list_images(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """List the images of files, folders, and tables (CSV, Parquet) that have a column `image`.

    Each comes with its group, "" where none is given: a table may have a column `group`. What turns
    out to be no image is listed too, for its row to say so.

    Raises:
        ManifestError: a path or a column is missing, or a folder or table cannot be read.
    """
    for path in paths:
        reason = why_unreadable(path)
        if reason == "does not exist":
            raise ManifestError(
                f"{show(path)} is no file; give images ({', '.join(decode.SUFFIXES)}), folders of them, or tables with a "
                "column 'image'."
            )
        if reason == "is a folder":
            yield from ((image, "") for image in _images_below(path))
        elif path.suffix.lower() in tables.SUFFIXES:
            listed = tables.read_table(path, ("image",), ("group",))
            images = listed.images("image", range(len(listed)))
            groups = listed.columns.get("group") or [None] * len(images)
            yield from ((image, group or "") for image, group in zip(images, groups, strict=True))
        else:
            yield path, ""


def _images_below(folder: Path) -> Iterator[Path]:
    """List images, and what is named as one or cannot be looked into; of a store no masks."""
    for entry in walk_entries(folder, (*decode.SUFFIXES, SUFFIX)):
        if entry.kind != "left out" and not entry.path.name.endswith(MASK + SUFFIX):
            yield entry.path


def _names_of(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Name a folder as the listings of those paths do that hold it; of one that is listed itself its pictures."""
    real = os.path.realpath(folder)
    inner = [(path, os.path.relpath(real, os.path.realpath(path))) for path in paths]
    names = [path / name for path, name in inner if name.split(os.sep)[0] not in (".", "..")]
    return names + [path / below for path, name in inner if name == "." for below in PICTURES]


def write_list(file: Path, paths: Sequence[Path]) -> tuple[int, bool]:
    """Write what `list_images` lists as Parquet; return how many there are, and whether any has a group.

    Pictures of earlier answers, in the list's own folder, are left out of a folder that holds it.

    Raises:
        ManifestError: as `list_images`; or there is no image, or a group is written in two ways.
    """
    num, groups, own = 0, dict[str, str](), _names_of(file.parent, paths)
    images = (row for row in list_images(paths) if not any(map(row[0].is_relative_to, own)))
    with replacing(file) as hidden, pq.ParquetWriter(hidden, _SCHEMA) as writer:
        while rows := list(islice(images, ROWS)):
            num += len(rows)
            groups.update((group, show(image)) for image, group in rows)
            images_of = [os.fsencode(image) for image, _ in rows]
            groups_of = [compose(group) for _, group in rows]
            writer.write_table(pa.table({"image": images_of, "group": groups_of}, _SCHEMA))
        if not num:
            raise ManifestError(
                f"No image is in {', '.join(map(show, paths))}; give images ({', '.join(decode.SUFFIXES)}), folders of them, or "
                "tables with a column 'image'."
            )
        refuse_spellings("group", groups)
    return num, groups.keys() != {""}


def read_list(file: Path, num: int) -> Iterator[list[tuple[str, str]]]:
    """Read images and their groups from a list, so many at a time."""
    for batch in pq.ParquetFile(file).iter_batches(num):
        images, groups = (column.to_pylist() for column in batch.columns)
        yield list(zip(map(os.fsdecode, images), groups, strict=True))
