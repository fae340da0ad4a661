"""A tiled TIFF with overviews of its own: a pyramid of which the tiles that are looked at are decoded.

Some tiles of a TIFF behind a header of their own are again a TIFF. So `image.read` decodes them, and
their pixels are those that decoding the whole file gives, whatever their compression and colours.

Source: TIFF 6.0 (Adobe, 1992), section 15; overviews follow the image as in Cloud Optimized GeoTIFF
(OGC 21-026), or hang below it as in TIFF Technical Note 1 (SubIFDs).
"""

import itertools
import math
import os
import struct
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2 as Directory

from assay.data.images import decode
from assay.errors import ImageError
from assay.shapes import Shaped

MOST_PAGES, MOST_TAGS = 32, 256
"""What is beyond is damage."""


MOST_TILE_PIXELS = 4096 * 4096
"""Larger tiles save nothing."""


PIXELS_PER_DECODE = 64 * 256 * 256
"""Tiles are decoded together up to so many."""


PROBES = (0.25, 0.5, 0.75)
"""Where an overview is compared with what it is of: shares of both sides."""


PROBE_PX = 64


CLOSE = 1.0
"""Mean distance (of 255 grey levels) up to which an overview counts as an area mean."""


_SUBFILE, _WIDTH, _HEIGHT, _ORIENTATION, _PLANES, _SUBIFDS = 254, 256, 257, 274, 284, 330


_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS = 322, 323, 324, 325


_DECODING = (258, 259, 262, 266, 277, 284, 317, 320, 338, 339, 347, 529, 530, 532)
"""Tags that say how a tile becomes pixels."""


_LONG = 4


def pyramid(source: decode.Source, until: int) -> list["TiledPage"]:
    """The image and its overviews, each half of the one before, as far as the file has them.

    An overview counts if it is what the store would compute, an area mean, as far as samples tell:
    what was learnt on other files would not hold for one that was made otherwise.

    Args:
        source: path of the file, or its bytes.
        until: overviews are taken until the longer side is below (pixels).

    Returns:
        The pages; none where a file is better decoded whole: it is no TIFF in tiles, has no
        such overview, or is damaged, of which decoding it says more.
    """
    try:
        with decode.stream(source) as file:
            directories = list(_directories(file))
        pages = [TiledPage(source, tags) for tags in directories[:1]]
        for tags in directories[1:]:
            if max(pages[-1].shape) < until:
                break
            if _halves(tags, pages[-1]) and _is_mean(page := TiledPage(source, tags), pages[-1]):
                pages.append(page)
    except (*decode.DAMAGE, ImageError, LookupError, TypeError):
        return []
    return pages if len(pages) > 1 else []


