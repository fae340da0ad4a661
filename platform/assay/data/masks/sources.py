"""Where the given mask of each image comes from: mask files, files of marks, or one COCO file."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from assay.data.masks import account
from assay.data.masks.account import MaskAccount
from assay.data.masks.annotations import is_end, match_names, position
from assay.data.masks.coco import read_coco
from assay.data.masks.exports import read_export
from assay.data.masks.given import read_given
from assay.data.masks.header import Stand, read_orientation, turn
from assay.data.masks.marks import MarkedImage, draw
from assay.data.masks.patterns import Matches, match_files
from assay.data.masks.rules import MaskConfig
from assay.data.masks.unit import check_unit
from assay.errors import MaskError
from assay.files import read_bytes, sha256_of
from assay.levels import VOID
from assay.shapes import UInt8

MOST_READ = 64
"""Files of marks that are read at each start to tell their unit; in pixels the first mostly tells it."""

Read = Callable[[Stand], tuple[UInt8[np.ndarray, "h w"], MaskAccount]]


@dataclass(frozen=True)
class MaskSource:
    """A given mask: what it is made of, as JSON has it, and how it is read for an image that stands so."""

    key: Callable[[], Any]
    read: Read


def find_sources(
    images: Sequence[Path], root: Path, config: MaskConfig
) -> tuple[list[MaskSource], MaskAccount]:
    """Find the given mask of each image; count what is given and is no image's.

    Raises:
        MaskError: an image has none and masks.missing refuses that, one fits two images, or the COCO
            file cannot be read.
    """
    find = _find_in_coco if config.is_coco else _find_files
    return find(images, root, config)


def _find_files(
    images: Sequence[Path], root: Path, config: MaskConfig
) -> tuple[list[MaskSource], MaskAccount]:
    matches = match_files(images, root, config.files, config.classes)
    missing = [path for path, files in zip(images, matches.of_image, strict=True) if not files]
    _refuse_missing(missing, len(images), config)
    cornered = 0
    if config.is_export:
        exports = [file for files in matches.of_image for file, _ in files][:MOST_READ]
        marked = (read_export(file, config.classes) for file in exports)
        cornered = check_unit(marked, str(root / config.files))
    read = _read_export if config.is_export else _read_files
    digest = partial(_digest_exports, config.classes) if config.is_export else _digest
    sources = [
        MaskSource(partial(digest, files), partial(read, image, files, config))
        for image, files in zip(images, matches.of_image, strict=True)
    ]
    left_over = _left_over(images, matches, missing)
    return sources, account.add([left_over, MaskAccount(cornered=cornered)])


def _left_over(images: Sequence[Path], matches: Matches, missing: Sequence[Path]) -> MaskAccount:
    masked = {image.parent for image, files in zip(images, matches.of_image, strict=True) if files}
    lost = [image for image in missing if image.parent in masked]
    first = {"without": str(missing[0])} if missing else {}
    if lost:
        first["passed_over"] = str(lost[0])
    if matches.unused:
        first["unused_files"] = matches.unused[0]
    return MaskAccount(
        without=len(missing),
        passed_over=len(lost),
        unused_files=len(matches.unused),
        other_kinds=matches.other_kinds,
        first=first,
    )


def _refuse_missing(missing: Sequence[Path], num: int, config: MaskConfig) -> None:
    if missing and config.missing == "refuse":
        raise MaskError(
            f"{len(missing)} of {num} images have no mask of the classes {', '.join(config.classes)} by "
            f"the pattern {config.files!r}, first {missing[0]}; correct it, or pass --masks.missing empty to "
            "take them as free of defects."
        )


def _digest(files: Sequence[tuple[Path, int]]) -> list[Any]:
    try:
        return [[sha256_of(file), number] for file, number in files]
    except OSError as error:
        raise MaskError(
            f"The mask {error.filename} cannot be read ({error.strerror}); mend it, or leave its image out."
        ) from None


def _digest_exports(classes: Sequence[str], files: Sequence[tuple[Path, int]]) -> list[Any]:
    """Digest files of marks; what is difficult was not always void, nor were pixels ever counted from 0."""
    digest = _digest(files)
    contents = {file: read_bytes(file) for file, _ in files}
    named = [file for file, content in contents.items() if b"difficult" in content]
    marked = (read_export(file, classes) for file in named)
    is_void = any(mark.number == VOID for image in marked for mark in image.marks)
    is_from_0 = any(re.search(rb"min>\s*[+-]?0", content) for content in contents.values())
    return digest + ["void"] * is_void + ["from 0"] * is_from_0


def _read_files(
    image: Path, files: Sequence[tuple[Path, int]], config: MaskConfig, stand: Stand
) -> tuple[UInt8[np.ndarray, "h w"], MaskAccount]:
    """Read the mask files of an image; where they overlap, the class with the greater number wins."""
    masks, counts = [np.zeros(stand.size, dtype=np.uint8)], [MaskAccount(given=int(bool(files)))]
    for file, number in files:
        given = read_given(file, config)
        if given.mask.any():
            _refuse_copy(file, image)
        orientation = read_orientation(file)
        masks.append(_place(given.mask, image, stand, orientation, file, config) * np.uint8(number))
        first = {"soft": str(file)} if given.is_soft else {}
        if given.num_faint:
            first["faint"] = str(file)
        values = {str(value): num for value, num in given.values.items()}
        counts.append(
            MaskAccount(values=values, soft=int(given.is_soft), faint=given.num_faint, first=first)
        )
    return merge(masks), account.add(counts)


def _refuse_copy(file: Path, image: Path) -> None:
    """Refuse an image's own file as its mask: of a dark one what is bright would be marked."""
    if file.stat().st_size == image.stat().st_size and read_bytes(file) == read_bytes(image):
        raise MaskError(
            f"The mask {file} is a copy of its image {image}; give the masks themselves."
        )


