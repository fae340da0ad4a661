"""One decoded image or mask in a file of the store.

    <content>.pixels
        8 bytes   magic and version of decoding and layout
        4 bytes   length of the header (little-endian)
        8 bytes   checksum of the header
        header    JSON: key, dtype, levels [{height, width, channels, offset, checksums}], low, high,
                  mean, std, signature
        levels    see `pyramid`; raw, row-major

A mask is an entry of one level with one channel, the class of each pixel; its statistics mean nothing.

A file is written under a temporary name and renamed, so one that exists is complete. It is read by
memory-mapping, and of it only the pages that a region touches; each tile is compared with its
checksum before it is first shown (the price: tests/benchmarks/checksums.md). Raw rows were chosen
over tiles, compressed or not, by tests/benchmarks/formats.md.
"""

import itertools
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.data.images.pyramid import ImagePyramid
from assay.data.images.stored_level import TILE, StoredLevel, checksums, digest_of
from assay.data.images.white import Range
from assay.errors import StoreError
from assay.files import open_file, replacing
from assay.shapes import Bool

MAGIC = b"ASSAYPX2"


SUFFIX = ".pixels"


MASK = "-mask"
"""Ends the key of a mask."""


PAGE = "-page"
"""Stands in the key of an image before the number of its page, where one was chosen."""


_START = "<8sIQ"


def entry_key(content: str, page: int | None) -> str:
    """Name the entry of an image by the hash of its file and the page that is read of it."""
    return content if page is None else f"{content}{PAGE}{page}"


def hash_of(key: str) -> str:
    """Return the hash of the file that an entry is made of."""
    return key.removesuffix(MASK).partition(PAGE)[0]


def page_of(key: str) -> int | None:
    """Return the page that an entry's key names."""
    _, mark, number = key.partition(PAGE)
    return int(number) if mark else None


def write_entry(path: Path, entry: ImagePyramid) -> None:
    """Write an entry's file, whole or not at all; an OSError comes through."""
    levels = [np.ascontiguousarray(level) for level in entry.levels]
    values = Range.of(levels[0])
    offsets = itertools.accumulate((level.nbytes for level in levels), initial=0)
    header: dict[str, Any] = {
        "key": path.name.removesuffix(SUFFIX),
        "dtype": str(levels[0].dtype),
        "low": values.low,
        "high": values.high,
        "mean": entry.mean_value.tolist(),
        "std": entry.std_value.tolist(),
        "signature": entry.signature.hex(),
        "levels": [_describe(*item) for item in zip(levels, offsets, strict=False)],
    }
    head = json.dumps(header).encode()
    with replacing(path) as hidden, hidden.open("wb") as file:
        file.write(struct.pack(_START, MAGIC, len(head), digest_of(head)) + head)
        for level in levels:
            file.write(level.data)


def open_entry(path: Path, key: str = "") -> ImagePyramid:
    """Memory-map one entry.

    Args:
        path: its file.
        key: what it was written as; "": whatever it is.

    Raises:
        StoreError: the entry is missing, foreign, damaged or cut short, or of another key; damage of
            pixels shows when they are looked at.
    """
    try:
        with open_file(path) as file:
            magic, length, digest = struct.unpack(_START, file.read(struct.calcsize(_START)))
            if magic != MAGIC:
                raise StoreError(
                    f"{path} is no entry of this store's version; delete the store's folder and run again, which decodes the images anew."
                )
            head = file.read(length)
            if digest_of(head) != digest:
                raise ValueError("its header is not what was written")
            header, begin = json.loads(head), file.tell()
            if not header["levels"]:
                raise ValueError("it has no level")
            if key and header.get("key", key) != key:  # an older Assay wrote none
                raise ValueError(f"it is the entry of {header['key']}")
        flat = np.memmap(path, dtype=np.dtype(header["dtype"]), mode="r", offset=begin)
        return ImagePyramid(
            [_level(path, flat, spec) for spec in header["levels"]],
            Range(header["dtype"], float(header["low"]), float(header["high"])),
            np.array(header["mean"], dtype=np.float64),
            np.array(header["std"], dtype=np.float64),
            bytes.fromhex(header["signature"]),
            path=path,
        )
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise StoreError(
            f"The stored image {path} is damaged or missing ({error}); delete it and run again."
        ) from None


def remember(
    entry: ImagePyramid, checked: Sequence[Bool[np.ndarray, "_ _"]] | None
) -> list[Bool[np.ndarray, "_ _"]]:
    """Let a stored entry that is opened again know its tiles that were checked; return what it notes them in."""
    levels = [level for level in entry.levels if isinstance(level, StoredLevel)]
    for level, tiles in zip(levels, checked or [], strict=False):
        level.checked = tiles
    return [level.checked for level in levels]


def _describe(level: np.ndarray, offset: int) -> dict[str, Any]:
    """Write down where a level is and what its tiles hold."""
    height, width, channels = level.shape
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "offset": offset,
        "checksums": checksums(level).astype("<u8").tobytes().hex(),
    }


def _level(path: Path, flat: np.ndarray, spec: dict[str, Any]) -> StoredLevel:
    start = spec["offset"] // flat.dtype.itemsize
    shape = spec["height"], spec["width"], spec["channels"]
    pixels = flat[start : start + math.prod(shape)].reshape(shape)
    grid = math.ceil(shape[0] / TILE), math.ceil(shape[1] / TILE)
    digests = np.frombuffer(bytes.fromhex(spec["checksums"]), "<u8")
    return StoredLevel(path, pixels, digests.astype(np.uint64).reshape(grid))
