"""Masks: which class each pixel of an image is, made by a heuristic or given by the user.

    <folder>/
        <id>.png          one mask per image, 8-bit grey: 0 background, i + 1 class i
        agreement.csv     heuristic masks: id, share of pixels marked, agreement of the voters
        contact.png       heuristic masks: up to 24 layers with their outlines, to look at

With one class its pixels are written as 255, so that an editor shows them; 1 and 255 both count as
the class when the file is read. A mask that stands in the folder is read back and never written
again: whoever corrects one keeps it. So masks of other settings belong in another folder.
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from assay.config import Settings
from assay.data import contact
from assay.data.coco import read_coco
from assay.data.given import FIELDS, match_files, unknown_fields
from assay.data.image import Plane, Rgb, Source, probe, read, read_plane, write_png
from assay.data.manifest import write_table
from assay.errors import ConfigError, ImageError, MaskError
from assay.shapes import Bool, UInt8

MAX_SHARE = 0.95
"""Share of all pixels above which masks are refused: the threshold looks the wrong way."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig(Settings):
    """Where masks come from: files of the user's, or a heuristic."""

    classes: tuple[str, ...] = ("defect",)
    """Names of the classes; a mask's value is a class's place in this list, from 1."""
    files: str = ""
    """Given masks: pattern of their paths below the data's root with {folder} and {name} of the image, {parent} (last
    part of folder), {kind} (a class; other kinds are ignored) and *; or a COCO .json; empty: made by a heuristic."""
    values: Literal["binary", "index", "alpha"] = "binary"
    """What given masks hold: binary (above 127, of 16 bits above half), index (the class's number), alpha (above 128)."""
    missing: Literal["refuse", "empty"] = "refuse"
    """An image without a given mask: refuse it, or take it as free of defects."""
    maker: Literal["fixed", "otsu", "adaptive", "vote"] = "vote"
    """The heuristic; vote: at least 2 of 3 (the channels where they differ, else the three makers)."""
    dark: bool = True
    """Defects are dark; no-dark: they are bright, and the image is inverted first."""
    threshold: int = 40
    """fixed: marked below this grey level of 255, after the image's range was stretched to 0..255."""
    block_px: int = 101
    """adaptive: side of the square whose mean a pixel is compared with, odd (pixels)."""
    offset: int = 25
    """adaptive: grey levels below that mean from which a pixel is marked."""
    open_px: int = 3
    """Marks thinner than this are removed (pixels; 0: none)."""
    close_px: int = 3
    """Gaps thinner than this are closed (pixels; 0: none)."""
    min_area_px: int = 25
    """Connected marks of fewer pixels are removed."""

    def __post_init__(self) -> None:
        """Refuse classes that no mask could hold and settings that mark nothing or everything."""
        if len({name.casefold() for name in self.classes}) != len(self.classes):
            raise ConfigError(
                f"masks.classes is {self.classes}; give each class a name of its own."
            )
        if not 1 <= len(self.classes) <= 254:
            raise ConfigError(f"masks.classes has {len(self.classes)} names; give 1 to 254.")
        self._check_files()
        if not 1 <= self.threshold <= 255 or self.block_px < 3 or self.block_px % 2 == 0:
            raise ConfigError(
                f"masks.threshold is {self.threshold} and masks.block-px {self.block_px}; give a threshold from 1 to 255 "
                "and an odd block of at least 3 pixels."
            )
        if self.offset < 1 or min(self.open_px, self.close_px, self.min_area_px) < 0:
            raise ConfigError(
                f"masks.offset is {self.offset}, open-px {self.open_px}, close-px {self.close_px} and min-area-px "
                f"{self.min_area_px}; give an offset from 1 and the others from 0."
            )

    def _check_files(self) -> None:
        unknown, num_kinds = unknown_fields(self.files), self.files.count("{kind}")
        if unknown or num_kinds > 1:
            raise ConfigError(
                f"masks.files is {self.files!r}; allowed: {', '.join(FIELDS)}, {{kind}} once; correct the pattern."
            )
        if num_kinds and self.values == "index":
            raise ConfigError(
                "masks.files has {kind} and masks.values is 'index', which name the class twice; use one of them."
            )
        names_class = num_kinds or self.values == "index" or self.is_coco
        if len(self.classes) > 1 and not (self.files and names_class):
            raise ConfigError(
                f"masks.classes has {len(self.classes)} names, but the masks tell only one class; put {{kind}} into "
                "masks.files, set masks.values index, give a COCO file, or name one class."
            )

    @property
    def is_coco(self) -> bool:
        """Whether the masks are given by a COCO file."""
        return self.files.lower().endswith(".json")