def merge(masks: Sequence[UInt8[np.ndarray, "h w"]]) -> UInt8[np.ndarray, "h w"]:
    """Merge index masks; where they overlap, the class with the greater number wins."""
    merged: np.ndarray = np.maximum.reduce(masks)
    return merged


def _read_export(
    image: Path, files: Sequence[tuple[Path, int]], config: MaskConfig, stand: Stand
) -> tuple[UInt8[np.ndarray, "h w"], MaskAccount]:
    """Draw the files of marks of an image; their marks name the class."""
    masks, counts = [np.zeros(stand.size, dtype=np.uint8)], [MaskAccount(given=int(bool(files)))]
    for file, _ in files:
        marked = read_export(file, config.classes)
        _check_name(marked.name, file, image)
        mask, counted = _draw(marked, file, image, stand, config)
        masks.append(mask)
        counts.append(counted)
        if marked.flags:
            counts.append(
                MaskAccount(flagged=1, first={"flagged": f"{marked.flags[0]!r} in {file}"})
            )
    return merge(masks), account.add(counts)


def _check_name(name: str, file: Path, image: Path) -> None:
    """Refuse marks of another image; its suffix may be another, as after a conversion."""
    names = {position(text).casefold() for text in (name, PurePosixPath(name).stem)}
    if name and position(image.stem).casefold() not in names:
        raise MaskError(
            f"{file} says that its marks are of {name!r}, and lies in the place of those of {image}; give each image its own file, or "
            "correct the name in it (LabelMe's imagePath, VOC's filename) if the image was renamed."
        )


def _draw(
    marked: MarkedImage, file: Path, image: Path, stand: Stand, config: MaskConfig
) -> tuple[UInt8[np.ndarray, "h w"], MaskAccount]:
    size = stand.size
    if marked.size not in (size, size[::-1]):
        raise MaskError(
            f"{file} gives {image} {marked.size[1]} x {marked.size[0]} pixels, the image has {size[1]} x {size[0]}; "
            "annotate the image that is used, or resize neither."
        )
    mask, drawn = draw(marked, str(file))
    counts = vars(drawn)
    first = {name: f"in {file} on {image}" for name in ("specks", "ignored") if counts[name]}
    counted = MaskAccount(**counts, first=first)
    return _place(mask, image, stand, 1, file, config), counted


