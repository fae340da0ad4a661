"""Layers of a powder-bed build: which pictures of a recorder's folder are the images to judge.

A recorder takes three pictures of a layer, whose names end in a, b and c before the suffix. `b` is
the one after the laser; or the three, as grey, are the three channels of one image.

    <folder>/
        layers.csv           image, id, build, layer: a table that a manifest reads
        stacked/<id>.png     triplets: channels a, b, c; 16 bits where a picture has them
        stacked/<id>.sha256  contents of the three pictures that it was made of
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
import pyarrow as pa

from assay.config import Settings
from assay.data.images.decode import SUFFIXES, Plane, Rgb, read, write_png
from assay.data.images.white import DARK
from assay.data.walk import find_files
from assay.errors import ManifestError
from assay.files import sha256_of, write_table, write_whole


@dataclass(frozen=True, kw_only=True)
class LayerConfig(Settings):
    """Which pictures make an image."""

    channels: Literal["all", "b", "triplet"] = "all"
    """all: every picture is an image; b: those after the laser, whose names end in b; triplet: a, b and c stacked."""


def collect(root: Path, config: LayerConfig, folder: Path) -> Path:
    """Write the table of layer images below `root` to `folder`/layers.csv, and triplets beside it.

    Its columns: `image` (path), `id` (path below root; a triplet's without letter and suffix),
    `build` (the image's folder below root, or root's own name) and `layer` (the last number of the
    name, or empty). A stacked image is made again when a picture of it changed. Pictures whose
    names end in none of a, b, c are left out, unless every picture is taken.

    Raises:
        ManifestError: root has no such picture, a layer has no or two pictures of a letter, or the
            sizes of a triplet differ.
        ImageError: a picture cannot be read.
    """
    root, folder = root.absolute(), folder.absolute()
    pictures = _find_pictures(root, config, folder)
    if not pictures:
        raise ManifestError(
            f"{root} has no picture for layers.channels {config.channels!r} ({', '.join(SUFFIXES)}, names ending in a, b, c "
            "for b and triplet); point data.root at a folder that does, or choose other channels."
        )
    if config.channels == "triplet":
        layers = _stack(pictures, root, folder)
    else:
        layers = {path.relative_to(root).as_posix(): str(path) for path in pictures}
    return _write_table(layers, root, folder / "layers.csv")


def _find_pictures(root: Path, config: LayerConfig, folder: Path) -> list[Path]:
    """List the pictures below root that the channels ask for, sorted, without those in `folder`."""
    letters = {"all": ("",), "b": ("b",), "triplet": ("a", "b", "c")}[config.channels]
    return [
        path
        for path in find_files(root, SUFFIXES)
        if path.stem.endswith(letters) and not path.is_relative_to(folder)
    ]


def _write_table(layers: dict[str, str], root: Path, table: Path) -> Path:
    """Write ids and the paths of their images, as they are to stand there."""
    builds = [PurePosixPath(name).parent.as_posix() for name in layers]
    digits = [re.findall(r"\d+", PurePosixPath(name).stem) for name in layers]
    columns = {
        "image": list(layers.values()),
        "id": list(layers),
        "build": [root.resolve().name if build == "." else build for build in builds],
        "layer": [int(numbers[-1]) if numbers else None for numbers in digits],
    }
    write_table(table, pa.table(columns))
    return table


def _stack(pictures: Sequence[Path], root: Path, folder: Path) -> dict[str, str]:
    """Stack the pictures of each layer; return ids and paths relative to folder."""
    triplets: dict[str, list[Path]] = defaultdict(list)
    for path in pictures:
        triplets[path.relative_to(root).with_name(path.stem[:-1]).as_posix()].append(path)
    for name, paths in triplets.items():
        _check_letters(name, paths)

    def write(layer: tuple[str, list[Path]]) -> str:
        name, paths = layer
        image = folder / "stacked" / f"{name}.png"
        record, content = image.with_suffix(".sha256"), "\n".join(map(sha256_of, paths))
        if not image.exists() or not record.exists() or record.read_text() != content:
            write_png(image, stack(paths))
            write_whole(record, content.encode())
        return image.relative_to(folder).as_posix()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(triplets, pool.map(write, triplets.items()), strict=True))


def _check_letters(name: str, paths: Sequence[Path]) -> None:
    for letter in "abc":
        num = sum(path.stem.endswith(letter) for path in paths)
        if num != 1:
            raise ManifestError(
                f"Layer {name!r} needs one picture of each letter a, b and c and has {num} of {letter!r} "
                f"({name}{letter}{paths[0].suffix}); restore it, remove the layer's pictures, or use --layers.channels b."
            )


def stack(paths: Sequence[Path]) -> Rgb:
    """Make one image of three pictures: the grey of each is a channel; 16 bits if one has 16.

    Raises:
        ManifestError: the pictures differ in size, or in what their values mean.
        ImageError: a picture cannot be read.
    """
    planes = [_grey(read(path)) for path in sorted(paths, key=lambda path: path.stem)]
    sizes = {f"{plane.shape[1]} x {plane.shape[0]}" for plane in planes}
    if len(sizes) > 1:
        raise ManifestError(
            f"The pictures {', '.join(map(str, paths))} of one layer have {' and '.join(sorted(sizes))} pixels; the three "
            "must be of one size: correct them, or use --layers.channels b."
        )
    kinds = {plane.dtype for plane in planes}
    deep = [plane for plane in planes if plane.dtype != np.uint8]
    if np.dtype(np.float32) in kinds or (
        len(kinds) > 1 and max(plane.max() for plane in deep) <= DARK
    ):
        raise ManifestError(
            f"The pictures {', '.join(map(str, paths))} of one layer hold floats, or 8 bits beside values of 16 that may be of fewer; "
            "save the three as 8 or as 16 bits, or use --layers.channels b."
        )
    if len(kinds) > 1:
        planes = [p if p.dtype == np.uint16 else p.astype(np.uint16) * 257 for p in planes]
    return np.stack(planes, axis=2)


def _grey(pixels: Rgb) -> Plane:
    if (pixels == pixels[:, :, :1]).all():
        return pixels[:, :, 0]
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
