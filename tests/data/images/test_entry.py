import json
import struct

import numpy as np
import pytest
import xxhash

from assay.data.images.affine import crop_matrix
from assay.data.images.entry import MAGIC, open_entry, write_entry
from assay.data.images.pyramid import ImagePyramid, pyramid_bytes
from assay.data.images.stored_level import TILE, StoredLevel
from assay.errors import StoreError

CONTENT = "ab12" * 8
RNG = np.random.default_rng(5)
NOISE = RNG.integers(0, 256, (150, 210, 3), dtype=np.uint8)
NOISE16 = RNG.integers(0, 65536, (150, 210, 3), dtype=np.uint16)
LARGE = RNG.integers(0, 256, (600, 700, 3), dtype=np.uint8)
FLOATS = RNG.random((150, 210, 3), dtype=np.float32)


def stored(folder, pixels):
    path = folder / f"{CONTENT}.pixels"
    write_entry(path, ImagePyramid.of(pixels))
    return path


def header_of(whole):
    """Return the header's bytes, and where the pixels begin."""
    begin = 20 + struct.unpack("<I", whole[8:12])[0]
    return whole[20:begin], begin


def with_header(header, pixels):
    digest = xxhash.xxh3_64_intdigest(header)
    return MAGIC + struct.pack("<IQ", len(header), digest) + header + pixels


@pytest.mark.parametrize("pixels", [NOISE, NOISE16, FLOATS, LARGE, NOISE[:3, :5], NOISE16[:1, :1]])
def test_an_entry_holds_every_pixel(tmp_path, pixels):
    entry = open_entry(stored(tmp_path, pixels))
    assert entry.levels[0].dtype == pixels.dtype
    assert entry.size == pixels.shape[:2]
    np.testing.assert_array_equal(entry.levels[0], pixels)
    fresh = ImagePyramid.of(pixels)
    assert len(entry.levels) == len(fresh.levels)
    for level, expected in zip(entry.levels, fresh.levels, strict=True):
        np.testing.assert_array_equal(level, expected)
    np.testing.assert_array_equal(entry.mean_value, fresh.mean_value)
    np.testing.assert_array_equal(entry.std_value, fresh.std_value)
    assert (entry.signature, entry.range) == (fresh.signature, fresh.range)


def test_an_entry_is_mapped_read_only(tmp_path):
    path = stored(tmp_path, NOISE)
    assert path.stat().st_size <= pyramid_bytes(*NOISE.shape[:2])
    level = open_entry(path).levels[0]
    assert isinstance(level, StoredLevel)
    assert isinstance(level.mapped, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        level[:2, :2][0] = 0


def test_a_missing_entry_is_refused(tmp_path):
    with pytest.raises(StoreError, match=CONTENT):
        open_entry(tmp_path / f"{CONTENT}.pixels")


@pytest.mark.parametrize("pixels", [NOISE, NOISE16])
def test_an_entry_cut_short_anywhere_is_refused(tmp_path, pixels):
    path = stored(tmp_path, pixels)
    whole = path.read_bytes()
    _, begin = header_of(whole)
    for length in (
        0,
        3,
        8,
        10,
        12,
        20,
        begin // 2,
        begin,
        begin + 1,
        len(whole) // 2,
        len(whole) - 1,
    ):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match=CONTENT):
            open_entry(path)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfe\xfd\xfc",
        b"[1, 2]",
        b"{}",
        b'{"dtype": "uint99", "levels": []}',
        b'{"dtype": "uint8", "levels": [{"height": 4}]}',
        b'{"dtype": "uint8", "levels": [{"height": 1, "width": "x", "offset": 0}]}',
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header):
    path = tmp_path / f"{CONTENT}.pixels"
    path.write_bytes(with_header(header, bytes(100)))
    with pytest.raises(StoreError, match=CONTENT):
        open_entry(path)


@pytest.mark.parametrize("field", ["low", "high", "mean", "std", "signature", "levels", "dtype"])
def test_a_header_without_a_field_is_refused(tmp_path, field):
    path = stored(tmp_path, NOISE)
    whole = path.read_bytes()
    head, begin = header_of(whole)
    header = json.loads(head)
    del header[field]
    path.write_bytes(with_header(json.dumps(header).encode(), whole[begin:]))
    with pytest.raises(StoreError, match="delete it and run again"):
        open_entry(path)


@pytest.mark.parametrize("start", [b"ASSAYPX9", b"\x89PNG\r\n\x1a\n"])
def test_a_foreign_entry_is_refused(tmp_path, start):
    path = stored(tmp_path, NOISE)
    path.write_bytes(start + path.read_bytes()[8:])
    with pytest.raises(StoreError, match="no entry of this store's version"):
        open_entry(path)


def test_a_header_that_changed_is_refused(tmp_path):
    path = stored(tmp_path, NOISE)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"mean": [1', b'"mean": [2', 1))
    assert path.read_bytes() != whole
    with pytest.raises(StoreError, match="header is not what was written"):
        open_entry(path)


@pytest.mark.parametrize("pixels", [LARGE, LARGE.astype(np.uint16) * 257, FLOATS])
def test_each_changed_byte_is_seen_where_it_is_looked_at_and_only_there(tmp_path, pixels):
    path = stored(tmp_path, pixels)
    whole = bytearray(path.read_bytes())
    _, begin = header_of(whole)
    row_bytes = pixels[0].nbytes
    for row, column in RNG.integers(0, pixels.shape[:2], (20, 2)).tolist():
        place = begin + row * row_bytes + column * pixels[0, 0].nbytes + int(RNG.integers(3))
        whole[place] ^= 1 << int(RNG.integers(8))
        path.write_bytes(whole)
        level = open_entry(path).levels[0]
        with pytest.raises(StoreError, match="damaged: pixels from row"):
            level[row : row + 1, column : column + 1]
        with pytest.raises(StoreError, match="damaged: pixels from row"):
            np.asarray(level)
        y, x = row // TILE * TILE, column // TILE * TILE
        for box in ((slice(0, y), slice(None)), (slice(y + TILE, None), slice(None))):
            np.testing.assert_array_equal(level[box], pixels[box])
        for box in ((slice(None), slice(0, x)), (slice(None), slice(x + TILE, None))):
            np.testing.assert_array_equal(level[box], pixels[box])
        whole = bytearray(stored(tmp_path, pixels).read_bytes())


def test_what_was_looked_at_stays_looked_at(tmp_path):
    entry = open_entry(stored(tmp_path, LARGE))
    matrix = crop_matrix(np.eye(2, 3), 10, 300, 1.0)
    entry.view(matrix, 100, 250)
    assert entry.levels[0].checked.tolist() == [[False] * 3, [True, True, False], [False] * 3]
    assert not entry.levels[1].checked.any()
    np.testing.assert_array_equal(np.asarray(entry.levels[0]), LARGE)
    assert entry.levels[0].checked.all()
