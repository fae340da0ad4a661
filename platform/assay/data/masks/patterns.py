"""Which files of the user's are masks of which image: a pattern of paths, filled for each image."""

import os
import posixpath
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from assay.data.walk import find_files
from assay.errors import MaskError

FIELDS = ("{folder}", "{parent}", "{name}", "{kind}", "*")
"""What a pattern may hold: the image's folder below the root, the last part of that, the image's
name without suffix, a class's name, and anything within one part of the path."""


_KIND, _ANY = "\1", "\2"  # stand for {kind} and * where an image's own name may hold an asterisk


def unknown_fields(pattern: str) -> list[str]:
    """Return what stands in braces and is none of `FIELDS`."""
    return [field for field in re.findall(r"\{\w*\}", pattern) if field not in FIELDS]


def match_files(
    images: Sequence[Path], root: Path, pattern: str, classes: Sequence[str]
) -> list[list[tuple[Path, int]]]:
    """Find for each image the files that fit and the number of each file's class, in the paths' order.

    Kinds are classes whatever their case; files of other kinds are no masks and left out. Without
    {kind} every file is of class 1.

    Raises:
        MaskError: a file fits two images.
    """
    numbers = {name.casefold(): i for i, name in enumerate(classes, start=1)} | {None: 1}
    listings: dict[str, list[str]] = {}
    owners: dict[str, Path] = {}
    files_of: list[list[tuple[Path, int]]] = []
    for image in images:
        filled = _fill(pattern, PurePosixPath(Path(os.path.relpath(image, root)).as_posix()))
        regex = _regex(filled, classes)
        files: list[tuple[Path, int]] = []
        for name in _candidates(filled, root, listings):
            match = regex.fullmatch(name)
            number = numbers.get(_kind(match)) if match else None
            if number is None:
                continue
            files.append((root / name, number))
            if owners.setdefault(name, image) != image:
                raise MaskError(
                    f"The mask {name} fits the images {owners[name]} and {image}; put {{folder}} or {{parent}} into "
                    f"--masks.files ({pattern!r}), so that each mask has one image."
                )
        files_of.append(files)
    return files_of


def _kind(match: re.Match[str]) -> str | None:
    return match.groupdict().get("kind", "").casefold() or None


def _fill(pattern: str, image: PurePosixPath) -> str:
    folder = image.parent.as_posix()
    values = dict(zip(FIELDS, (folder, image.parent.name, image.stem, _KIND, _ANY), strict=True))
    return posixpath.normpath(re.sub(r"\{\w+\}|\*", lambda field: values[field[0]], pattern))


def _candidates(filled: str, root: Path, listings: dict[str, list[str]]) -> list[str]:
    """List paths below root that begin as the filled pattern does, sorted."""
    prefix = re.split(f"[{_KIND}{_ANY}]", filled)[0]
    if prefix == filled:
        return [filled] if (root / filled).is_file() else []
    top = posixpath.dirname(prefix)
    if top not in listings:
        paths = find_files(root / top) if (root / top).is_dir() else []
        listings[top] = sorted(Path(os.path.relpath(path, root)).as_posix() for path in paths)
    names = listings[top]
    start = bisect_left(names, prefix)
    stop = bisect_right(names, prefix, lo=start, key=lambda name: name[: len(prefix)])
    return names[start:stop]


def _regex(filled: str, classes: Sequence[str]) -> re.Pattern[str]:
    # classes before any other kind, longer ones first: one class may begin as another does
    names = "|".join(re.escape(name) for name in sorted(classes, key=len, reverse=True))
    wild = {_KIND: f"(?P<kind>(?i:{names})|[^/]+?)", _ANY: "[^/]*"}
    parts = re.split(f"([{_KIND}{_ANY}])", filled)
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts))
