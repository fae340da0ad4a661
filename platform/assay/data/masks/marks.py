"""The one form of marks, whatever file they come from, and what each draws against what it says of itself.

A file of marks (COCO, LabelMe, VOC) is read to `MarkedImage`s. Where a mark gives its box and area, the
pixels that it draws must agree with them: coordinates of another unit, run lengths of another order
and marks too thin for a pixel are told by that and by nothing else.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np

from assay.data.masks.raster import decode_runs, fill_polygon, fill_polygons
from assay.errors import MaskError
from assay.levels import VOID
from assay.shapes import Bool, UInt8

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom (pixels)."""

BOX_PX = 2.0
"""How far a side of a given box may lie from the mark's: the corner of a pixel or its middle, the last
pixel counted or not, and numbers rounded, each move it by up to one."""

OUTSIDE = 0.01
"""Share of a side by which a corner may lie outside the image (and 2 pixels at least): hands slip."""

TORN = 2.0
"""Run lengths of no box whose mark has this many times the edge that it has when they are read along the rows are of rows."""

NEARER = 3
"""Times that an area must be nearer to that of polygons with holes than to that of polygons joined, to tell them."""

UNIT_SIDE = 8
"""In an image with a longer side, a mark whose coordinates are all about 0 to 1 is one in normalised coordinates."""


@dataclass(frozen=True)
class Mark:
    """One mark: what errors call it, its class's number (VOID: to be ignored), its polygons or run lengths, and what it says of itself."""

    name: str
    number: int
    shape: Any
    """Polygons as COCO has them (flat lists x, y, x, y...), or an object of `size` and `counts`."""
    box: tuple[float, ...] | None = None
    """Left, top, width, height."""
    area: float | None = None
    is_crowd: bool = False


@dataclass(frozen=True)
class MarkedImage:
    """The size (height, width) that a file gives an image, its marks, and the image's name and flags that are set where a file of one image gives them."""

    size: tuple[int, int]
    marks: tuple[Mark, ...] = ()
    name: str = ""
    flags: tuple[str, ...] = ()

    def key(self) -> Any:
        """Return what identifies it, as JSON has it."""
        return [self.size, [[m.number, m.shape] for m in self.marks]]


@dataclass(frozen=True)
class Drawn:
    """How many marks of an image were drawn, were of a crowd, lie within one pixel and drew none, or are to be ignored."""

    marks: int = 0
    crowds: int = 0
    specks: int = 0
    ignored: int = 0

    def __add__(self, other: "Drawn") -> "Drawn":
        """Add up."""
        return Drawn(
            self.marks + other.marks,
            self.crowds + other.crowds,
            self.specks + other.specks,
            self.ignored + other.ignored,
        )


def draw(image: MarkedImage, file: str) -> tuple[UInt8[np.ndarray, "h w"], Drawn]:
    """Draw the index mask; where marks overlap, the class with the greater number wins, and any over what is ignored.

    Raises:
        MaskError: a mark does not decode, leaves the image, draws no pixel though it is larger than
            one, or draws others than its own box and area say; names the mark and `file`.
    """
    mask = np.zeros(image.size, dtype=np.uint8)
    drawn = Drawn()
    for mark in sorted(image.marks, key=lambda mark: mark.number == VOID):
        try:
            region, top, left = _draw(mark, image.size)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise MaskError(
                f"The segmentation of {mark.name} in {file} does not decode ({error}); allowed: polygons of three points "
                "and more, or run lengths that fill the image. Export it again."
            ) from None
        except _MisplacedError as error:
            raise MaskError(f"{mark.name.capitalize()} in {file} {error}") from None
        window = mask[top : top + region.shape[0], left : left + region.shape[1]]
        is_ignored = mark.number == VOID
        if is_ignored:
            window[region & (window == 0)] = VOID
        else:
            np.maximum(window, region * np.uint8(mark.number), out=window)
        drawn += Drawn(1, int(mark.is_crowd), int(not region.any()), int(is_ignored))
    return mask, drawn


