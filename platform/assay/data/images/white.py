"""The white level: which value of an image of more than 8 bits is shown as 255.

A camera of 12 bits may write 0 to 4095 into a file of 16, or shift its values up; a file of floats
may hold anything. One level serves a data set, ships with the bundle, and is what `predict` and
serving read images by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from assay.errors import ImageError
from assay.shapes import Shaped, UInt8

BITS = (8, 10, 12, 14, 16)
"""Depths of cameras; the white level of each is its largest value."""


FULL = 65535.0


DARK = (1 << 14) - 1
"""A single file of 16 bits that holds nothing brighter may be dark, or of 14 bits and less."""


DIM = 8
"""An image whose brightest value is less than white by this factor is nearly black, or of three bits less."""


@dataclass(frozen=True, kw_only=True)
class White:
    """The white level of a data set."""

    value: float
    """What is shown as 255."""
    clips: bool = False
    """Brighter values are shown as white, since a person set the level; else they are refused."""


@dataclass(frozen=True)
class Range:
    """Which values an image holds."""

    dtype: str
    """Of the file: uint8, uint16 or float32."""
    low: float
    high: float

    @classmethod
    def of(cls, pixels: Shaped[np.ndarray, "h w *c"]) -> "Range":
        """Measure an image; one of 8 bits has a range by nature."""
        if pixels.dtype == np.uint8:
            return cls("uint8", 0.0, 255.0)
        return cls(str(pixels.dtype), float(pixels.min()), float(pixels.max()))

    @property
    def is_deep(self) -> bool:
        """Whether a white level is needed."""
        return self.dtype != "uint8"

    @property
    def is_telling(self) -> bool:
        """Whether the values alone say which is white: those of 8 bits, and of 16 that reach far enough."""
        return not self.is_deep or (self.dtype == "uint16" and self.high > DARK)

    def scale(self, white: White | None) -> float:
        """Return the value that is shown as 255.

        Raises:
            ImageError: no level is known and the values do not tell, or they are not of that level.
        """
        if not self.is_deep:
            return 255.0
        if white is None:
            if self.is_telling:
                return FULL
            raise ImageError(
                f"it holds {self}, no white level is known, and the values do not tell what is white; "
                "pass --data.white to training, or convert the image to 8 bits for a model that saw no others"
            )
        if not white.clips and not (self.low >= 0 and self.high <= white.value):
            raise ImageError(
                f"it holds {self}, and the white level of the data is {white.value:g}; send images as they were in training"
            )
        return white.value

    def __str__(self) -> str:
        """Name the values."""
        kind = "floats" if self.dtype.startswith("float") else "values of 16 bits"
        return f"{kind} from {_shown(self.low)} to {_shown(self.high)}"


def choose(ranges: Sequence[Range], asked: float = 0.0) -> tuple[White | None, str]:
    """Choose the white level of a data set, and say in a sentence what was chosen, if that is news.

    Whole numbers: that of the least depth which holds the largest value; floats: 1, if all lie in
    0 to 1.

    Args:
        ranges: of its images.
        asked: the level that a person sets; 0: none.

    Raises:
        ImageError: the values do not tell.
    """
    deep = [values for values in ranges if values.is_deep]
    if not deep:
        idle = "data.white has no effect: no image has more than 8 bits."
        return None, idle if asked else ""
    if asked:
        return White(value=asked, clips=True), " ".join(_clipped(deep, asked) + _dark(deep, asked))
    low, high = min(values.low for values in deep), max(values.high for values in deep)
    kinds = {values.dtype for values in deep}
    if len(kinds) > 1 or (kinds == {"float32"} and not (low >= 0 and high <= 1)):
        held = "floats and whole numbers" if len(kinds) > 1 else str(Range("float32", low, high))
        raise ImageError(
            f"{len(deep)} images of more than 8 bits hold {held}, and it cannot be told which value is white; pass --data.white."
        )
    if kinds == {"float32"}:
        said = f"{len(deep)} images of floats: 1 is white (--data.white)."
        return White(value=1.0), " ".join([said, *_dark(deep, 1.0)])
    bits = next(bits for bits in BITS if high < 1 << bits)
    white = float((1 << bits) - 1)
    said = f"{len(deep)} images of 16 bits hold no value above {high:g}: read as {bits} bits, {white:g} is white (--data.white)."
    return White(value=white), " ".join([said] * (bits < 16) + _dark(deep, white))


def _shown(value: float) -> str:
    """Write a value with the digits that tell it from its neighbours among floats of 32 bits, as 1.0000001 from 1."""
    return f"{float(str(np.float32(value))):.9g}"


def _clipped(ranges: Sequence[Range], white: float) -> list[str]:
    """Say how many images hold values beyond black and white."""
    above = sum(values.high > white for values in ranges)
    below = sum(values.low < 0 for values in ranges)
    counts = {f"above the white level {white:g}, which are shown as white": above}
    counts["below 0, which are shown as black"] = below
    return [
        f"{num} of {len(ranges)} images hold values {what}." for what, num in counts.items() if num
    ]


def _dark(ranges: Sequence[Range], white: float) -> list[str]:
    """Say how many images are nearly black beside a white level, as those of fewer bits among others are."""
    dark = [values.high for values in ranges if values.high * DIM < white]
    if not dark:
        return []
    return [
        f"{len(dark)} of {len(ranges)} images hold no value above {max(dark):g} where {white:g} is white, and are shown nearly black; "
        "convert them if they are of fewer bits."
    ]


def to_uint8(
    image: Shaped[np.ndarray, "h w *c"], white: float | None = None
) -> UInt8[np.ndarray, "h w *c"]:
    """Bring an image to 8 bits: `white` and more becomes 255, 0 and less 0.

    Args:
        image: of 8 or 16 bits, or floats.
        white: none: 65535, of whole numbers that reach far enough; 8 bits stay as they are.

    Raises:
        ImageError: no white is given, and the values do not tell.
    """
    if image.dtype == np.uint8:
        return image
    if white is None:
        white = Range.of(image).scale(None)
    if image.dtype == np.uint16:
        return _table(white)[image]
    return np.rint(np.clip(image * (255 / white), 0, 255)).astype(np.uint8)


@lru_cache(maxsize=8)
def _table(white: float) -> UInt8[np.ndarray, "65536"]:
    """List what each value of 16 bits becomes, to the nearest."""
    return np.minimum(np.arange(65536) * 255 / white + 0.5, 255).astype(np.uint8)