def _find_in_coco(
    images: Sequence[Path], root: Path, config: MaskConfig
) -> tuple[list[MaskSource], MaskAccount]:
    path = root / config.files
    entries = read_coco(path, config.classes)
    names = [Path(os.path.relpath(image, root)).as_posix() for image in images]
    matches = match_names(names, list(entries), str(path))
    missing = [image for image, name in zip(images, names, strict=True) if name not in matches]
    _refuse_missing(missing, len(images), config)
    cornered = check_unit(entries.values(), str(path))

    def source(image: Path, name: str) -> MaskSource:
        if name not in matches:
            return MaskSource(lambda: None, _nothing)
        entry = entries[matches[name]]

        def read(stand: Stand) -> tuple[UInt8[np.ndarray, "h w"], MaskAccount]:
            mask, counted = _draw(entry, path, image, stand, config)
            return mask, account.add([counted, MaskAccount(given=1)])

        return MaskSource(entry.key, read)

    sources = [source(image, name) for image, name in zip(images, names, strict=True)]
    strangers = sorted(entries.keys() - set(matches.values()))
    elsewhere = [name for name, entry in matches.items() if not is_end(entry, position(name))]
    first = {"without": str(missing[0])} if missing else {}
    first |= {"stranger_marks": strangers[0]} if strangers else {}
    first |= {"by_bare_name": elsewhere[0]} if elsewhere else {}
    return sources, MaskAccount(
        without=len(missing),
        unlisted=len(missing),
        strangers=len(strangers),
        stranger_marks=sum(len(entries[name].marks) for name in strangers),
        by_bare_name=len(elsewhere),
        cornered=cornered,
        first=first,
    )


def _nothing(stand: Stand) -> tuple[UInt8[np.ndarray, "h w"], MaskAccount]:
    return np.zeros(stand.size, dtype=np.uint8), MaskAccount()


def _place(
    mask: UInt8[np.ndarray, "h w"],
    image: Path,
    stand: Stand,
    orientation: int,
    source: Path,
    config: MaskConfig,
) -> UInt8[np.ndarray, "rows columns"]:
    """Bring a mask upon its upright image.

    Args:
        mask: as it was read, turned by its own file's orientation.
        image: its image.
        stand: of that.
        orientation: of the mask's file, 1 where it has none.
        source: the mask's file, for the error.
        config: says what the masks were drawn on where orientations differ.

    Raises:
        MaskError: the sizes differ, or the orientations do and nothing says which one is meant.
    """
    size, stored, turned = stand.size, stand.stored, stand.orientation
    if not mask.any() and mask.shape == stored:  # lies on it in the same way, however it is turned
        return np.zeros(size, dtype=np.uint8)
    if turned == orientation or not mask.any():
        check_size(mask, size, source, image)
        return mask
    if config.orientation == "stored" and orientation == 1:
        check_size(mask, stored, source, image)
        return turn(mask, turned)
    size_tells = stored != size and mask.shape == size and orientation == 1
    if config.orientation == "upright" or size_tells:
        check_size(mask, size, source, image)
        return mask
    raise MaskError(
        f"The image {image} has EXIF orientation {turned} and its mask {source} {orientation}, so that the mask may lie on it turned; "
        "pass --masks.orientation stored if masks were drawn on the pixels as they are stored, upright if on the image as it is seen, or "
        "save both upright."
    )


def check_size(
    mask: UInt8[np.ndarray, "h w"], size: tuple[int, int], source: Path, image: Path
) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        MaskError: names both.
    """
    if mask.shape != size:
        raise MaskError(
            f"The mask {source} has {mask.shape[1]} x {mask.shape[0]} pixels and its image {image} {size[1]} x {size[0]}; "
            "both must be of one size: replace one of them."
        )