class _MisplacedError(Exception):
    """A mark that decodes and lies elsewhere than it should; says so in half a sentence."""


def _draw(mark: Mark, size: tuple[int, int]) -> tuple[Bool[np.ndarray, "h w"], int, int]:
    """Draw one mark; return a part of the mask that holds it, its top and its left."""
    if isinstance(mark.shape, dict):
        return _draw_runs(mark, size), 0, 0
    if not mark.shape:
        if _says_nothing(mark) and mark.area is not None:
            return np.zeros((0, 0), dtype=bool), 0, 0
        raise ValueError("it is empty")
    if not all(isinstance(flat, list) and flat for flat in mark.shape):
        raise ValueError("a polygon of it is no list of numbers")
    wrong = [v for flat in mark.shape for v in flat if isinstance(v, str | bool)]
    if wrong:  # numpy would take them for numbers
        raise ValueError(f"a coordinate is {wrong[0]!r:.40}, not a number")
    polygons = [np.array(flat, dtype=np.float64).reshape(-1, 2) for flat in mark.shape]
    points = np.concatenate(polygons)
    if np.isfinite(points).all():  # else they are refused where they are filled
        _check_range(points, size)
    region, top, left = fill_polygons(polygons, *size)
    bounds = (*points.min(0).tolist(), *points.max(0).tolist())
    _check_box(mark, bounds, size)
    if not region.any() and max(bounds[2] - bounds[0], bounds[3] - bounds[1]) > 1:
        raise _MisplacedError(
            f"draws no pixel, though it reaches from {_shown(bounds[:2])} to {_shown(bounds[2:])}: it is thinner than a pixel "
            "or its outline takes itself back; draw it wider, or leave it out."
        )
    _check_holes(mark, region, polygons, (top, left))
    lines = [points - np.roll(points, 1, axis=0) for points in polygons]
    perimeter = sum(float(np.hypot(*line.T).sum()) for line in lines)
    _check_area(mark, region, perimeter, sum(_area(points) for points in polygons))
    return region, top, left


def _check_holes(
    mark: Mark, region: Bool[np.ndarray, "h w"], polygons: list[np.ndarray], corner: tuple[int, int]
) -> None:
    """Refuse polygons of which some cut holes into others, as the area tells: COCO's are joined."""
    if not mark.area or len(polygons) < 2:
        return
    top, left = corner
    with_holes = np.zeros_like(region)
    for points in polygons:
        with_holes ^= fill_polygon(points - (left, top), *region.shape)
    joined, cut = np.count_nonzero(region), np.count_nonzero(with_holes)
    if NEARER * abs(mark.area - cut) < abs(mark.area - joined):
        raise _MisplacedError(
            f"has {len(polygons)} polygons of {joined} pixels together, and its area is {mark.area:g}, as if those that lie in others were "
            "holes, which COCO's polygons cannot say; export it as run lengths."
        )


