"""Marks from one file per image: LabelMe's JSON (polygons, rectangles, circles, masks) and VOC's XML (boxes).

X-AnyLabeling writes LabelMe's form with rectangles of four corners, turned ones, and what is difficult.

They become COCO's form, so that one drawing and one set of checks serve all. A box marks all that it
holds; whoever has better outlines gives those.
"""

import base64
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np

from assay.data.images.decode import probe, read_plane
from assay.data.masks.annotations import class_number, read_flag, read_object, size_of
from assay.data.masks.marks import Mark, MarkedImage, read_numbers
from assay.errors import ImageError, MaskError
from assay.files import read_bytes
from assay.levels import VOID

_KINDS = "polygon, rectangle, rotation, circle, mask"


def read_export(path: Path, classes: Sequence[str]) -> MarkedImage:
    """Read what a LabelMe or VOC file, told by its suffix, says of its image.

    Raises:
        MaskError: the file is neither, or has a mark without an area or of no class.
    """
    read = _read_voc if path.suffix.lower() == ".xml" else _read_labelme
    try:
        return read(path, classes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MaskError(
            f"{path} cannot be read as LabelMe's JSON or VOC's XML ({type(error).__name__}: {error}); it must hold the size of "
            "its image, and marks with a label and an outline each."
        ) from None


def _read_labelme(path: Path, classes: Sequence[str]) -> MarkedImage:
    content = read_object(path)
    size = size_of(content, "imageHeight", "imageWidth")
    marks = []
    for i, shape in enumerate(content["shapes"], start=1):
        number = class_number(shape["label"], classes, f"{path} has the label")
        if read_flag(shape.get("difficult"), f"the difficult of shape {i}"):
            number = VOID
        kind = shape.get("shape_type") or "polygon"
        points = [read_numbers(point, 2, f"a point of shape {i}") for point in shape["points"]]
        if kind == "mask":
            what = f"The mask of shape {i} in {path}"
            runs, box = _runs_of(shape["mask"], points, size, what)
            marks.append(Mark(f"shape {i}", number, runs, box))
            continue
        outline = _outline(kind, points, size)
        if outline is None:
            raise MaskError(
                f"Shape {i} in {path} is a {kind!r} of {len(points)} points, which has no area; allowed: {_KINDS}. "
                "Outline it, or leave it out."
            )
        marks.append(Mark(f"shape {i}", number, [outline]))
    holders = [content, *content["shapes"]]
    flags = [f for each in holders for f, is_set in (each.get("flags") or {}).items() if is_set]
    return MarkedImage(size, tuple(marks), _name(content.get("imagePath")), tuple(flags))


def _name(path: Any) -> str:
    """Return a path's last part, whatever system wrote it; none where there is no path."""
    if not isinstance(path, str | None):
        raise ValueError(f"the image's path is {path!r:.40}, not a text")
    return PurePosixPath((path or "").strip().replace("\\", "/")).name


def _runs_of(
    text: str, points: list[Any], size: tuple[int, int], what: str
) -> tuple[dict[str, list[int]], tuple[float, ...]]:
    """Return COCO's run lengths, and the box that holds them, of a mask that LabelMe keeps as a PNG (base64).

    The PNG fills the box from the pixel of the first point to that of the second, which belongs to it.

    Raises:
        ValueError: the text is no base64.
        MaskError: the PNG does not decode, has not the size of its box, leaves the image, marks
            nothing, or holds more than one mark.
    """
    data = base64.b64decode(text, validate=True)
    (left, top), (right, bottom) = (map(round, point) for point in points)
    sides = bottom - top + 1, right - left + 1
    try:
        given = probe(data)
        plane = read_plane(data, "index") if given == sides else np.zeros((0, 0), np.uint8)
    except ImageError as error:
        raise MaskError(f"{what} does not decode ({error}); export it again.") from None
    is_inside = 0 <= top <= bottom < size[0] and 0 <= left <= right < size[1]
    num_values = len(np.unique(plane[plane > 0]))
    if not (given == sides and is_inside and num_values == 1):
        raise MaskError(
            f"{what} has {given[0]} x {given[1]} pixels (height x width) and {num_values} value(s) above 0 for a box from "
            f"{left}, {top} to {right}, {bottom} in an image of {size[0]} x {size[1]}; it must fill its box, lie in the image and "
            "hold one value beside 0: export it again."
        )
    columns, rows = np.nonzero(plane.T)
    places = (columns.astype(np.int64) + left) * size[0] + rows + top
    is_start = np.diff(places, prepend=-2) > 1
    is_stop = np.append(is_start[1:], True)
    edges = np.stack([places[is_start], places[is_stop] + 1], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=size[0] * size[1])
    corner = left + columns.min(), top + rows.min()
    box = (*map(float, corner), float(np.ptp(columns)) + 1, float(np.ptp(rows)) + 1)
    return {"size": [*size], "counts": counts.tolist()}, box


def _outline(kind: str, points: list[Any], size: tuple[int, int]) -> list[float] | None:
    """Return the corners of a shape as one flat list; None if it has no area.

    A circle whose middle and edge were set in the image may reach beyond it, and ends there.
    """
    if kind == "polygon" or (kind in ("rectangle", "rotation") and len(points) == 4):
        return [number for point in points for number in point]
    if kind in ("rectangle", "circle") and len(points) != 2:
        return None
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        return [left, top, right, top, right, bottom, left, bottom]
    if kind == "circle":  # its middle, and a point on its edge
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        num = min(max(16, math.ceil(2 * math.pi * radius)), 10_000)
        angles = [2 * math.pi * i / num for i in range(num)]
        corners = np.array([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles])
        if all(0 <= across <= size[1] and 0 <= down <= size[0] for across, down in points):
            corners = corners.clip(0, size[::-1])
        return list(corners.ravel().tolist())
    return None


def _read_voc(path: Path, classes: Sequence[str]) -> MarkedImage:
    """Read boxes; pixels are counted from 1, and the last one belongs to the box (VOC devkit).

    Files that say 0 somewhere, as many programs write them, count from 0, and mean the edges of pixels. Difficult objects are void, as in VOC's own masks; those that LabelMe's web tool calls deleted are none.
    """
    try:
        root = ElementTree.fromstring(read_bytes(path))
    except (OSError, ElementTree.ParseError, LookupError) as error:
        raise ValueError(str(error)) from None
    size = {side: _number(root, f"size/{side}", "the image") for side in ("height", "width")}
    objects = [each for each in root.iter() if each.tag.casefold() == "object"]
    of_objects = {box for each in objects for box in each.iter("bndbox")}
    if not of_objects.issuperset(root.iter("bndbox")):
        raise ValueError("a bndbox stands outside of every object, so that it would mark nothing")
    names = {f"object {i}": each for i, each in enumerate(objects, start=1)}
    there = {what: each for what, each in names.items() if not _flag(each, "deleted", what)}
    boxes = [_read_box(each, what) for what, each in there.items()]
    first = int(all(min(box[:2]) > 0 for box in boxes))
    marks = [
        _read_object(each, box, first, classes, what, path)
        for (what, each), box in zip(there.items(), boxes, strict=True)
    ]
    name = _name(root.findtext("filename"))
    return MarkedImage(size_of(size, "height", "width"), tuple(marks), name)


def _read_box(element: ElementTree.Element, what: str) -> tuple[float, float, float, float]:
    left, top, right, bottom = (
        _number(element, f"bndbox/{side}", what) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    if not (left <= right and top <= bottom):
        raise ValueError(f"{what} reaches from {left:g}, {top:g} to {right:g}, {bottom:g}")
    return left, top, right, bottom


def _read_object(
    element: ElementTree.Element,
    box: tuple[float, float, float, float],
    first: int,
    classes: Sequence[str],
    what: str,
    path: Path,
) -> Mark:
    """Read an object whose box counts pixels from `first`, 0 or 1."""
    number = class_number(_text(element, "name"), classes, f"{path} has the name")
    if _flag(element, "difficult", what):
        number = VOID
    if element.find("polygon") is not None:
        raise ValueError(
            f"{what} has a polygon beside its box, which alone would be marked; export COCO's or LabelMe's JSON"
        )
    left, top, right, bottom = box
    left, top = left - first, top - first
    return Mark(what, number, [[left, top, right, top, right, bottom, left, bottom]])


def _flag(found: ElementTree.Element, name: str, what: str) -> bool:
    """Read a mark of yes or no, 1 or 0; no where it is missing or empty."""
    if not any((each.text or "").strip() for each in found.findall(name)):
        return False
    text = _text(found, name)
    return read_flag(int(text) if text in ("0", "1") else text, f"the {name} of {what}")


def _number(element: ElementTree.Element, name: str, what: str) -> float:
    """Read a number in ASCII's digits; Python takes other spellings too, as 4_1."""
    text = _text(element, name)
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError(f"{name} of {what} is {text!r:.40}, not a number")
    return float(text)


def _text(element: ElementTree.Element, name: str) -> str:
    texts = [(found.text or "").strip() for found in element.findall(name)]
    if len(texts) != 1 or not texts[0]:
        raise ValueError(f"{name} {'stands twice' if len(texts) > 1 else 'is missing or empty'}")
    return texts[0]