class TiledPage:
    """Pixels of one page: like an array, but a tile is decoded when it is first looked at.

    Args:
        source: the file.
        tags: the page's directory.

    Raises:
        ValueError: the page has no tiles that can be decoded one by one.
        ImageError: its first tile is damaged, or of a kind that is not read.
    """

    def __init__(self, source: decode.Source, tags: Directory) -> None:
        self.source, self.tags = source, tags
        height, width = int(tags[_HEIGHT]), int(tags[_WIDTH])
        self.tile = int(tags[_TILE_HEIGHT]), int(tags[_TILE_WIDTH])
        self.offsets, self.counts = tags[_OFFSETS], tags[_COUNTS]
        if (
            height * width > decode.MAX_PIXELS
            or min(self.tile) < 1
            or math.prod(self.tile) > MOST_TILE_PIXELS
        ):
            raise ValueError("its tiles are none, or save nothing")
        self.grid = -(-height // self.tile[0]), -(-width // self.tile[1])
        if (
            (tags.get(_PLANES, 1), tags.get(_ORIENTATION, 1)) != (1, 1)
            or not len(self.offsets) == len(self.counts) == math.prod(self.grid)
            or min(self.counts) < 1
            or max(np.add(self.offsets, self.counts)) > _length(source)
        ):
            raise ValueError("its tiles cannot be decoded one by one")
        self.held = {0: self._decoded([0])[0]}
        self.whole: np.ndarray | None = None
        self.shape = (height, width, 3)
        self.dtype = self.held[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, box: tuple[slice, slice]) -> Shaped[np.ndarray, "h w 3"]:
        """Rows and columns, each without a step.

        Raises:
            ImageError: one of the tiles is damaged.
        """
        if self.whole is not None:
            return self.whole[box]
        (top, below, _), (left, right, _) = (
            own.indices(length) for own, length in zip(box, self.shape[:2], strict=True)
        )
        found = np.empty((max(below - top, 0), max(right - left, 0), 3), self.dtype)
        if found.size:
            down = range(top // self.tile[0], (below - 1) // self.tile[0] + 1)
            along = range(left // self.tile[1], (right - 1) // self.tile[1] + 1)
            self._hold([row * self.grid[1] + column for row in down for column in along])
            for row, column in itertools.product(down, along):
                y, x = row * self.tile[0] - top, column * self.tile[1] - left
                place = found[max(y, 0) : y + self.tile[0], max(x, 0) : x + self.tile[1]]
                tile = self.held[row * self.grid[1] + column][max(-y, 0) :, max(-x, 0) :]
                place[:] = tile[: place.shape[0], : place.shape[1]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        if self.whole is None:
            self.whole = self[:, :]
            self.held.clear()
        return np.array(self.whole, dtype=dtype, copy=copy)

    def _hold(self, tiles: list[int]) -> None:
        """Decode those tiles that were not decoded yet."""
        missing = [tile for tile in tiles if tile not in self.held]
        together = max(1, PIXELS_PER_DECODE // math.prod(self.tile))
        for start in range(0, len(missing), together):
            some = missing[start : start + together]
            self.held |= zip(some, self._decoded(some), strict=True)

    def _decoded(self, tiles: list[int]) -> Shaped[np.ndarray, "n h w 3"]:
        """Tiles by number, read as one column of a TIFF."""
        content, offsets, counts = bytearray(8), [], []
        try:
            with decode.stream(self.source) as file:
                order = file.read(2)
                for tile in tiles:
                    file.seek(self.offsets[tile])
                    offsets.append(len(content))
                    counts.append(self.counts[tile])
                    content += file.read(self.counts[tile]) + bytes(self.counts[tile] % 2)
        except OSError as error:
            name = decode.name(self.source)
            raise ImageError(f"Image {name} cannot be read: {error.strerror}.") from error
        column = Directory(prefix=order)
        for tag in (tag for tag in _DECODING if tag in self.tags):
            column.tagtype[tag] = self.tags.tagtype[tag]
            column[tag] = self.tags[tag]
        shape = {_WIDTH: self.tile[1], _HEIGHT: len(tiles) * self.tile[0]}
        shape |= {_TILE_WIDTH: self.tile[1], _TILE_HEIGHT: self.tile[0]}
        for tag, value in {**shape, _OFFSETS: tuple(offsets), _COUNTS: tuple(counts)}.items():
            column.tagtype[tag] = _LONG
            column[tag] = value
        content[:8] = order + struct.pack("<HL" if order == b"II" else ">HL", 42, len(content))
        content += column.tobytes(len(content))
        pixels = decode.read(bytes(content), called=decode.name(self.source))
        return pixels.reshape(len(tiles), *self.tile, 3)


def _length(source: decode.Source) -> int:
    return len(source) if isinstance(source, bytes) else os.stat(source).st_size


def _directories(file: decode.File) -> Iterator[Directory]:
    """The image's directory and those of its overviews, by falling size."""
    header = file.read(8)
    first, *pages = _chain(file, header, Directory(header).next)
    yield first
    below = first.get(_SUBIFDS, ())
    for offset in below[:MOST_PAGES] if isinstance(below, tuple) else (below,):
        pages += _chain(file, header, offset)
    overviews = [tags for tags in pages if tags.get(_SUBFILE, 0) & 1]
    yield from sorted(overviews, key=lambda tags: -tags[_WIDTH] * tags[_HEIGHT])


def _chain(file: decode.File, header: bytes, offset: int) -> list[Directory]:
    found: list[Directory] = []
    while offset and len(found) < MOST_PAGES:  # a damaged chain may end in itself
        file.seek(offset)
        if int.from_bytes(file.read(2), "little" if header[:2] == b"II" else "big") > MOST_TAGS:
            break
        file.seek(offset)
        tags = Directory(header)
        tags.load(file)
        found.append(tags)
        offset = tags.next
    return found


def _halves(tags: Directory, page: TiledPage) -> bool:
    """The size is half of the page's, rounded down or up."""
    pairs = zip((tags[_HEIGHT], tags[_WIDTH]), page.shape[:2], strict=True)
    return all(own >= 1 and own in (whole // 2, -(-whole // 2)) for own, whole in pairs)


def _is_mean(small: TiledPage, large: TiledPage) -> bool:
    """Samples of an overview are area means of those of the image that it is of."""
    room = np.minimum(np.array(small.shape[:2]), np.array(large.shape[:2]) // 2)
    if small.dtype != large.dtype or not room.all():
        return False
    for share in PROBES:
        top, left = (share * room).astype(int) // PROBE_PX * PROBE_PX
        below, right = np.minimum((top + PROBE_PX, left + PROBE_PX), room)
        own = decode.to_uint8(small[top:below, left:right])
        whole = decode.to_uint8(large[2 * top : 2 * below, 2 * left : 2 * right])
        mean = cv2.resize(whole, own.shape[1::-1], interpolation=cv2.INTER_AREA)
        if np.abs(own.astype(float) - mean).mean() > CLOSE:
            return False
    return True
