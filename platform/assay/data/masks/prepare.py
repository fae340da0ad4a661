"""Masks: which class each pixel of an image is, made by a rule (`heuristic`) or given by the user.

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
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from assay.data.images.decode import Plane, Source, probe, read, read_plane, write_png
from assay.data.masks import contact
from assay.data.masks.coco import read_coco
from assay.data.masks.patterns import match_files
from assay.data.masks.rules import MaskConfig, make
from assay.errors import ImageError, MaskError
from assay.files import write_table
from assay.shapes import UInt8

MAX_SHARE = 0.95
"""Share of all pixels above which masks are refused: the threshold looks the wrong way."""


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
        file = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
        allowed = ", ".join(f"{i} {name}" for i, name in enumerate(("background", *classes)))
        raise MaskError(
            f"The mask {file} has the value {strange.min()} among {strange.size} pixels that are no class; allowed: {allowed}"
            f"{' (or 255)' * (len(classes) == 1)}. Redraw it with hard edges, or set --masks.classes or --masks.values."
        )
    return plane.astype(np.uint8)


def merge(masks: Sequence[UInt8[np.ndarray, "h w"]]) -> UInt8[np.ndarray, "h w"]:
    """Merge index masks; where they overlap, the class with the greater number wins."""
    merged: np.ndarray = np.maximum.reduce(masks)
    return merged


class _MaskSource(NamedTuple):
    """Where a given mask comes from: its files, and how they are read for an image of this size."""

    files: list[Path]
    read: Callable[[tuple[int, int]], UInt8[np.ndarray, "h w"]]


class _MaskStats(NamedTuple):
    """How much a prepared mask marks, and of a heuristic one the agreement of the voters."""

    num_marked: int
    num_pixels: int
    agreement: float


def prepare(
    images: Sequence[tuple[str, Path]],
    root: Path,
    config: MaskConfig,
    folder: Path,
    page: int | None = None,
) -> list[Path]:
    """Write the mask of each image (id, path) below `folder` where there is none; return their paths.

    `page` says which image of a file that holds several is meant.

    Raises:
        MaskError: a mask is missing, unreadable, of another size than its image, or holds a value
            that is no class; a given mask changed after it was prepared; or all masks together are
            empty or nearly full, and then those that were written now are removed again.
        ImageError: an image cannot be read.
    """
    masks = [folder / file_name(name) for name, _ in images]
    fresh = [mask for mask in masks if not mask.exists()]
    paths = [path for _, path in images]
    sources = _find_sources(paths, root, config) if config.files else None
    uses_rule = sources is None and bool(fresh)

    def prepare_mask(i: int) -> _MaskStats:
        if uses_rule:
            return _make_mask(paths[i], masks[i], config, page)
        return _take_mask(paths[i], masks[i], config, sources[i] if sources else None, page)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        stats = list(pool.map(prepare_mask, range(len(images))))
    if uses_rule:
        _write_overview(images, masks, stats, config, folder, page)
    _check_share(stats, config, folder, fresh)
    return masks


def file_name(name: str) -> str:
    """Name the file of an image's mask; ids that are no plain file names get a hash, to stay apart."""
    plain = re.sub(r"[^\w.-]+", "_", name)[-100:]
    if plain != name or name.startswith("."):
        plain = f"{plain.lstrip('.')}-{blake2b(name.encode(), digest_size=6).hexdigest()}"
    return f"{plain}.png"


def _make_mask(image: Path, target: Path, config: MaskConfig, page: int | None) -> _MaskStats:
    """Write a heuristic mask; beside one that stands there already compute its agreement alone."""
    mask, agreement = make(read(image, page=page), config)
    if target.exists():
        return _take_mask(image, target, config, None, page)._replace(agreement=agreement)
    _write_mask(target, mask.astype(np.uint8), config)
    return _MaskStats(int(np.count_nonzero(mask)), mask.size, agreement)


