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

LIST = "images.parquet"
"""File of a list beside its answers."""

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
    """List images, and what is named as one or cannot be looked into; of a store no masks, of answers no pictures."""
    inner, are_answers = folder, False
    for entry in walk_entries(folder, (*decode.SUFFIXES, SUFFIX)):
        if entry.path.parent != inner:
            inner = entry.path.parent
            are_answers = inner != folder and _are_answers(inner)
        if entry.kind == "left out" or are_answers or entry.path.name.endswith(MASK + SUFFIX):
            continue
        yield entry.path


def _are_answers(folder: Path) -> bool:
    """Tell whether a folder holds pictures that this command drew, whichever --out they are of."""
    beside = folder.parent
    return folder.name in PICTURES and (beside / LIST).is_file() and (beside / "chunks").is_dir()


def _refuse_again(paths: Sequence[Path]) -> None:
    """Refuse a path that is named twice, or lies in a folder that is named too: its images would count twice."""
    named: set[str] = set()
    for path in sorted(map(os.path.abspath, paths)):
        if not named.isdisjoint((path, *map(str, Path(path).parents))):
            raise ManifestError(
                f"{show(path)} is named twice, by itself or by a folder that holds it, and would be judged twice; name it once."
            )
        named.add(path)


def write_list(file: Path, paths: Sequence[Path]) -> tuple[int, bool]:
    """Write what `list_images` lists as Parquet; return how many there are, and whether any has a group.

    Pictures of earlier answers are left out of a folder that holds them.

    Raises:
        ManifestError: as `list_images`; or there is no image, a path is named twice, a group is written in two ways, or
            the file lists other images alone, whose answers would be lost, or is none of this command.
    """
    _refuse_again(paths)
    num, groups, images = 0, dict[str, str](), list_images(paths)
    earlier = _read_earlier(file)
    is_other = bool(earlier)
    with replacing(file) as hidden, pq.ParquetWriter(hidden, _SCHEMA) as writer:
        while rows := list(islice(images, ROWS)):
            num += len(rows)
            groups.update((group, show(image)) for image, group in rows)
            is_other = is_other and earlier.isdisjoint(_resolve(str(image)) for image, _ in rows)
            images_of = [os.fsencode(image) for image, _ in rows]
            groups_of = [compose(group) for _, group in rows]
            writer.write_table(pa.table({"image": images_of, "group": groups_of}, _SCHEMA))
        if not num:
            raise ManifestError(
                f"No image is in {', '.join(map(show, paths))}; give images ({', '.join(decode.SUFFIXES)}), folders of them, or "
                "tables with a column 'image'."
            )
        refuse_spellings("group", groups)
        if is_other:
            raise ManifestError(
                f"{show(file.parent)} holds answers for other images ({show(Path(min(earlier)))} and others), which would be lost; give another folder as --out."
            )
    return num, groups.keys() != {""}


def _read_earlier(file: Path) -> set[str]:
    """Read the first images of an earlier list, without symbolic links; none where there is no list."""
    if not os.path.lexists(file):
        return set()
    try:
        if pq.read_schema(file).equals(_SCHEMA):
            return {_resolve(name) for name, _ in next(read_list(file, ROWS))}
    except (pa.ArrowInvalid, OSError, StopIteration):
        pass
    raise ManifestError(
        f"{show(file)} is no list of this command, or damaged, and would be written over; give another folder as --out."
    )


def _resolve(name: str) -> str:
    """Return a path without symbolic links; one that no file can have, as it stands."""
    try:
        return os.path.realpath(name)
    except ValueError:  # its row will say why
        return name


def read_list(file: Path, num: int) -> Iterator[list[tuple[str, str]]]:
    """Read images and their groups from a list, so many at a time."""
    for batch in pq.ParquetFile(file).iter_batches(num):
        images, groups = (column.to_pylist() for column in batch.columns)
        yield list(zip(map(os.fsdecode, images), groups, strict=True))
