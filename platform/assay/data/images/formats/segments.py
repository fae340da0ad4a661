"""Strips and tiles of one directory of a TIFF file, and their samples.

A layout that is in the table is decoded from what its tags say, by imagecodecs; any other is refused by
the tag's name and value. A whole file, and a tile of a large one, come from the same code.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from assay.data.images.formats.directory import MOST_SEGMENTS, NAMES, Directory, File, read_at
from assay.data.images.formats.samples import FormatError, Samples, Traits
from assay.data.images.formats.table import (
    ALPHA,
    BYTE_CODECS,
    BYTES,
    CODECS,
    COLOURS,
    Colour,
    refusal,
)

SLACK = 256
"""Bytes that a codec may write beyond a segment, as some writers pad."""


class Segments:
    """The strips or tiles of a directory.

    Args:
        directory: its tags.

    Raises:
        FormatError: the layout is not in the table, or a tag is damaged.
    """

    def __init__(self, directory: Directory) -> None:
        tags = directory
        self.order = tags.layout.order
        self.width, self.height = tags.number(256), tags.number(257)
        self.compression, self.photometric = tags.number(259), tags.number(262)
        self.num_samples, self.bits = tags.number(277, 1), tags.number(258, 1)
        self.format, self.predictor = tags.number(339, 1), tags.number(317, 1)
        self.fill_order, self.planar = tags.number(266, 1), tags.number(284, 1)
        self.extras, self.t4_options = tags.numbers(338), tags.number(292, 0)
        self._check(tags)
        self.is_tiled = 322 in tags
        if self.is_tiled:
            self.tile = tags.number(323), tags.number(322)
        else:
            self.tile = min(tags.number(278, self.height), self.height), self.width
        if min(self.tile) < 1 or max(self.tile) > 1 << 20:
            raise FormatError(f"its strips or tiles are of {self.tile[1]} x {self.tile[0]} pixels")
        self.grid = -(-self.height // self.tile[0]), -(-self.width // self.tile[1])
        self._read_places(tags)

    def _check(self, tags: Directory) -> None:
        """Refuse what is not in the table, by the tag's name and value."""
        sizes = self.width, self.height
        if min(sizes) < 1 or max(sizes) > 1 << 30:
            raise FormatError(f"its header says {self.width} x {self.height} pixels")
        codec, colour = CODECS.get(self.compression), COLOURS.get(self.photometric)
        if codec is None:
            raise refusal(259, self.compression, CODECS)
        if colour is None or self.photometric not in codec.colours:
            raise refusal(262, self.photometric, codec.colours, self.compression)
        sample = self.format, self.bits
        if self.format not in (1, 3):
            raise refusal(339, self.format, (1, 3))
        if sample not in colour.samples & codec.samples:
            allowed = sorted(b for f, b in colour.samples & codec.samples if f == self.format)
            raise refusal(258, self.bits, allowed, self.compression)
        predictors = [each for each in codec.predictors if self._may_be_predicted(each)]
        if self.predictor not in predictors:
            raise refusal(317, self.predictor, predictors, self.compression)
        fill_orders = codec.fill_orders if self.bits <= 8 else (1,)
        if self.fill_order not in fill_orders:
            raise refusal(266, self.fill_order, fill_orders, self.compression)
        if self.planar not in ((1,) if self.compression in (7, 50001) else (1, 2)):
            raise refusal(284, self.planar, (1,), self.compression)
        for code in (32997, 332):  # one slice; inks in the usual order
            if tags.number(code, 1) != 1:
                raise refusal(code, tags.number(code), (1,))
        ranges, most = tags.numbers(336), 2**self.bits - 1
        if self.photometric == 5 and ranges != (0, most) * (len(ranges) // 2):
            raise FormatError(
                f"its DotRange (336) is {ranges}, allowed: 0 for no ink and {most} for all; save it as RGB"
            )
        self._check_extras(colour)

    def _may_be_predicted(self, predictor: int) -> bool:
        if predictor == 2:
            return self.format == 1 and self.bits in (8, 16, 32, 64)
        return predictor == 1 or self.format == 3

    def _check_extras(self, colour: Colour) -> None:
        num = self.num_samples - colour.channels
        lossy = self.compression == 7
        if num not in ((0,) if lossy or colour.channels == 4 else (0, 1)) or len(self.extras) > 1:
            raise FormatError(
                f"its samples per pixel (277) are {self.num_samples}, where {colour.channels} are {colour.kind} and one more may be alpha; "
                "save the channels that are to be looked at as grey or RGB"
            )
        self.extra = (*self.extras, 0)[0] if num else None
        if self.extra is not None and self.extra not in ALPHA:
            raise refusal(338, self.extra, ALPHA)
        if self.extra == 1 and (self.format, self.bits) not in BYTES:
            raise refusal(258, self.bits, (8, 16))
        if num and self.bits < 8:
            raise refusal(258, self.bits, (8, 16))

    def _read_places(self, tags: Directory) -> None:
        """Read where the segments are."""
        num = math.prod(self.grid) * (self.num_samples if self.planar == 2 else 1)
        if num > MOST_SEGMENTS:
            raise FormatError(
                f"it is cut into {num} strips or tiles, at most {MOST_SEGMENTS} are read; save it with larger ones"
            )
        codes = (324, 325) if self.is_tiled else (273, 279)
        places = [tags.array(code, MOST_SEGMENTS) for code in codes]
        for code, values in zip(codes, places, strict=True):
            if len(values) != num:
                raise FormatError(
                    f"its tag {code} ({NAMES[code]}) has {len(values)} values, and its size needs {num}"
                )
        self.offsets, self.counts = places[0].tolist(), places[1].tolist()
        self.palette = self._palette(tags.array(320)) if self.photometric == 3 else None
        self.tables = tags.array(347).tobytes() if self.compression == 7 else b""
        kind = "f" if self.format == 3 else "u"
        self.dtype = np.dtype(f"{kind}{2 ** max(math.ceil(math.log2(self.bits / 8)), 0)}")

    def _palette(self, colours: np.ndarray) -> np.ndarray:
        """Return the colours (n, 3) of 16 bits, or of 8 where no more is said."""
        if len(colours) != 3 << self.bits:
            raise FormatError(
                f"its tag 320 (ColorMap) has {len(colours)} values, not {3 << self.bits}"
            )
        colours = colours.reshape(3, -1).T.astype(np.uint16)
        if colours.max() < 256:  # as old writers have it
            return colours.astype(np.uint8)
        high = (colours >> 8).astype(np.uint8)
        low = colours & 255
        return high if (low == high).all() or not low.any() else colours

    @property
    def shown(self) -> np.dtype:
        """What `Samples.rgb` makes of them."""
        if self.bits <= 8:
            return np.dtype(np.uint8)
        return np.dtype(np.uint16 if self.dtype == np.uint16 else np.float32)

    @property
    def traits(self) -> Traits:
        """What its samples are; WebP counts as lossy, though it need not be."""
        is_lossy = self.compression in (7, 50001)
        return Traits("TIFF", COLOURS[self.photometric].kind, self.extra in (1, 2), is_lossy)

    def box(self, index: int) -> tuple[slice, slice]:
        """Return the rows and columns of the image that a segment covers."""
        (y, x), (height, width) = divmod(index, self.grid[1]), self.tile
        rows = slice(y * height, min((y + 1) * height, self.height))
        return rows, slice(x * width, min((x + 1) * width, self.width))

    def read(self, file: File, index: int) -> Samples:
        """Read one segment, of all planes, without what it has beyond the image.

        Raises:
            FormatError: it is missing, cut off or ends early; a codec may raise errors of its own.
        """
        rows, columns = self.box(index)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if self.planar == 1:
            pixels = self._decode(file, index, height, self.num_samples)
        else:
            step = math.prod(self.grid)
            planes = [
                self._decode(file, index + i * step, height, 1) for i in range(self.num_samples)
            ]
            pixels = np.concatenate(planes, 2)
        pixels = pixels[:height, :width]
        colour = COLOURS[self.photometric]
        alpha = pixels[..., -1] if self.extra in (1, 2) else None
        pixels = pixels[..., : colour.channels] if colour.channels > 1 else pixels[..., 0]
        return Samples(
            pixels,
            colour.kind,
            self.bits,
            colour.inverted,
            self.palette,
            alpha,
            associated=self.extra == 1,
        )

    def _decode(self, file: File, index: int, height: int, num: int) -> np.ndarray:
        """Decode a segment to (rows, columns, num); only its first `height` rows are needed."""
        if not self.offsets[index] or not self.counts[index]:
            raise FormatError(f"its strip or tile {index} is missing")
        content = read_at(file, self.offsets[index], self.counts[index])
        if self.compression in (7, 50001):
            return self._decode_picture(content, index, height)
        rows, width = self.tile if self.is_tiled else (height, self.tile[1])
        row_bytes = -(-width * num * self.bits // 8)
        room = row_bytes * (rows if self.is_tiled else self.tile[0])
        content = self._unpack(content, rows, room)
        if not rows * row_bytes <= len(content) <= room + SLACK:
            raise FormatError(
                f"its strip or tile {index} has {len(content)} bytes and not the {rows * row_bytes} of its size"
            )
        values = self._values(content[: rows * row_bytes], width * num, rows)
        return self._unpredict(values.reshape(rows, width, num))

    def _unpack(self, content: bytes, rows: int, room: int) -> bytes:
        """Undo the compression, up to a few more bytes than there is room for."""
        import imagecodecs  # a file of another format is read without it

        if self.fill_order == 2:
            content = bytes(imagecodecs.bitorder_decode(content))
        if self.compression in (2, 3, 4):
            return self._unpack_fax(content, rows).tobytes()
        if self.compression == 1:
            return content
        unpack = getattr(imagecodecs, f"{BYTE_CODECS[self.compression]}_decode")
        return bytes(unpack(content, out=room + SLACK))

    def _unpack_fax(self, content: bytes, rows: int) -> np.ndarray:
        """Decode a fax segment; its black is 1, as the photometric interpretation reckons with.

        Rows that are missing are white to imagecodecs, and filled by what stands behind.
        """
        import imagecodecs

        kinds: dict[int, Callable[..., Any]] = {
            2: imagecodecs.ccittrle_decode,
            3: partial(imagecodecs.ccittfax3_decode, t4options=self.t4_options),
            4: imagecodecs.ccittfax4_decode,
        }
        decode, size = kinds[self.compression], (rows, self.tile[1])
        bits = decode(content, *size)
        if bits.shape != size:
            raise FormatError(f"a strip of it has {bits.shape[0]} rows, not {rows}")
        ends = (content + tail for tail in _fax_tails(self.tile[1]))
        if not all(np.array_equal(decode(end, *size), bits) for end in ends):
            raise FormatError("its data end early")
        return np.packbits(bits.astype(bool), axis=1)

    def _values(self, content: bytes, per_row: int, rows: int) -> np.ndarray:
        """Read numbers; those of 10, 12 and 14 bits stand one after the other within a row."""
        if self.bits % 8 == 0:
            order = ">" if self.predictor == 3 else self.order
            return np.frombuffer(content, f"{order}{self.dtype.str[1:]}")
        import imagecodecs

        bits = imagecodecs.packints_decode(content, self.dtype, self.bits, runlen=per_row)
        return bits[: rows * per_row]

    def _unpredict(self, values: np.ndarray) -> np.ndarray:
        import imagecodecs

        if self.predictor == 3:
            return imagecodecs.floatpred_decode(values, axis=-2).astype(self.dtype, copy=False)
        values = values.astype(self.dtype, copy=False)  # in the order of this machine's bytes
        return imagecodecs.delta_decode(values, axis=-2) if self.predictor == 2 else values

    def _decode_picture(self, content: bytes, index: int, height: int) -> np.ndarray:
        """Decode a segment that is a JPEG or WebP file of its own."""
        from assay.data.images.formats import jpeg, webp

        size = self.tile if self.is_tiled else (height, self.tile[1])
        if self.compression == 50001:
            pixels = webp.decode_still(content, size, self.num_samples)
        else:
            whole = self.tables[:-2] + content[2:] if self.tables else content
            pixels = jpeg.decode_part(whole, size, {2: "RGB", 6: "YCBCR"}.get(self.photometric))
        return pixels if pixels.ndim == 3 else pixels[..., None]


def _fax_tails(width: int) -> list[bytes]:
    """Return codes of rows as the one before, and of rows that begin with black: in two directions, in one, and behind an end of line."""
    black = "00110101010" * width  # runs of no white and one black
    rows = ("1" * width, "00100110101111" * width, black, "000000000001" + black)
    return [int(bits * 8, 2).to_bytes(len(bits), "big") for bits in rows]