def make(pixels: Rgb, config: MaskConfig) -> tuple[Bool[np.ndarray, "h w"], float]:
    """Mark defects by the heuristic; the mask, and the agreement of the voters.

    The image's range is stretched to 8 bits, each channel or the grey image on its own; what has one
    value only is not marked. The agreement is the same for every maker: pixels that all three voters
    mark over pixels that any of them marks, before cleaning, and 1 if there are none. The voters are
    the three channels under the fixed threshold where the channels differ, else the three makers on
    the grey image. A heuristic knows one class.
    """
    if not config.dark:
        pixels = np.iinfo(pixels.dtype).max - pixels
    red = pixels[:, :, 0]
    is_grey = all(np.array_equal(red, pixels[:, :, i]) for i in (1, 2))
    grey = red if is_grey else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if is_grey:
        voters = [_mark(grey, maker, config) for maker in ("fixed", "otsu", "adaptive")]
    else:
        voters = [_mark(pixels[:, :, i], "fixed", config) for i in range(3)]
    votes = np.stack(voters).sum(0, dtype=np.uint8)
    num_any = np.count_nonzero(votes)
    agreement = np.count_nonzero(votes == 3) / num_any if num_any else 1.0
    mask = votes >= 2 if config.maker == "vote" else _mark(grey, config.maker, config)
    return _clean(mask, config), agreement


