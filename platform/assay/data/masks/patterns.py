"""Which files of the user's are masks of which image: a pattern of paths, filled for each image."""

import os
import posixpath
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from assay.data.walk import find_files
from assay.errors import MaskError

FIELDS = ("{folder}", "{parent}", "{name}", "{kind}", "*")
"""What a pattern may hold: the image's folder below the root, the last part of that, the image's
name without suffix, a class's name, and anything within one part of the path."""

MOST_FOLDERS = 4
"""Times that a pattern may hold {folder}: of more there are too many ways to tell whose a file could be."""

_KIND, _ANY, _DEEP = "\1", "\2", "\3"
"""Stand for {kind}, * and any folders where an image's own name may hold an asterisk."""


def unknown_fields(pattern: str) -> list[str]:
    """Return what stands in braces, or behind or before one, and is none of `FIELDS`."""
    braced: list[str] = re.findall(r"\{[^{}]*\}?|\}", pattern)
    return [field for field in braced if field not in FIELDS]


@dataclass(frozen=True)
class Matches:
    """Files of the user's, and whose they are."""

    of_image: list[list[tuple[Path, int]]]
    """Of each image, in the order of their paths, with the number of each file's class."""
    other_kinds: Mapping[str, int]
    """Files of an image whose kind is no class, by kind."""
    unused: list[str]
    """Files that the pattern fits, and that are no image's; paths below the root."""


def match_files(
    images: Sequence[Path], root: Path, pattern: str, classes: Sequence[str]
) -> Matches:
    """Find for each image the files that fit.

    Kinds are classes whatever their case; files of other kinds are no masks. Without {kind} every
    file is of class 1. Hidden files are passed over.

    Raises:
        MaskError: a file fits two images, or is one.
    """
    numbers = {name.casefold(): i for i, name in enumerate(classes, start=1)} | {None: 1}
    listings: dict[str, list[str]] = {}
    owners: dict[str, Path] = {}
    pictures = {_below(image, root) for image in images}
    others: Counter[str] = Counter()
    files_of: list[list[tuple[Path, int]]] = []
    for image in images:
        filled = _fill(pattern, PurePosixPath(_below(image, root)))
        regex = _regex(filled, classes)
        files: list[tuple[Path, int]] = []
        for name in _candidates(filled, root, listings):
            match = regex.fullmatch(name)
            if match is None:
                continue
            if name in pictures:
                raise MaskError(
                    f"{name} would be the mask of {image} by the pattern {pattern!r}, and is an image of the data; correct --masks.files, or "
                    "leave masks out of the images (--data.leave-out)."
                )
            if owners.setdefault(name, image) != image:
                raise MaskError(
                    f"The mask {name} fits the images {owners[name]} and {image}; put {{folder}} or {{parent}} into "
                    f"--masks.files ({pattern!r}), so that each mask has one image."
                )
            number = numbers.get(_kind(match))
            if number is None:
                others[match["kind"]] += 1
            else:
                files.append((root / name, number))
        files_of.append(files)
    unused = _find_unused(pattern, root, {*owners, *pictures})
    return Matches(files_of, dict(others), unused)


def _find_unused(pattern: str, root: Path, used: set[str]) -> list[str]:
    """List files that fit the pattern whatever the image, and are not used."""
    parts: list[str] = []
    for part in pattern.split("/"):
        if part == ".." and _DEEP in parts[-1:]:  # above any folder stands any
            continue
        parts.append(_DEEP if part == "{folder}" else re.sub(r"\{\w+\}|\*", _ANY, part))
    free = posixpath.normpath("/".join(parts)).replace(f"{_DEEP}/", _DEEP)
    prefix = re.split(f"[{_ANY}{_DEEP}]", free)[0]
    if prefix == free:
        return []
    regex = _regex(free, ())
    names = _list_files(root, posixpath.dirname(prefix))
    return [name for name in names if name not in used and regex.fullmatch(name)]


def _below(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


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
        listings[top] = _list_files(root, top)
    names = listings[top]
    start = bisect_left(names, prefix)
    stop = bisect_right(names, prefix, lo=start, key=lambda name: name[: len(prefix)])
    return names[start:stop]


def _list_files(root: Path, top: str) -> list[str]:
    """List the files below a folder of the root, sorted."""
    paths = find_files(root / top) if (root / top).is_dir() else []
    return sorted(_below(path, root) for path in paths)


def _regex(filled: str, classes: Sequence[str]) -> re.Pattern[str]:
    # classes before any other kind, longer ones first: one class may begin as another does
    names = "|".join(re.escape(name) for name in sorted(classes, key=len, reverse=True))
    wild = {_KIND: f"(?P<kind>(?i:{names})|[^/]+?)", _ANY: "[^/]*", _DEEP: "(?:[^/]+/)*"}
    start, *pieces = re.split(f"([{_KIND}{_ANY}{_DEEP}])", filled)
    regex = re.escape(start)
    signs, texts = pieces[::2], map(re.escape, pieces[1::2])
    for sign, text, following in zip(signs, texts, [*signs, ""][1:], strict=True):
        # what a * leaves the next one takes, so that its shortest end fits if any does: of many * there
        # are more ends than a name could be tried by
        is_shortest = sign == following == _ANY
        regex += f"(?>[^/]*?{text})" if is_shortest else wild[sign] + text
    return re.compile(regex)