def _take_mask(
    image: Path, target: Path, config: MaskConfig, source: _MaskSource | None, page: int | None
) -> _MaskStats:
    """Read a mask that stands there, or else write the given one."""
    size = probe(image, page=page)
    if source is not None and not target.exists():
        mask = source.read(size)
        _write_mask(target, mask, config)
        return _MaskStats(int(np.count_nonzero(mask)), mask.size, math.nan)
    mask = open_mask(target, config.classes)
    _check_size(mask, size, target, image)
    written = target.stat().st_mtime
    newer = [file for file in source.files if file.stat().st_mtime > written] if source else []
    if newer:
        raise MaskError(
            f"The given mask {newer[0]} changed after {target} was made from it; delete the latter to take the change, or "
            "touch it to keep what was corrected there."
        )
    return _MaskStats(int(np.count_nonzero(mask)), mask.size, math.nan)


def _write_mask(target: Path, mask: UInt8[np.ndarray, "h w"], config: MaskConfig) -> None:
    write_png(target, mask * np.uint8(255) if len(config.classes) == 1 else mask)


def _check_size(
    mask: UInt8[np.ndarray, "h w"], size: tuple[int, int], source: Path, image: Path
) -> None:
    if mask.shape != size:
        raise MaskError(
            f"The mask {source} has {mask.shape[1]} x {mask.shape[0]} pixels and its image {image} {size[1]} x {size[0]}; "
            "both must be of one size: replace one of them."
        )


def _find_sources(images: list[Path], root: Path, config: MaskConfig) -> list[_MaskSource]:
    find = _sources_in_coco if config.is_coco else _sources_in_files
    sources = find(images, root, config)
    missing = [path for path, source in zip(images, sources, strict=True) if not source.files]
    if missing and config.missing == "refuse":
        raise MaskError(
            f"{len(missing)} of {len(images)} images have no mask of the classes {', '.join(config.classes)} by "
            f"--masks.files {config.files!r}, first {missing[0]}; correct the pattern, or pass --masks.missing empty to "
            "take them as free of defects."
        )
    return sources


def _sources_in_files(images: list[Path], root: Path, config: MaskConfig) -> list[_MaskSource]:
    def read_files(
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
        _MaskSource([file for file, _ in files], partial(read_files, image, files))
        for image, files in zip(images, matched, strict=True)
    ]


def _sources_in_coco(images: list[Path], root: Path, config: MaskConfig) -> list[_MaskSource]:
    coco = read_coco(root / config.files, config.classes)
    names = [Path(os.path.relpath(image, root)).as_posix() for image in images]
    return [
        _MaskSource([coco.path] if coco.find(name) else [], partial(coco.mask, name))
        for name in names
    ]


def _write_overview(
    images: Sequence[tuple[str, Path]],
    masks: list[Path],
    stats: list[_MaskStats],
    config: MaskConfig,
    folder: Path,
    page: int | None,
) -> None:
    """Write the table of agreements and the contact sheet."""
    names = [name for name, _ in images]
    shares = [layer.num_marked / layer.num_pixels for layer in stats]
    agreements = [layer.agreement for layer in stats]
    table = pa.table({"id": names, "share": shares, "agreement": agreements})
    write_table(folder / "agreement.csv", table)
    tiles = []
    for i in contact.choose_layers(agreements):
        mask = open_mask(masks[i], config.classes) > 0
        caption = f"agreement {agreements[i]:.2f}, marked {shares[i]:.2%}"
        tiles.append(contact.draw_tile(read(images[i][1], page=page), mask, (names[i], caption)))
    write_png(folder / "contact.png", contact.draw_sheet(tiles))


def _check_share(
    stats: list[_MaskStats], config: MaskConfig, folder: Path, fresh: list[Path]
) -> None:
    share = sum(layer.num_marked for layer in stats) / sum(layer.num_pixels for layer in stats)
    if 0 < share <= MAX_SHARE:
        return
    for mask in fresh:
        mask.unlink()
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
        f"The masks of all {len(stats)} images {what}, and nothing is learned from such; {remedy}."
    )
