"""Rows of a folder of images whose names speak."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.data.images.decode import SUFFIXES
from assay.data.walk import find_files, is_left_out, show
from assay.errors import ManifestError

SPLITS = ("train", "val", "test", "test_seen", "test_unseen")

MASK_NAME = re.compile(
    r"[ _-](mask|gt|ground_?truth|seg|segmentation|annotation)s?$", re.IGNORECASE
)
"""Ends of the names of masks that lie beside their images."""


@dataclass(frozen=True)
class ImageRow:
    """An image, and what its name or its row of a table says of it."""

    id: str
    """Its path below the folder, or from the table."""
    image: Path
    fields: Mapping[str, str]


def scan_folder(
    root: Path,
    patterns: Sequence[str],
    label: str,
    split: str,
    leave_out: Sequence[str] = (),
) -> list[ImageRow]:
    """List the images below a folder, with the fields of their names.

    Args:
        root: the folder.
        patterns: paths below it without suffix, {field} for each part of the name.
        label: field of the class, or "".
        split: field of the set, which a first folder of a set's name gives too; "": none does.
        leave_out: folders below it that are passed over.

    Raises:
        ManifestError: there is no image, a name fits no pattern, a class folder is empty, one to
            be left out is not there, or as `find_files`.
    """
    others = _folders_left_out(root, leave_out)
    files = [
        file
        for file in find_files(root, SUFFIXES)
        if not any(file.is_relative_to(folder) for folder in others)
    ]
    if not files:
        raise ManifestError(
            f"{root} holds no image ({', '.join(sorted(SUFFIXES))}); point data.root at a folder that does."
        )
    _refuse_masks(files)
    rows = _read_names(root, files, patterns, split)
    if all(pattern.startswith("{" + (label or "?") + "}/") for pattern in patterns):
        _refuse_empty_classes(root, {row.fields[label] for row in rows}, others)
    return rows


def _folders_left_out(root: Path, names: Sequence[str]) -> list[Path]:
    folders = [root / os.path.relpath(root / name, root) for name in names]
    for folder in folders:
        if not folder.is_dir() or folder == root or ".." in folder.relative_to(root).parts:
            raise ManifestError(
                f"{show(folder)} is to be left out and is no folder below {show(root)}; give folders below data.root as data.leave-out, or none."
            )
    return folders


def _read_names(
    root: Path, files: Sequence[Path], patterns: Sequence[str], split: str
) -> list[ImageRow]:
    """Read the fields of the files' names, or refuse those that fit no pattern."""
    regexes = [_regex(pattern) for pattern in patterns]
    rows: list[ImageRow] = []
    strangers: list[str] = []
    for file in files:
        path = file.relative_to(root)
        name = path.with_suffix("").as_posix()
        fields = _fields(name, regexes, split)
        if fields is None:
            strangers.append(name)
        else:
            rows.append(ImageRow(path.as_posix(), file, fields))
    if strangers:
        raise ManifestError(
            f"{len(strangers)} of {len(files)} images under {root} fit no pattern, first {strangers[0]!r}; "
            f"allowed: {' or '.join(patterns)}, with or without a first folder train, val or test. "
            "Rename or move them, or give --data.patterns, or their folder as --data.leave-out."
        )
    return rows


def _refuse_masks(files: Sequence[Path]) -> None:
    """Refuse masks beside their images, which would be images of the same class, and tell it."""
    names = {file.with_suffix("") for file in files}
    for file in files:
        image = MASK_NAME.sub("", file.stem)
        if image != file.stem and file.with_name(image) in names:
            raise ManifestError(
                f"{show(file)} lies beside the image {image}, as its mask does, and would be an image of its own; move masks into a folder outside, "
                "or one that --data.leave-out names."
            )


def _regex(pattern: str) -> re.Pattern[str]:
    start, *pieces = re.split(r"\{(\w+)\}", pattern)
    parts = [
        f"(?P<{field}>[^/]+?){re.escape(after)}"
        for field, after in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    # what ends where its text first comes leaves most to the rest, so that no other end need be tried:
    # of many fields there are more ends than a name could be tried by
    parts[:-1] = [f"(?>{part})" for part in parts[:-1]]
    try:
        return re.compile(re.escape(start) + "".join(parts))
    except re.error as error:
        raise ManifestError(
            f"data.patterns has {pattern!r} ({error}); give each {{field}} once, by a name of letters."
        ) from None


def _fields(name: str, regexes: Sequence[re.Pattern[str]], split: str) -> Mapping[str, str] | None:
    """Read the fields of a path by the first pattern that it fits."""
    first, _, rest = name.partition("/")
    is_set = first in SPLITS
    declared = {split: first} if is_set and split else {}
    inner = rest if is_set else name
    for regex in regexes:
        # a pattern that names the set itself sees the whole name
        match = regex.fullmatch(name if split in regex.groupindex else inner)
        if match is not None:
            return declared | match.groupdict()
    return None


def _refuse_empty_classes(root: Path, labels: set[str], left_out: Sequence[Path]) -> None:
    sets = [root / name for name in SPLITS if (root / name).is_dir()]
    folders = {d for top in (root, *sets) for d in top.iterdir() if d.is_dir()}
    for folder in sorted(folders.difference(sets, left_out)):
        if folder.name not in labels and not is_left_out(folder.name):
            raise ManifestError(
                f"The class folder {folder} holds no image; add images or remove the folder."
            )