def _mark(plane: Plane, maker: str, config: MaskConfig) -> Bool[np.ndarray, "h w"]:
    """Pixels darker than the maker's threshold."""
    plane = np.ascontiguousarray(plane)
    if plane.min() == plane.max():
        return np.zeros(plane.shape, dtype=bool)
    levels = cv2.normalize(plane, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    if maker == "fixed":
        return levels < config.threshold
    below = cv2.THRESH_BINARY_INV
    if maker == "otsu":
        return cv2.threshold(levels, 0, 1, below + cv2.THRESH_OTSU)[1] > 0
    mean, size, offset = cv2.ADAPTIVE_THRESH_MEAN_C, config.block_px, config.offset
    return cv2.adaptiveThreshold(levels, 1, mean, below, size, offset) > 0


def _clean(mask: Bool[np.ndarray, "h w"], config: MaskConfig) -> Bool[np.ndarray, "h w"]:
    cleaned = mask.astype(np.uint8)
    for step, px in ((cv2.MORPH_OPEN, config.open_px), (cv2.MORPH_CLOSE, config.close_px)):
        if px > 1:
            # an ellipse of 3 pixels would be a cross
            shape = cv2.MORPH_RECT if px <= 3 else cv2.MORPH_ELLIPSE
            cleaned = cv2.morphologyEx(cleaned, step, cv2.getStructuringElement(shape, (px, px)))
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(cleaned, connectivity=8)
    is_kept = stats[:, cv2.CC_STAT_AREA] >= config.min_area_px
    is_kept[0] = False  # the background
    return is_kept[numbers]


def read_mask(source: Source, config: MaskConfig) -> UInt8[np.ndarray, "h w"]:
    """Read a given mask by `config.values`; what is marked in a binary or alpha mask is 1.

    Raises:
        MaskError: the file cannot be read, has no alpha channel, or a value is no class.
    """
    if config.values == "index":
        return _indices(_read(source, "index"), config.classes, source)
    if config.values == "alpha":
        return (_read(source, "alpha") > 128).astype(np.uint8)
    levels = _read(source, "level")
    return (levels > np.iinfo(levels.dtype).max // 2).astype(np.uint8)


def open_mask(path: Path, classes: Sequence[str]) -> UInt8[np.ndarray, "h w"]:
    """Read a mask that `prepare` wrote, or a person corrected.

    Raises:
        MaskError: the file cannot be read, or a value is no class.
    """
    return _indices(_read(path, "index"), classes, path)


def _read(source: Source, plane: Literal["level", "index", "alpha"]) -> Plane:
    try:
        return read_plane(source, plane)
    except ImageError as error:
        raise MaskError(
            f"{error} It is needed as a mask: mend it, or leave its image out."
        ) from None


def _indices(plane: Plane, classes: Sequence[str], source: Source) -> UInt8[np.ndarray, "h w"]:
    if len(classes) == 1:
        plane = np.where(plane == 255, 1, plane)
    strange = plane[plane > len(classes)]
    if strange.size:
        name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
        known = ", ".join(f"{i} {name}" for i, name in enumerate(("background", *classes)))
        raise MaskError(
            f"The mask {name} has the value {strange.min()} among {strange.size} pixels that are no class; allowed: {known}"
            f"{' (or 255)' * (len(classes) == 1)}. Redraw it with hard edges, or set --masks.classes or --masks.values."
        )
    return plane.astype(np.uint8)


def merge(masks: Sequence[UInt8[np.ndarray, "h w"]]) -> UInt8[np.ndarray, "h w"]:
    """One index mask of several; where they overlap, the class with the greater number wins."""
    merged: np.ndarray = np.maximum.reduce(masks)
    return merged


class _Given(NamedTuple):
    """A given mask: the files that it comes from, and how it is read for an image of this size."""

    files: list[Path]
    draw: Callable[[tuple[int, int]], UInt8[np.ndarray, "h w"]]


class _Layer(NamedTuple):
    """What is known of a prepared mask; the agreement is that of a heuristic one."""

    num_marked: int
    num_pixels: int
    agreement: float


def prepare(
    images: Sequence[tuple[str, Path]], root: Path, config: MaskConfig, folder: Path
) -> list[Path]:
    """Write the mask of each image (id, path) below `folder` where there is none; return their paths.

    Raises:
        MaskError: a mask is missing, unreadable, of another size than its image, or holds a value
            that is no class; a given mask changed after it was prepared; or all masks together are
            empty or nearly full, and then those that were written now are removed again.
        ImageError: an image cannot be read.
    """
    places = [folder / file_name(name) for name, _ in images]
    fresh = [place for place in places if not place.exists()]
    paths = [path for _, path in images]
    given = _given(paths, root, config) if config.files else None
    is_made = given is None and bool(fresh)

    def layer(i: int) -> _Layer:
        if is_made:
            return _made(paths[i], places[i], config)
        return _taken(paths[i], places[i], config, given[i] if given else None)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        layers = list(pool.map(layer, range(len(images))))
    if is_made:
        _show(images, places, layers, config, folder)
    _check_share(layers, config, folder, fresh)
    return places


def file_name(name: str) -> str:
    """The file of an image's mask; ids that are no plain file names get a hash, to stay apart."""
    plain = re.sub(r"[^\w.-]+", "_", name)[-100:]
    if plain != name or name.startswith("."):
        plain = f"{plain.lstrip('.')}-{blake2b(name.encode(), digest_size=6).hexdigest()}"
    return f"{plain}.png"


def _made(path: Path, place: Path, config: MaskConfig) -> _Layer:
    """A heuristic mask; beside one that stands there already only the agreement is computed."""
    pixels = read(path)
    mask, agreement = make(pixels, config)
    if place.exists():
        return _taken(path, place, config, None)._replace(agreement=agreement)
    _write(place, mask.astype(np.uint8), config)
    return _Layer(int(np.count_nonzero(mask)), mask.size, agreement)


def _taken(path: Path, place: Path, config: MaskConfig, given: _Given | None) -> _Layer:
    """A mask that stands there, or else the given one."""
    size = probe(path)
    if given is not None and not place.exists():
        mask = given.draw(size)
        _write(place, mask, config)
        return _Layer(int(np.count_nonzero(mask)), mask.size, math.nan)
    mask = open_mask(place, config.classes)
    _check_size(mask, size, place, path)
    newer = [f for f in given.files if f.stat().st_mtime > place.stat().st_mtime] if given else []
    if newer:
        raise MaskError(
            f"The given mask {newer[0]} changed after {place} was made from it; delete the latter to take the change, or "
            "touch it to keep what was corrected there."
        )
    return _Layer(int(np.count_nonzero(mask)), mask.size, math.nan)


def _write(place: Path, mask: UInt8[np.ndarray, "h w"], config: MaskConfig) -> None:
    write_png(place, mask * np.uint8(255) if len(config.classes) == 1 else mask)


def _check_size(
    mask: UInt8[np.ndarray, "h w"], size: tuple[int, int], source: Path, image: Path
) -> None:
    if mask.shape != size:
        raise MaskError(
            f"The mask {source} has {mask.shape[1]} x {mask.shape[0]} pixels and its image {image} {size[1]} x {size[0]}; "
            "both must be of one size: replace one of them."
        )


def _given(images: list[Path], root: Path, config: MaskConfig) -> list[_Given]:
    found = (_given_by_coco if config.is_coco else _given_by_files)(images, root, config)
    missing = [path for path, given in zip(images, found, strict=True) if not given.files]
    if missing and config.missing == "refuse":
        raise MaskError(
            f"{len(missing)} of {len(images)} images have no mask of the classes {', '.join(config.classes)} by "
            f"--masks.files {config.files!r}, first {missing[0]}; correct the pattern, or pass --masks.missing empty to "
            "take them as free of defects."
        )
    return found


def _given_by_files(images: list[Path], root: Path, config: MaskConfig) -> list[_Given]:
    def draw(
        image: Path, files: list[tuple[Path, int]], size: tuple[int, int]
    ) -> UInt8[np.ndarray, "h w"]:
        masks = [np.zeros(size, dtype=np.uint8)]
        for file, number in files:
            mask = read_mask(file, config)
            _check_size(mask, size, file, image)
            masks.append(mask * np.uint8(number))
        return merge(masks)

    matched = match_files(images, root, config.files, config.classes)
    return [
        _Given([file for file, _ in files], partial(draw, image, files))
        for image, files in zip(images, matched, strict=True)
    ]


def _given_by_coco(images: list[Path], root: Path, config: MaskConfig) -> list[_Given]:
    coco = read_coco(root / config.files, config.classes)
    names = [Path(os.path.relpath(image, root)).as_posix() for image in images]
    return [
        _Given([coco.path] if coco.find(name) else [], partial(coco.mask, name)) for name in names
    ]


def _show(
    images: Sequence[tuple[str, Path]],
    places: list[Path],
    layers: list[_Layer],
    config: MaskConfig,
    folder: Path,
) -> None:
    """Write the table of agreements and the contact sheet."""
    names = [name for name, _ in images]
    shares = [layer.num_marked / layer.num_pixels for layer in layers]
    agreements = [layer.agreement for layer in layers]
    table = pa.table({"id": names, "share": shares, "agreement": agreements})
    write_table(folder / "agreement.csv", table)
    tiles = []
    for i in contact.choose(agreements):
        mask = open_mask(places[i], config.classes) > 0
        about = f"agreement {agreements[i]:.2f}, marked {shares[i]:.2%}"
        tiles.append(contact.tile(read(images[i][1]), mask, (names[i], about)))
    write_png(folder / "contact.png", contact.sheet(tiles))


def _check_share(layers: list[_Layer], config: MaskConfig, folder: Path, fresh: list[Path]) -> None:
    share = sum(layer.num_marked for layer in layers) / sum(layer.num_pixels for layer in layers)
    if 0 < share <= MAX_SHARE:
        return
    for place in fresh:
        place.unlink()
    what = "are empty" if share == 0 else f"cover {share:.1%} of all pixels"
    if config.files:
        remedy = (
            "check --masks.values (binary, index or alpha) and --masks.classes against the files"
        )
    else:
        remedy = (
            f"look at {folder / 'contact.png'} and change the threshold's direction (--masks.dark or --masks.no-dark, it is "
            f"{config.dark}), --masks.threshold ({config.threshold}) or --masks.min-area-px ({config.min_area_px})"
        )
    raise MaskError(
        f"The masks of all {len(layers)} images {what}, and nothing is learned from such; {remedy}."
    )
