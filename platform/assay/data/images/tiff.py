"""A tiled TIFF with overviews of its own: a pyramid of which the tiles that are looked at are decoded.

Tiles are decoded as `decode.read` decodes them, one by one. A file of another layout is decoded whole.

Source: TIFF 6.0 (Adobe, 1992), section 15; overviews follow the image as in Cloud Optimized GeoTIFF
(OGC 21-026), or hang below it as in TIFF Technical Note 1 (SubIFDs); of a file of several images these alone
are taken.
"""

import itertools
import math
from typing import Any

import cv2
import numpy as np

from assay.data.images import decode
from assay.data.images.formats.directory import (
    Directory,
    File,
    orientation_of,
    read_chain,
    refuse_xmp,
    xmp_of,
)
from assay.data.images.formats.samples import FormatError
from assay.data.images.formats.segments import Segments
from assay.data.images.formats.tiff import MAGIC, MASK, REDUCED, find_page, read_below, subfile_type
from assay.data.images.white import to_uint8
from assay.errors import ImageError
from assay.shapes import Shaped

MOST_PAGES = 32
"""Directories that are looked at for overviews."""


MOST_TILE_PIXELS = 4096 * 4096
"""Larger tiles save nothing."""


PROBES = (0.25, 0.5, 0.75)
"""Where an overview is compared with the level above: shares of both sides."""


PROBE_PX = 64


CLOSE = 1.0
"""Mean distance (of 255 grey levels) up to which an overview counts as an area mean."""


def open_pages(source: decode.Source, until: int, page: int | None = None) -> list["TiledPage"]:
    """Open the image and its overviews, each half of the one before, as far as the file has them.

    An overview counts if it is what the store would compute, an area mean, as far as samples tell:
    what was learnt on other files would not hold for one that was made otherwise.

    Args:
        source: path of the file, or its bytes.
        until: overviews are taken until the longer side is below (pixels).
        page: as for `decode.read`.

    Returns:
        The pages; none where a file is better decoded whole: it is no TIFF in tiles, has no
        such overview, or is damaged, of which decoding it says more.
    """
    try:
        with decode.stream(source) as file:
            image, *overviews = _read_directories(file, page)
            pages = [TiledPage(source, image)]
            for overview in overviews:
                if max(pages[-1].shape) < until:
                    break
                if _is_half(overview, pages[-1]):
                    small = TiledPage(source, overview)
                    if _is_mean(small, pages[-1]):
                        pages.append(small)
    except Exception:  # whatever a codec raises: `decode.read` says what is wrong
        return []
    return pages if len(pages) > 1 else []


