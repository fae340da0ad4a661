"""Marks from one file per image: LabelMe's JSON (polygons, rectangles, circles) and VOC's XML (boxes).

They become COCO's form, so that one drawing and one set of checks serve all. A box marks all that it
holds; whoever has better outlines gives those.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from assay.data.masks.annotations import class_number, read_object, size_of
from assay.data.masks.marks import Mark, MarkedImage, read_numbers
from assay.errors import MaskError

_KINDS = "polygon, rectangle, circle"


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
    marks = []
    for i, shape in enumerate(content["shapes"], start=1):
        number = class_number(str(shape["label"]), classes, f"{path} has the label")
        kind = shape.get("shape_type") or "polygon"
        points = [read_numbers(point, 2, f"a point of shape {i}") for point in shape["points"]]
        outline = _outline(kind, points)
        if outline is None:
            raise MaskError(
                f"Shape {i} in {path} is a {kind!r} of {len(points)} points, which has no area; allowed: {_KINDS}. "
                "Outline it, or leave it out."
            )
        marks.append(Mark(f"shape {i}", number, [outline]))
    return MarkedImage(size_of(content, "imageHeight", "imageWidth"), tuple(marks))


def _outline(kind: str, points: list[Any]) -> list[float] | None:
    """Return the corners of a shape as one flat list; None if it has no area."""
    if kind == "polygon":
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
        pairs = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        return [number for pair in pairs for number in pair]
    return None


def _read_voc(path: Path, classes: Sequence[str]) -> MarkedImage:
    """Read boxes; pixels are counted from 1, and the last one belongs to the box (VOC devkit)."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (OSError, ElementTree.ParseError, LookupError) as error:
        raise ValueError(str(error)) from None
    size = {side: float(_text(root, f"size/{side}")) for side in ("height", "width")}
    marks = []
    for i, found in enumerate(root.iter("object"), start=1):
        number = class_number(_text(found, "name"), classes, f"{path} has the name")
        left, top, right, bottom = (
            float(_text(found, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        if not (left <= right and top <= bottom):
            raise ValueError(f"object {i} reaches from {left:g}, {top:g} to {right:g}, {bottom:g}")
        left, top = left - 1, top - 1
        outline = [left, top, right, top, right, bottom, left, bottom]
        marks.append(Mark(f"object {i}", number, [outline]))
    return MarkedImage(size_of(size, "height", "width"), tuple(marks))


def _text(element: ElementTree.Element, name: str) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise ValueError(f"{name} is missing or empty")
    return text
