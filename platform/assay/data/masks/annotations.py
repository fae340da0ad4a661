"""What files of marks have in common: JSON read with care, sizes, names of classes, whose image is whose."""

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from assay.data.walk import show, why_unreadable
from assay.errors import MaskError
from assay.files import parse_json, read_bytes

MOST_SIDE = 1 << 20
"""A longer side (pixels) is no image's."""


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        MaskError: the file is missing, no JSON, or no object.
    """
    if reason := why_unreadable(path):
        raise MaskError(f"{show(path)} {reason}; give a file of annotations.")
    try:
        content = parse_json(read_bytes(path))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise MaskError(
            f"{path} cannot be read as annotations in COCO's or LabelMe's JSON ({type(error).__name__}: {error}); export it again."
        ) from None
    return content


def size_of(entry: Mapping[str, Any], height: str, width: str) -> tuple[int, int]:
    """Return height and width of an entry.

    Raises:
        KeyError: it has none.
        ValueError: they are no sizes.
    """
    sides = entry[height], entry[width]
    if any(type(side) not in (int, float) or not 0 < side < MOST_SIDE for side in sides):
        raise ValueError(f"height and width are {sides[0]!r:.40} and {sides[1]!r:.40}")
    if any(side != int(side) for side in sides):
        raise ValueError(f"height and width are {sides[0]} and {sides[1]}, not whole")
    return int(sides[0]), int(sides[1])


def read_flag(value: Any, what: str) -> bool:
    """Read a mark of yes or no: 1 or 0, true or false; what is not said is no.

    Raises:
        ValueError: it is something else, such as a text, of which any would count as yes.
    """
    if value is None:
        return False
    if type(value) not in (bool, int) or value not in (0, 1):
        raise ValueError(f"{what} is {value!r:.40}, not 0 or 1")
    return bool(value)


def class_number(name: Any, classes: Sequence[str], what: str) -> int:
    """Return the number of a class, a text or a whole number, whatever its case, from 1.

    Raises:
        MaskError: it is none; the sentence begins with `what`.
        ValueError: it is something else, such as null.
    """
    if type(name) not in (str, int):
        raise ValueError(f"the name of a class is {name!r:.40}, not a text")
    name = str(name)
    numbers = {known.casefold(): i for i, known in enumerate(classes, start=1)}
    number = numbers.get(name.casefold())
    if number is None:
        raise MaskError(
            f"{what} {name!r}; allowed: {', '.join(classes)}. Add it to --masks.classes, or leave its annotations out."
        )
    return number


def position(path: str) -> str:
    """Return a path in the one spelling of its letters that is compared (NFC)."""
    return unicodedata.normalize("NFC", path)


def match_names(images: Sequence[str], entries: Sequence[str], file: str) -> dict[str, str]:
    """Find the entry of each image: its path, or the end of it; or else its bare name, if no other has it.

    Args:
        images: paths below the data's root.
        entries: paths that a file has.
        file: what errors call it.

    Raises:
        MaskError: an entry fits two images, or an image two entries.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for entry in dict.fromkeys(entries):
        by_name[PurePosixPath(entry).name].append(entry)
    owners: dict[str, str] = {}
    matches: dict[str, str] = {}
    rest: dict[str, list[str]] = defaultdict(list)
    for image in images:
        path = position(image)
        fits = [e for e in by_name[PurePosixPath(path).name] if is_end(e, path)]
        fits = [path] if path in fits else fits
        if len(fits) > 1:
            raise MaskError(
                f"{file} lists {fits[0]} and {fits[1]}, which both fit the image {image}; give it one path."
            )
        if fits:
            matches[image] = fits[0]
            if owners.setdefault(fits[0], image) != image:
                raise MaskError(
                    f"{file} lists {fits[0]}, which fits the images {owners[fits[0]]} and {image}; give each its path below data.root."
                )
        else:
            rest[PurePosixPath(path).name].append(image)
    for name, others in rest.items():
        free = [entry for entry in by_name[name] if entry not in owners]
        if len(free) == len(others) == 1 == len(by_name[name]):
            matches[others[0]] = free[0]
    return matches


def is_end(first: str, second: str) -> bool:
    """Whether one path is the end of the other."""
    ends = sorted((PurePosixPath(first).parts, PurePosixPath(second).parts), key=len)
    return ends[1][-len(ends[0]) :] == ends[0]
