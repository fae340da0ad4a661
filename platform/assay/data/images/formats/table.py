"""Which layouts of TIFF files are read: the table, and how another one is refused.

Source: TIFF 6.0 (Adobe, 1992); its Technical Notes 2 (JPEG) and 3 (predictor of floats); zstd, LZMA
and WebP as libtiff numbers them.
"""

from dataclasses import dataclass
from typing import Any, Literal

from assay.data.images.formats.directory import NAMES
from assay.data.images.formats.samples import FormatError

INTS = frozenset({(1, bits) for bits in (1, 2, 4, 8, 10, 12, 14, 16, 32, 64)})
BYTES = frozenset({(1, 8), (1, 16)})
FLOATS = frozenset({(3, 16), (3, 32), (3, 64)})
"""Sample formats (1: whole numbers from 0, 3: floats) with their bits."""


@dataclass(frozen=True)
class Codec:
    """What a compression is read with: sample formats, colours, predictors and fill orders."""

    samples: frozenset[tuple[int, int]]
    predictors: tuple[int, ...] = (1,)
    colours: tuple[int, ...] = (0, 1, 2, 3, 5)
    fill_orders: tuple[int, ...] = (1,)


_PLAIN = Codec(INTS | FLOATS, fill_orders=(1, 2))
_PREDICTED = Codec(INTS | FLOATS, predictors=(1, 2, 3))
_FAX = Codec(frozenset({(1, 1)}), colours=(0, 1), fill_orders=(1, 2))
_BYTE = frozenset({(1, 8)})

CODECS = {
    1: _PLAIN,
    2: _FAX,
    3: _FAX,
    4: _FAX,
    5: _PREDICTED,
    7: Codec(_BYTE, colours=(0, 1, 2, 6)),
    8: _PREDICTED,
    32773: Codec(INTS | FLOATS),
    32946: _PREDICTED,
    34925: _PREDICTED,
    50000: _PREDICTED,
    50001: Codec(_BYTE, colours=(2,)),
}
"""Compressions that are read (259); tifffile names them."""


BYTE_CODECS = {
    5: "lzw",
    8: "zlib",
    32773: "packbits",
    32946: "zlib",
    34925: "lzma",
    50000: "zstd",
}
"""What imagecodecs calls those that give bytes."""


@dataclass(frozen=True)
class Colour:
    """What a photometric interpretation is read with."""

    kind: Literal["grey", "rgb", "inks", "palette"]
    channels: int
    samples: frozenset[tuple[int, int]]
    inverted: bool = False


COLOURS = {
    0: Colour("grey", 1, INTS, inverted=True),
    1: Colour("grey", 1, INTS | FLOATS),
    2: Colour("rgb", 3, INTS - {(1, 1), (1, 2), (1, 4)} | FLOATS),
    3: Colour("palette", 1, frozenset({(1, 1), (1, 2), (1, 4), (1, 8)})),
    5: Colour("inks", 4, BYTES),
    6: Colour("rgb", 3, _BYTE),
}
"""Photometric interpretations that are read (262); tifffile names them."""


ALPHA = {0: "unspecified", 1: "associated alpha", 2: "unassociated alpha"}
"""What one extra sample may mean (338)."""


def refusal(code: int, value: int, allowed: Any, compression: int | None = None) -> FormatError:
    """Word what is not read: a tag with its value, and what may stand there."""
    beside = "" if compression in (None, 1) else f" with compression {_named(259, compression)}"
    names = ", ".join(_named(code, each) for each in allowed) or "none"
    return FormatError(
        f"its {NAMES[code]} ({code}) is {_named(code, value)}{beside}, allowed: {names}; save it as such or as PNG"
    )


def _named(code: int, value: int | None) -> str:
    """Write a tag's value with its name, where tifffile is there to know it."""
    try:
        from tifffile import COMPRESSION, PHOTOMETRIC, PREDICTOR, SAMPLEFORMAT
    except ModuleNotFoundError:
        return str(value)
    enums: dict[int, Any] = {259: COMPRESSION, 262: PHOTOMETRIC, 317: PREDICTOR, 339: SAMPLEFORMAT}
    enum = enums.get(code)
    try:
        return f"{value} ({enum(value).name})" if enum else str(value)
    except ValueError:
        return str(value)
