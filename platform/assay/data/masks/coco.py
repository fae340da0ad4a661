"""Marks from a COCO annotation file: polygons, and run lengths as lists or as COCO's text."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from assay.data.masks.annotations import (
    class_number,
    position,
    read_flag,
    read_object,
    size_of,
)
from assay.data.masks.marks import Mark, MarkedImage, read_numbers
from assay.errors import MaskError
from assay.levels import VOID


def read_coco(path: Path, classes: Sequence[str]) -> dict[str, MarkedImage]:
    """Read what a COCO file says of each image, by the path that it has for it.

    An image that is listed twice under one path has the marks of both entries. The categories that
    are used must be `classes`, whatever their case; what is marked with ignore is nobody's to judge.

    Raises:
        MaskError: the file is not COCO; an id stands for two things; an annotation is of an image or
            a category that the file does not have, or of one that is no class; or one file has two
            sizes.
    """
    content = read_object(path)
    try:
        return _read(content, path, classes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MaskError(
            f"{path} cannot be read as COCO annotations ({type(error).__name__}: {error}); it must hold images, "
            "categories, and annotations with a segmentation each."
        ) from None


def _read(content: Mapping[str, Any], path: Path, classes: Sequence[str]) -> dict[str, MarkedImage]:
    names = {key: entry["name"] for key, entry in _by_id(content, "categories", path).items()}
    images = _by_id(content, "images", path)
    files = {key: _posix(entry["file_name"]) for key, entry in images.items()}
    marks: dict[str, list[Mark]] = {file: [] for file in files.values()}
    for key, annotation in _by_id(content, "annotations", path).items():
        image, category = annotation["image_id"], annotation["category_id"]
        for kind, number, known in (("image", image, files), ("category", category, names)):
            if number not in known:
                raise MaskError(
                    f"Annotation {key} in {path} is of the {kind} {number!r}, which the file does not list (KeyError); "
                    "export it whole, or leave the annotation out."
                )
        marks[files[image]].append(_mark(key, annotation, names[category], path, classes))
    return {
        file: MarkedImage(size, tuple(marks[file])) for file, size in _sizes(images, path).items()
    }


def _mark(
    key: Any, annotation: Mapping[str, Any], name: Any, path: Path, classes: Sequence[str]
) -> Mark:
    is_ignored = read_flag(annotation.get("ignore"), f"the ignore of annotation {key}")
    number = VOID if is_ignored else class_number(name, classes, f"{path} uses the category")
    area = read_numbers(annotation.get("area"), None, f"the area of annotation {key}")
    return Mark(
        f"annotation {key}",
        number,
        annotation["segmentation"],
        read_numbers(annotation.get("bbox"), 4, f"the bbox of annotation {key}"),
        area[0] if area else None,
        read_flag(annotation.get("iscrowd"), f"the iscrowd of annotation {key}"),
    )


def _by_id(content: Mapping[str, Any], kind: str, path: Path) -> dict[Any, Mapping[str, Any]]:
    """Return entries by their id; the same entry may stand there twice, and is one."""
    entries: dict[Any, Mapping[str, Any]] = {}
    for entry in content[kind]:
        first = entries.setdefault(entry["id"], entry)
        if first != entry:
            raise MaskError(
                f"{path} gives the id {entry['id']!r} to two {kind}, so that one of them would be lost; number them anew, "
                "as where two files were merged."
            )
    return entries


def _sizes(images: Mapping[Any, Mapping[str, Any]], path: Path) -> dict[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = {}
    for entry in images.values():
        file, size = _posix(entry["file_name"]), size_of(entry, "height", "width")
        if sizes.setdefault(file, size) != size:
            raise MaskError(
                f"{path} lists {file} twice, with {sizes[file][1]} x {sizes[file][0]} pixels and with {size[1]} x {size[0]}; "
                "correct one of them, and the marks of both are joined."
            )
    return sizes


def _posix(file: Any) -> str:
    """Return a path as it is compared: slashes, whatever system wrote it, and one spelling of letters."""
    if not isinstance(file, str) or not file:
        raise ValueError(f"the file name {file!r} is no text")
    return position(PurePosixPath(file.replace("\\", "/")).as_posix())
