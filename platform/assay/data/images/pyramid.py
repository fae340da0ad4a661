"""One decoded image, laid out for fast reads of regions: in memory, in a stored file, or in a tiled TIFF.

Level 0 is the image, level i is 2^i times smaller (area mean). Values are as the file has them; what
is read of them has 8 bits, and where they have more, a white level says which value is 255.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np

from assay.data.images import decode, tiff
from assay.data.images.affine import warp
from assay.data.images.clahe import Clahe, Read, Tables
from assay.data.images.equalised import KeptTiles
from assay.data.images.stored_level import StoredLevel
from assay.data.images.white import Range, White, to_uint8
from assay.shapes import Float64, Shaped, UInt8

SMALLEST_LEVEL = 64


Level: TypeAlias = np.ndarray | tiff.TiledPage | StoredLevel


@dataclass(frozen=True)
class ImagePyramid:
    """One image: pyramid levels (memory-mapped, in memory, or read on demand) and what was measured of it."""

    levels: list[Level]
    range: Range
    """Of level 0; of an image whose pixels are read on demand, of the smallest level where that tells the depth."""
    mean_value: np.ndarray
    """Per channel, in the values of the file."""
    std_value: np.ndarray
    signature: bytes
    white: White | None = None
    """The white level of the data that it belongs to."""
    path: Path | None = None
    """The store's file that it is read from, beside which tables of equalisation, and what was equalised, are kept."""
    _tables: dict[tuple[int, Clahe], Tables] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _equalised: dict[tuple[int, Clahe], KeptTiles] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, pixels: np.ndarray, white: White | None = None) -> "ImagePyramid":
        """Lay out decoded pixels."""
        return cls._of_levels([*pyramid(pixels)], white)

    @classmethod
    def read(cls, source: decode.Source, page: int | None = None) -> "ImagePyramid":
        """Read an image file as the store would hold it.

        Of a tiled TIFF that has overviews these are its levels, and a tile is decoded when it is
        first looked at.

        Args:
            source: path of the file, or its bytes.
            page: as for `decode.read`.

        Raises:
            ImageError: as `decode.read`; damage that shows later raises it where it is cut.
        """
        pages = tiff.open_pages(source, 2 * SMALLEST_LEVEL, page)
        if not pages:
            return cls.of(decode.read(source, page=page))
        return cls._of_levels([*pages[:-1], *pyramid(np.asarray(pages[-1]))])

    @classmethod
    def _of_levels(cls, levels: list[Level], white: White | None = None) -> "ImagePyramid":
        smallest = np.asarray(levels[-1])
        values = Range.of(smallest)
        # means of a smaller level hide the brightest pixels, which say how deep an image is
        if isinstance(levels[0], np.ndarray) or not values.is_telling:
            values = Range.of(np.asarray(levels[0]))
        mean, std = statistics(levels)
        return cls(levels, values, mean, std, signature(smallest), white)

    @classmethod
    def of_mask(cls, mask: UInt8[np.ndarray, "h w"]) -> "ImagePyramid":
        """Lay out a mask; 255 says class 1 (see `masks`)."""
        values = np.where(mask == 255, 1, mask).astype(np.uint8)[..., None]
        return cls([values], Range.of(values), np.zeros(3), np.zeros(3), bytes(32))

    @cached_property
    def scale(self) -> float:
        """The value that is shown as 255.

        Raises:
            ImageError: it cannot be told, or the image is of another white level than the data.
        """
        return self.range.scale(self.white)

    @property
    def mean(self) -> Float64[np.ndarray, "3"]:
        """Mean per channel, as a share of white."""
        return self.mean_value / self.scale

    @property
    def std(self) -> Float64[np.ndarray, "3"]:
        """Standard deviation per channel, as a share of white."""
        return self.std_value / self.scale

    def uint8(self, values: Shaped[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Bring values of its levels to 8 bits."""
        return to_uint8(values, self.scale)

    @property
    def pixels(self) -> Shaped[np.ndarray, "h w c"]:
        """The whole image, or the mask."""
        return np.asarray(self.levels[0])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.levels[0].shape[0], self.levels[0].shape[1]

    def small(self, most: int) -> UInt8[np.ndarray, "h w 3"]:
        """Bring the longer side down to `most` pixels, by area mean.

        Starts from the coarsest level that is still large enough.
        """
        height, width = self.size
        scale = min(1.0, most / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        *_, pixels = (x for x in self.levels if x.shape[1] >= size[0] and x.shape[0] >= size[1])
        whole = self.uint8(np.asarray(pixels))
        return cv2.resize(whole, size, interpolation=cv2.INTER_AREA)

    def cut(
        self, box: tuple[int, int, int, int], level: int = 0, clahe: Clahe | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return box (x0, y0, x1, y1) of a level, equalised if asked, zero outside the image."""
        pixels = self.levels[level]
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = box
        first_x, stop_x = max(x0, 0), min(x1, width)
        first_y, stop_y = max(y0, 0), min(y1, height)
        window = np.zeros((y1 - y0, x1 - x0, 3), dtype=np.uint8)
        if first_x >= stop_x or first_y >= stop_y:
            return window

        if clahe is None:
            inside = self.reader(level)(first_x, first_y, stop_x, stop_y)
        else:
            region = first_x, first_y, stop_x, stop_y
            inside = self.equalised(level, clahe).region(self.reader(level), *region)
        window[first_y - y0 : stop_y - y0, first_x - x0 : stop_x - x0] = inside
        return window

    def reader(self, level: int) -> Read:
        """Return what reads boxes of a level in 8 bits."""
        pixels = self.levels[level]

        def read(x0: int, y0: int, x1: int, y1: int) -> UInt8[np.ndarray, "rows columns 3"]:
            return self.uint8(np.asarray(pixels[y0:y1, x0:x1]))

        return read

    def tables(self, level: int, clahe: Clahe) -> Tables:
        """Return the tables that a level is equalised by: of a stored image all, kept beside it, of another what was needed so far."""
        if (level, clahe) not in self._tables:
            height, width = self.levels[level].shape[:2]
            if self.path is None:
                tables = Tables(height, width, clahe)
            else:
                kept = self._beside(level, clahe)
                tables = Tables.kept(kept, self.reader(level), height, width, clahe)
            self._tables[level, clahe] = tables
        return self._tables[level, clahe]

    def equalised(self, level: int, clahe: Clahe) -> Tables | KeptTiles:
        """Return what gives equalised pixels of a level: of a stored image those kept beside it."""
        tables = self.tables(level, clahe)
        if self.path is None:
            return tables
        if (level, clahe) not in self._equalised:
            beside = self._beside(level, clahe)
            path = beside.with_name(f"{beside.name}.tiles")
            self._equalised[level, clahe] = KeptTiles(path, tables)
        return self._equalised[level, clahe]

    def _beside(self, level: int, clahe: Clahe) -> Path:
        assert self.path is not None
        # the white level decides what is read of more than 8 bits
        parts = f"{clahe.clip_limit:g}", f"{clahe.grid}", f"{level}", f"{self.scale:g}"
        return self.path.with_name(f"{self.path.name}.clahe-{'-'.join(parts)}")

    def view(
        self,
        matrix: Float64[np.ndarray, "2 3"],
        height: int,
        width: int,
        clahe: Clahe | None = None,
        repeat_edge: bool = False,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Show what an affine window on the image sees; `matrix` maps window pixels to image pixels.

        Reads the coarsest level that still has a pixel for each window pixel, and of it only the
        box the window covers. Whole-pixel shifts and flips are copied, anything else is sampled.
        The image fades to zero over the pixel beyond its edge, or with `repeat_edge` ends there at
        full strength, which is for windows that only show what is inside.
        """
        copied = whole_pixels(matrix, height, width)
        if copied is not None:
            (x, y), flips = copied
            window = self.cut((x, y, x + width, y + height), 0, clahe)
            return window[:: flips[1], :: flips[0]]
        index, scaled = self.onto_level(matrix)
        right, bottom = width - 1, height - 1
        corners = np.array([[0, 0, 1], [right, 0, 1], [0, bottom, 1], [right, bottom, 1]])
        ends = corners @ scaled.T
        edge = np.array(self.levels[index].shape[1::-1])
        margin = 0 if repeat_edge else 1
        low = np.clip(np.floor(ends.min(0)).astype(int), -margin, edge)
        high = np.clip(np.ceil(ends.max(0)).astype(int) + 1, 0, edge + margin)
        if (high <= low).any():
            return np.zeros((height, width, 3), dtype=np.uint8)
        window = self.cut((int(low[0]), int(low[1]), int(high[0]), int(high[1])), index, clahe)
        scaled[:, 2] -= low
        return warp(window, scaled, height, width, repeat_edge)

    def onto_level(
        self, matrix: Float64[np.ndarray, "2 3"]
    ) -> tuple[int, Float64[np.ndarray, "2 3"]]:
        """Choose the coarsest level with a pixel for each window pixel; return the matrix onto it."""
        step = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
        index = min(max(int(np.floor(np.log2(max(step, 1e-9)) + 1e-6)), 0), len(self.levels) - 1)
        # a level's pixel i covers the full-size pixels around (i + 0.5) * ratio - 0.5
        ratio = np.array(self.levels[0].shape[1::-1]) / np.array(self.levels[index].shape[1::-1])
        scaled = matrix / ratio[:, None]
        scaled[:, 2] += 0.5 / ratio - 0.5
        return index, scaled


def whole_pixels(
    matrix: Float64[np.ndarray, "2 3"], height: int, width: int
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Find where a window that copies whole pixels begins (x, y), and its steps (1, or -1 where flipped).

    Return None for a window that has to be sampled.
    """
    flips = np.sign(np.diag(matrix)).astype(int)
    start = matrix[:, 2] + np.minimum(flips, 0) * np.array([width - 1, height - 1])
    if (matrix[:, :2] != np.diag(flips)).any() or (start != np.rint(start)).any():
        return None
    return (int(start[0]), int(start[1])), (int(flips[0]), int(flips[1]))


def pyramid_bytes(height: int, width: int) -> int:
    """Bound an 8-bit entry's size from above: the image and a third for the pyramid."""
    return height * width * 4 + 65536


def signature(level: Shaped[np.ndarray, "h w 3"]) -> bytes:
    """Digest an image to 32 bytes that near-copies share: signs of a 16x16 grey thumbnail against its own blur.

    A flip or quarter turn of the image permutes the 256 bits in the same way.
    """
    grey = cv2.cvtColor(level, cv2.COLOR_RGB2GRAY)
    thumb = cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.packbits(thumb > cv2.blur(thumb, (5, 5))).tobytes()


def pyramid(level: np.ndarray) -> list[np.ndarray]:
    """Halve an image by area mean, and its halves, until the longer side nears `SMALLEST_LEVEL`."""
    levels = [level]
    while max(level.shape[:2]) >= 2 * SMALLEST_LEVEL:
        size = (max(level.shape[1] // 2, 1), max(level.shape[0] // 2, 1))
        level = cv2.resize(level, size, interpolation=cv2.INTER_AREA)
        levels.append(level)
    return levels


def statistics(levels: Sequence[Level]) -> tuple[np.ndarray, np.ndarray]:
    """Measure mean and standard deviation of the values per channel, on the last level of at least 256 pixels."""
    overview = next((x for x in reversed(levels) if min(x.shape[:2]) >= 256), levels[0])
    mean, std = cv2.meanStdDev(np.asarray(overview))
    return mean[:, 0], std[:, 0]