def _draw_runs(mark: Mark, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    runs = mark.shape
    if not {"size", "counts"} <= runs.keys():
        raise ValueError("it has no size and counts")
    if not isinstance(runs["size"], list) or tuple(runs["size"]) != size:
        raise ValueError(f"its size is {runs['size']}, the image's {list(size)}")
    region = decode_runs(runs["counts"], *size)
    if not region.any():
        if mark.area or not _says_nothing(mark):
            raise _MisplacedError(
                f"draws no pixel and says that it has {mark.area} in {mark.box}; export it again."
            )
        return region
    by_rows = decode_runs(runs["counts"], size[1], size[0]).T
    has_box = mark.box is not None and any(mark.box[2:])
    if has_box:
        is_of_rows = _is_close(mark.box, _bounds(by_rows), size)
        is_of_rows &= not _is_close(mark.box, _bounds(region), size)
    else:
        is_of_rows = _edges(region) > TORN * _edges(by_rows)
    if is_of_rows:
        raise _MisplacedError(
            f"has run lengths along the rows, by which alone they {'fit its bbox' if has_box else 'are not torn to shreds'}; COCO's "
            "go down the columns: export it again."
        )
    _check_box(mark, _bounds(region), size)
    inner = cv2.erode(region.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0)
    edge = np.count_nonzero(region) - np.count_nonzero(inner)
    _check_area(mark, region, float(edge), float(np.count_nonzero(region)))
    return region


def _edges(region: Bool[np.ndarray, "h w"]) -> int:
    """Count the pairs of neighbouring pixels of which one is marked."""
    down, across = region[1:] != region[:-1], region[:, 1:] != region[:, :-1]
    return int(np.count_nonzero(down) + np.count_nonzero(across))


def _says_nothing(mark: Mark) -> bool:
    """Whether a mark gives no box and area, or those of nothing, as exporters do that do not know them."""
    return not mark.area and (mark.box is None or not any(mark.box[2:]))


def _check_range(points: np.ndarray, size: tuple[int, int]) -> None:
    height, width = size
    if max(size) > UNIT_SIDE and abs(points).max() <= 1 + OUTSIDE:  # VOC's begin 1 lower
        raise _MisplacedError(
            f"has coordinates that are all about 0 to 1, as normalised ones are, in an image of {width} x {height}; give them in pixels."
        )
    sides = np.array([width, height])
    slack = np.maximum(2.0, OUTSIDE * sides)
    beyond = points[((points < -slack) | (points > sides + slack)).any(1)]
    if len(beyond):
        raise _MisplacedError(
            f"has a corner at {_shown(beyond[0].tolist())} outside its image of {width} x {height} pixels; correct it, or the image's size."
        )


def _check_box(mark: Mark, bounds: Box, size: tuple[int, int]) -> None:
    if mark.box is not None and any(mark.box[2:]) and not _is_close(mark.box, bounds, size):
        left, top, right, bottom = bounds
        raise _MisplacedError(
            f"lies in [{_shown((left, top, right - left, bottom - top))}] and its bbox is [{_shown(mark.box)}] "
            f"(left, top, width, height; {BOX_PX:g} pixels of difference are allowed); correct one of them."
        )


def _is_close(box: tuple[float, ...] | None, bounds: Box, size: tuple[int, int]) -> bool:
    """Compare inside the image with a box of width and height, or of two corners, as some tools write it."""
    if box is None:
        return False
    left, top, right, bottom = box
    sides = (size[1], size[0]) * 2
    inside = np.clip(bounds, 0, sides)
    forms = ((left, top, left + right, top + bottom), box)
    return any(bool((abs(np.clip(form, 0, sides) - inside) <= BOX_PX).all()) for form in forms)


def _check_area(
    mark: Mark, region: Bool[np.ndarray, "h w"], perimeter: float, outline: float
) -> None:
    """Refuse an area that is neither the pixels', the outline's nor the box's, up to a pixel along the whole edge."""
    if not mark.area:
        return
    num = float(np.count_nonzero(region))
    areas = [num, outline] + ([mark.box[2] * mark.box[3]] if mark.box else [])
    slack = perimeter + 4
    if all(abs(mark.area - area) > slack for area in areas):
        raise _MisplacedError(
            f"draws {num:g} pixels and its area is {mark.area:g} ({slack:.0f} of difference are allowed, a pixel along its edge); "
            "correct one of them."
        )


def _bounds(region: Bool[np.ndarray, "h w"]) -> Box:
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _area(points: np.ndarray) -> float:
    """Compute a polygon's area (shoelace formula)."""
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _shown(numbers: Any) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers)


def read_numbers(value: Any, num: int | None, what: str) -> tuple[float, ...] | None:
    """Check a list of finite numbers of a file, or one number (num None); None where it has none.

    Raises:
        ValueError: it is something else.
    """
    if value is None or value == []:
        return None
    numbers = [value] if num is None else value
    is_list = isinstance(numbers, list) and len(numbers) == (1 if num is None else num)
    if not is_list or not all(_is_number(number) for number in numbers):
        wanted = "a number" if num is None else f"{num} numbers"
        raise ValueError(f"{what} is {value!r:.80}, not {wanted}")
    return tuple(float(number) for number in numbers)


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
