"""Samples as a file stores them, what they mean, and the colours or the plane made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np
from PIL import Image

from assay.data.images.white import FULL, to_uint8
from assay.shapes import Float32, UInt8, UInt16

Pixels: TypeAlias = (
    UInt8[np.ndarray, "h w *c"] | UInt16[np.ndarray, "h w *c"] | Float32[np.ndarray, "h w *c"]
)


class FormatError(ValueError):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class Samples:
    """Samples of an image, or of a part of it.

    Args:
        pixels: (h, w) for grey or a palette, (h, w, 3) for RGB, (h, w, 4) for inks; as stored.
        colour: what they are; "inks" are cyan, magenta, yellow and black, 0 is none.
        bits: how many of each sample count.
        inverted: 0 is white.
        palette: the colours (n, 3) of a palette's numbers.
        alpha: (h, w), of as many bits; none where the file has no such channel.
        associated: the colours are multiplied by alpha.
    """

    pixels: np.ndarray
    colour: Literal["grey", "rgb", "inks", "palette"]
    bits: int = 8
    inverted: bool = False
    palette: np.ndarray | None = None
    alpha: np.ndarray | None = None
    associated: bool = False

    def rgb(self) -> Pixels:
        """Make RGB of 8 bits, of 16 where samples have more, and of floats where they have more than 16.

        Raises:
            FormatError: a sample is not finite, or a number is beyond the palette.
        """
        if self.palette is not None:
            return self._colours(self.palette)
        if self.colour == "inks":
            return _without_inks(self.pixels)
        pixels = self._levels()
        return cv2.merge([pixels] * 3) if pixels.ndim == 2 else pixels

    def plane(self, plane: Literal["level", "index", "alpha"]) -> Pixels:
        """Make one plane of a mask (see `decode.read_plane`).

        Raises:
            FormatError: as `rgb`; the file has no such plane; or its samples are no levels.
        """
        if plane == "alpha" and self.alpha is None:
            raise FormatError("it has no alpha channel")
        if plane == "index":
            return self._index()
        if self.pixels.dtype.kind == "f" or self.bits > 16:
            raise FormatError(
                f"its samples are {self._kind}, which no mask is read from; save it as grey of 8 bits"
            )
        if plane == "alpha" and self.alpha is not None:
            return to_uint8(self.alpha, float(2**self.bits - 1))
        levels = self._levels() if self.colour == "grey" else self.rgb().max(2)
        if 8 < self.bits < 16:  # half of the range is then half of 16 bits
            levels = np.rint(levels * (FULL / (2**self.bits - 1))).astype(np.uint16)
        return levels

    def _index(self) -> Pixels:
        if self.pixels.dtype.kind == "f" or self.bits > 16:
            raise FormatError(
                f"its samples are {self._kind}, which are no class numbers; save it as grey of 8 bits"
            )
        if self.colour in ("grey", "palette"):
            return self._upright_values()
        colours = self.rgb()
        if self.bits > 8 or (colours != colours[:, :, :1]).any():
            raise FormatError(
                "it holds colours, which are no class numbers; save it as grey of 8 bits"
            )
        return colours[:, :, 0]

    @property
    def _kind(self) -> str:
        return f"{self.bits}-bit {'floats' if self.pixels.dtype.kind == 'f' else 'integers'}"

    def _upright_values(self) -> np.ndarray:
        """Return the samples with 0 as black."""
        top = self.pixels.dtype.type(2**self.bits - 1) if self.inverted else None
        return self.pixels if top is None else top - self.pixels

    def _levels(self) -> Pixels:
        """Bring samples to 8 bits, 16, or floats of 32; whole numbers of more than 24 bits are rounded."""
        pixels = self._upright_values()
        if self.associated and self.alpha is not None:
            pixels = _divide(pixels, self.alpha, 2**self.bits - 1)
        if self.bits <= 8:
            return pixels * np.uint8(255 // (2**self.bits - 1)) if self.bits < 8 else pixels
        if pixels.dtype == np.uint16:
            return pixels
        with np.errstate(over="ignore"):
            values = pixels.astype(np.float32)
        if not np.isfinite(values).all():
            raise FormatError("it has pixels that are NaN or infinite; give them a value")
        return values

    def _colours(self, palette: np.ndarray) -> Pixels:
        most = int(self.pixels.max(initial=0))
        if most >= len(palette):
            raise FormatError(
                f"it has the number {most}, beyond its palette of {len(palette)} colours"
            )
        return palette[self.pixels]


@dataclass(frozen=True)
class Traits:
    """What a header says of the samples: the file's format, what they are, and what was done to them."""

    format: str
    colour: Literal["grey", "rgb", "inks", "palette"]
    has_alpha: bool = False
    """Transparency is told, by a channel or by colours that are transparent."""
    is_lossy: bool = False
    """Values were changed by the compression."""


@dataclass(frozen=True)
class Header:
    """What a header says, and how the pixels behind it are read.

    Args:
        height: of the stored image, before it is turned upright (pixels).
        width: likewise.
        orientation: EXIF orientation, 1 to 8.
        traits: of its samples.
        decode: makes an array of samples by a function, which may be called with one part after
            another; raises FormatError, or what a decoder raises.
    """

    height: int
    width: int
    orientation: int
    traits: Traits
    decode: Callable[[Callable[[Samples], Pixels]], Pixels]


def choose_page(page: int | None, num: int, what: str = "pages") -> int:
    """Return the page that is read of a file with so many.

    Raises:
        FormatError: there are several and none was named, or there is no such page.
    """
    if page is None and num > 1:
        raise FormatError(
            f"it holds {num} {what}, and which one to read is not said; pass --data.page 0 for the first, or save each as a file of its own"
        )
    if not 0 <= (page or 0) < num:
        held = f"{num} {what}" if num > 1 else "1 page"
        raise FormatError(f"it holds {held}, and --data.page {page} counts from 0")
    return page or 0


def _divide(pixels: np.ndarray, alpha: np.ndarray, top: int) -> np.ndarray:
    """Divide colours by alpha; where it is 0 nothing is known, and they are 0."""
    share = alpha.astype(np.uint32)
    share = share[..., None] if pixels.ndim == 3 else share
    divided = (pixels.astype(np.uint32) * top + share // 2) // np.maximum(share, 1)
    return np.where(share == 0, 0, np.minimum(divided, top)).astype(pixels.dtype)


def _without_inks(inks: np.ndarray) -> Pixels:
    """Convert cyan, magenta, yellow and black without a colour profile: (1 - ink) (1 - black)."""
    if inks.dtype == np.uint8:
        return np.array(Image.fromarray(np.ascontiguousarray(inks), "CMYK").convert("RGB"))
    light = int(FULL) - inks.astype(np.uint64)
    return ((light[..., :3] * light[..., 3:] + 32767) // 65535).astype(np.uint16)