class TiledPage:
    """Pixels of one page: like an array, but a tile is decoded when it is first looked at.

    Args:
        source: the file.
        page: the page's directory, while its file is open.

    Raises:
        FormatError: the page has no tiles that can be decoded one by one.
    """

    def __init__(self, source: decode.Source, page: Directory) -> None:
        self.source = source
        self.segments = Segments(page)
        _check_tiles(self.segments, page)
        self.shape = (self.segments.height, self.segments.width, 3)
        self.dtype = self.segments.shown
        self.tile_size, self.grid = self.segments.tile, self.segments.grid
        self.tiles: dict[int, np.ndarray] = {}
        self.whole: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, box: tuple[slice, slice]) -> Shaped[np.ndarray, "h w 3"]:
        """Return rows and columns, each without a step.

        Raises:
            ImageError: one of the tiles is damaged.
        """
        if self.whole is not None:
            return self.whole[box]
        (y0, y1, _), (x0, x1, _) = (
            side.indices(length) for side, length in zip(box, self.shape[:2], strict=True)
        )
        pixels = np.empty((max(y1 - y0, 0), max(x1 - x0, 0), 3), self.dtype)
        if pixels.size:
            height, width = self.tile_size
            rows = range(y0 // height, (y1 - 1) // height + 1)
            columns = range(x0 // width, (x1 - 1) // width + 1)
            self._decode([row * self.grid[1] + column for row in rows for column in columns])
            for row, column in itertools.product(rows, columns):
                y, x = row * height - y0, column * width - x0
                part = pixels[max(y, 0) : y + height, max(x, 0) : x + width]
                tile = self.tiles[row * self.grid[1] + column][max(-y, 0) :, max(-x, 0) :]
                part[:] = tile[: part.shape[0], : part.shape[1]]
        return pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all of it."""
        if self.whole is None:
            self.whole = self[:, :]
            self.tiles.clear()
        return np.array(self.whole, dtype=dtype, copy=copy)

    def _decode(self, tiles: list[int]) -> None:
        """Decode those tiles that were not decoded yet."""
        missing = [tile for tile in tiles if tile not in self.tiles]
        if not missing:
            return
        try:
            with decode.stream(self.source) as file:
                for tile in missing:
                    self.tiles[tile] = self._decode_tile(file, tile)
        except OSError as error:
            raise ImageError(f"{self._failure}: {error.strerror}.") from error
        except Exception as error:  # each codec has errors of its own
            raise ImageError(f"{self._failure}: tile {tile} is damaged ({error}).") from error

    @property
    def _failure(self) -> str:
        return f"Image {decode.name(self.source)} cannot be read"

    def _decode_tile(self, file: File, tile: int) -> Shaped[np.ndarray, "h w 3"]:
        return self.segments.read(file, tile).rgb()


def _read_directories(file: File, page: int | None) -> list[Directory]:
    """Read the image's directory and those of its overviews, by falling size; none of other files."""
    if file.read(4) not in MAGIC:
        return []
    image = find_page(file, page)
    chain = list(itertools.islice(read_chain(file), MOST_PAGES))
    if (
        sum(not subfile_type(each) & (REDUCED | MASK) for each in chain) > 1
    ):  # whose they are is not said
        chain = []
    directories = [*chain, *itertools.islice(read_below(image), MOST_PAGES)]
    overviews = [each for each in directories if subfile_type(each) == REDUCED]
    overviews.sort(key=lambda each: -each.number(256) * each.number(257))
    return [image, *overviews]


def _check_tiles(segments: Segments, page: Directory) -> None:
    """Refuse what has no tiles, of a size that helps, or would have to be turned."""
    refuse_xmp(orientation_of(page), xmp_of(page))
    num = segments.height * segments.width
    is_right = segments.is_tiled and orientation_of(page) in (None, 1) and segments.palette is None
    if not is_right or math.prod(segments.tile) > MOST_TILE_PIXELS or num > decode.MAX_PIXELS:
        raise FormatError("its tiles cannot be decoded one by one")


def _is_half(overview: Directory, page: TiledPage) -> bool:
    """Tell whether the size is half of the page's, rounded down or up."""
    pairs = zip((overview.number(257), overview.number(256)), page.shape[:2], strict=True)
    return all(side >= 1 and side in (whole // 2, -(-whole // 2)) for side, whole in pairs)


def _is_mean(small: TiledPage, large: TiledPage) -> bool:
    """Tell whether samples of an overview are area means of those of the page above."""
    room = np.minimum(np.array(small.shape[:2]), np.array(large.shape[:2]) // 2)
    if small.dtype != large.dtype or not room.all():
        return False
    for share in PROBES:
        y0, x0 = (share * room).astype(int) // PROBE_PX * PROBE_PX
        y1, x1 = np.minimum((y0 + PROBE_PX, x0 + PROBE_PX), room)
        above = large[2 * y0 : 2 * y1, 2 * x0 : 2 * x1]
        white = float(np.abs(above.astype(np.float64)).max()) or 1.0  # grey levels of these values
        sample, area = to_uint8(small[y0:y1, x0:x1], white), to_uint8(above, white)
        mean = cv2.resize(area, sample.shape[1::-1], interpolation=cv2.INTER_AREA)
        if np.abs(sample.astype(float) - mean).mean() > CLOSE:
            return False
    return True
