"""A tiled TIFF with overviews of its own: a pyramid of which the tiles that are looked at are decoded.

tifffile reads the directories and decodes single tiles; the colours of a tile are those that
`decode.read` gives, for the layouts that are listed here and compared by tests. Any other file is
decoded whole.

Source: TIFF 6.0 (Adobe, 1992), section 15; overviews follow the image as in Cloud Optimized GeoTIFF
(OGC 21-026), or hang below it as in TIFF Technical Note 1 (SubIFDs).
"""

import itertools
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from assay.data.images import decode
from assay.data.images.white import FULL, to_uint8
from assay.errors import ImageError
from assay.shapes import Shaped

if TYPE_CHECKING:
    from tifffile import TiffPage

CLASSIC = (b"II*\0", b"MM\0*")
"""How the files begin that `decode.read` reads; BigTIFF begins otherwise, and is refused there."""


MOST_PAGES = 32
"""What is beyond is damage."""


MOST_TILE_PIXELS = 4096 * 4096
"""Larger tiles save nothing."""


PROBES = (0.25, 0.5, 0.75)
"""Where an overview is compared with the level above: shares of both sides."""


PROBE_PX = 64


CLOSE = 1.0
"""Mean distance (of 255 grey levels) up to which an overview counts as an area mean."""


LAYOUTS = {
    ("MINISWHITE", 8, 1),
    ("MINISBLACK", 8, 1),
    ("MINISBLACK", 8, 2, 2),
    ("MINISBLACK", 16, 1),
    ("SEPARATED", 8, 4),
    ("RGB", 8, 3),
    ("RGB", 8, 4, 0),
    ("RGB", 8, 4, 2),
    ("RGB", 16, 3),
    ("RGB", 16, 4, 0),
    ("RGB", 16, 4, 2),
}
"""What tiles without loss hold: colours, bits per sample, samples per pixel, and the meaning of an
extra one (0: none, 2: unassociated alpha)."""


JPEG_LAYOUTS = {("MINISBLACK", 8, 1), ("YCBCR", 8, 3)}


LAST_PREDICTOR = {
    "NONE": 1,
    "PACKBITS": 1,
    "JPEG": 1,
    "LZW": 2,
    "ADOBE_DEFLATE": 2,
    "DEFLATE": 2,
    "LZMA": 2,
    "ZSTD": 2,
}
"""Compressions, and the last predictor (2: differences of neighbours) that each is decoded with."""


ONLY_8_BITS = {"LZMA", "ZSTD"}
"""Compressions of Pillow's that OpenCV, which decodes 16 bits, has not."""


_ORIENTATION_TAG = 274


def open_pages(source: decode.Source, until: int) -> list["TiledPage"]:
    """Open the image and its overviews, each half of the one before, as far as the file has them.

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
            image, *overviews = _read_directories(file)
            pages = [TiledPage(source, image)]
            if decode.probe(source) != pages[0].shape[:2]:
                return []
            for overview in overviews:
                if max(pages[-1].shape) < until:
                    break
                if _is_half(overview, pages[-1]):
                    page = TiledPage(source, overview)
                    if _is_mean(page, pages[-1]):
                        pages.append(page)
    except Exception:  # whatever tifffile raises: `decode.read` says what is wrong
        return []
    return pages if len(pages) > 1 else []


class TiledPage:
    """Pixels of one page: like an array, but a tile is decoded when it is first looked at.

    Args:
        source: the file.
        page: the page's directory, while its file is open.

    Raises:
        ValueError: the page has no tiles that can be decoded one by one.
    """

    def __init__(self, source: decode.Source, page: "TiffPage") -> None:
        if not (_is_readable(page) and _has_tiles(page, _length(source))):
            raise ValueError("its tiles cannot be decoded one by one")
        self.source = source
        self.shape = (page.imagelength, page.imagewidth, 3)
        self.dtype = np.dtype(page.dtype)
        self.tile_size = page.tilelength, page.tilewidth
        self.grid = _grid(page)
        self.offsets, self.counts = page.dataoffsets, page.databytecounts
        self.colours, self.compression = _names(page)
        self.decoder: Callable[..., Any] = page.decode
        self.jpeg_tables = page.jpegtables
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
        name = decode.name(self.source)
        try:
            with decode.stream(self.source) as file:
                for tile in missing:
                    file.seek(self.offsets[tile])
                    self.tiles[tile] = self._decode_tile(file.read(self.counts[tile]), tile)
        except OSError as error:
            raise ImageError(f"Image {name} cannot be read: {error.strerror}.") from error
        except Exception as error:  # each codec has errors of its own
            raise ImageError(
                f"Image {name} cannot be read: tile {tile} is damaged ({error})."
            ) from error

    def _decode_tile(self, content: bytes, tile: int) -> Shaped[np.ndarray, "h w 3"]:
        if self.compression == "JPEG" and decode.probe(content) != self.tile_size:
            raise ValueError("it is of another size")  # would be decoded whatever its size
        samples = self.decoder(content, tile, jpegtables=self.jpeg_tables)[0][0]
        if self.colours == "SEPARATED":
            return np.array(Image.fromarray(samples, "CMYK").convert("RGB"))
        if self.colours == "MINISWHITE":
            samples = 255 - samples
        return samples[..., :3] if samples.shape[2] >= 3 else np.repeat(samples[..., :1], 3, 2)


def _length(source: decode.Source) -> int:
    return len(source) if isinstance(source, bytes) else os.stat(source).st_size


def _read_directories(file: decode.File) -> list["TiffPage"]:
    """Read the image's directory and those of its overviews, by falling size; none of other files."""
    if file.read(4) not in CLASSIC:
        return []
    from tifffile import TiffFile, TiffPage  # a file of another format is read without it

    file.seek(0)
    chain = TiffFile(file).pages
    image = chain.first
    directories = [
        *itertools.islice(chain, 1, MOST_PAGES),
        *itertools.islice(image.pages or (), MOST_PAGES),
    ]
    overviews = [page for page in directories if isinstance(page, TiffPage) and page.is_reduced]
    overviews.sort(key=lambda page: -page.imagelength * page.imagewidth)
    return [image, *overviews]


