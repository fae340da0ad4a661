"""Masks from a COCO annotation file: polygons, and run lengths as lists or as COCO's text.

An image's entry is found by its path below the data's root, or else by its file name alone.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from assay.errors import MaskError
from assay.shapes import Bool, UInt8


@dataclass(frozen=True)
class _Image:
    """The size that the file gives an image, and its annotations: id, class number, segmentation."""

    size: tuple[int, int]
    marks: list[tuple[int, int, Any]]


@dataclass(frozen=True)
class Coco:
    """The annotations of one file; see `read_coco`."""

    path: Path
    images: dict[str, _Image]

    def find(self, name: str) -> _Image | None:
        """Find what the file says of an image, if it lists it."""
        return self.images.get(name) or self.images.get(PurePosixPath(name).name)

    def mask(self, name: str, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        """Draw the index mask of an image of this height and width; empty if the image is not listed.

        Where annotations overlap, the class with the greater number wins.

        Raises:
            MaskError: the file gives the image another size, or a segmentation does not decode.
        """
        entry = self.find(name) or _Image(size, [])
        if entry.size != size:
            raise MaskError(
                f"{self.path} gives {name} {entry.size[1]} x {entry.size[0]} pixels, the image has {size[1]} x {size[0]}; "
                "annotate the image that is used, or resize neither."
            )
        mask = np.zeros(size, dtype=np.uint8)
        for number, index, segmentation in entry.marks:
            try:
                mark = _decode(segmentation, size)
            except (ValueError, TypeError, KeyError) as error:
                raise MaskError(
                    f"The segmentation of annotation {number} in {self.path} does not decode ({error}); allowed: polygons "
                    "of three points and more, or run lengths that fill the image. Export it again."
                ) from None
            np.maximum(mask, mark * np.uint8(index), out=mask)
        return mask


def read_coco(path: Path, classes: Sequence[str]) -> Coco:
    """Read a COCO file; the categories that are used must be `classes`, whatever their case.

    Raises:
        MaskError: the file is not COCO, or uses a category that is no class.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {c["id"]: str(c["name"]) for c in content["categories"]}
        entries = {i["id"]: _Image((i["height"], i["width"]), []) for i in content["images"]}
        files = {i["id"]: str(PurePosixPath(i["file_name"])) for i in content["images"]}
        index = {name.casefold(): i for i, name in enumerate(classes, start=1)}
        for annotation in content["annotations"]:
            name = names[annotation["category_id"]]
            if name.casefold() not in index:
                raise MaskError(
                    f"{path} uses the category {name!r}; allowed: {', '.join(classes)}. "
                    "Add it to --masks.classes, or leave its annotations out."
                )
            mark = annotation["id"], index[name.casefold()], annotation["segmentation"]
            entries[annotation["image_id"]].marks.append(mark)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise MaskError(
            f"{path} cannot be read as COCO annotations ({type(error).__name__}: {error}); it must hold images, "
            "categories, and annotations with a segmentation each."
        ) from None
    by_path = {file: entries[i] for i, file in files.items()}
    uses = Counter(PurePosixPath(file).name for file in files.values())
    by_name = {PurePosixPath(file).name: entry for file, entry in by_path.items()}
    unique = {name: entry for name, entry in by_name.items() if uses[name] == 1}
    return Coco(path, unique | by_path)


def _decode(segmentation: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            raise ValueError(f"its size is {segmentation['size']}, the image's {list(size)}")
        return decode_runs(segmentation["counts"], *size)
    if not segmentation:
        raise ValueError("it is empty")
    polygons = [np.array(flat, dtype=np.float64).reshape(-1, 2) for flat in segmentation]
    return np.logical_or.reduce([fill_polygon(points, *size) for points in polygons])


def decode_runs(counts: str | list[int], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Decode run lengths: of 0 and 1 in turn, beginning with 0, down the columns.

    Raises:
        ValueError: the lengths are no such text, negative, or not height times width in all.
    """
    runs = np.array(_lengths(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths of {runs.sum()} pixels in all, of {height * width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _lengths(text: str) -> list[int]:
    """Read COCO's text of run lengths (pycocotools, maskApi.c, rleFrString).

    A character holds 5 bits, the lowest first; from the fourth length on the text gives the
    difference to the last but one.
    """
    lengths: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the character {char!r} is no part of run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more characters follow
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the text of run lengths is cut short")
    return lengths


def fill_polygon(points: np.ndarray, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Mark pixels whose centres lie inside the polygon (x, y of its corners), by the even-odd rule.

    Raises:
        ValueError: there are fewer than three corners, or a coordinate is not finite.
    """
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError(f"a polygon of {len(points)} points, or one that is not finite")
    crossed = np.zeros((height, width + 1), dtype=bool)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        (x0, y0), (x1, y1) = sorted((start, end), key=lambda point: point[1])
        rows = np.arange(max(math.ceil(y0 - 0.5), 0), min(math.ceil(y1 - 0.5), height))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossed[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)] ^= True
    return np.logical_xor.accumulate(crossed[:, :width], axis=1)