def _names(page: "TiffPage") -> tuple[str, str]:
    """Return what tifffile calls the colours and the compression."""
    from tifffile import COMPRESSION, PHOTOMETRIC

    return PHOTOMETRIC(page.photometric).name, COMPRESSION(page.compression).name


def _grid(page: "TiffPage") -> tuple[int, int]:
    """Return the number of rows and columns of tiles."""
    return -(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)


def _has_tiles(page: "TiffPage", length: int) -> bool:
    """Tell whether there are all tiles within a file of that many bytes, and of a size that helps."""
    offsets, counts = page.dataoffsets, page.databytecounts
    return (
        page.imagelength * page.imagewidth <= decode.MAX_PIXELS
        and min(page.tilelength, page.tilewidth) >= 1
        and page.tilelength * page.tilewidth <= MOST_TILE_PIXELS
        and len(offsets) == len(counts) == math.prod(_grid(page))
        and min(counts) >= 1
        and all(start + num <= length for start, num in zip(offsets, counts, strict=True))
    )


def _is_readable(page: "TiffPage") -> bool:
    """Tell whether tiles are decoded to the pixels that decoding the whole file gives."""
    colours, compression = _names(page)
    bits = page.bitspersample
    layout = colours, bits, page.samplesperpixel, *page.extrasamples
    return (
        layout in (JPEG_LAYOUTS if compression == "JPEG" else LAYOUTS)
        and (bits == 8 or compression not in ONLY_8_BITS)
        and page.tags["BitsPerSample"].count == page.samplesperpixel
        and np.dtype(page.dtype).kind == "u"
        and 1 <= page.predictor <= LAST_PREDICTOR.get(compression, 0)
        and page.axes in {"YX", "YXS"}
        and page.tiledepth == page.fillorder == page.tags.valueof(_ORIENTATION_TAG, 1) == 1
    )


def _is_half(overview: "TiffPage", page: TiledPage) -> bool:
    """Tell whether the size is half of the page's, rounded down or up."""
    pairs = zip((overview.imagelength, overview.imagewidth), page.shape[:2], strict=True)
    return all(side >= 1 and side in (whole // 2, -(-whole // 2)) for side, whole in pairs)


def _is_mean(small: TiledPage, large: TiledPage) -> bool:
    """Tell whether samples of an overview are area means of those of the page above."""
    room = np.minimum(np.array(small.shape[:2]), np.array(large.shape[:2]) // 2)
    if small.dtype != large.dtype or not room.all():
        return False
    for share in PROBES:
        y0, x0 = (share * room).astype(int) // PROBE_PX * PROBE_PX
        y1, x1 = np.minimum((y0 + PROBE_PX, x0 + PROBE_PX), room)
        sample = to_uint8(small[y0:y1, x0:x1], FULL)
        area = to_uint8(large[2 * y0 : 2 * y1, 2 * x0 : 2 * x1], FULL)
        mean = cv2.resize(area, sample.shape[1::-1], interpolation=cv2.INTER_AREA)
        if np.abs(sample.astype(float) - mean).mean() > CLOSE:
            return False
    return True
