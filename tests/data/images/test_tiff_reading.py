"""Of a tiled TIFF only what is looked at is read and decoded, once, and what is damaged is an image error."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.images import decode, tiff
from assay.data.images.pyramid import ImagePyramid, pyramid
from assay.data.images.store import Store
from assay.errors import ImageError

HEIGHT, WIDTH, TILE = 704, 928, 64
FEW = {"compression": "deflate", "predictor": 2}


def count_decoding(monkeypatch):
    """The list to which the number of each tile goes that is decoded."""
    tiles, decode_tile = [], tiff.TiledPage._decode_tile

    def counting(self, content, tile):
        tiles.append(tile)
        return decode_tile(self, content, tile)

    monkeypatch.setattr(tiff.TiledPage, "_decode_tile", counting)
    return tiles


def test_tiles_are_decoded_one_by_one(monkeypatch, photo, photo_file):
    """So that of large tiles no more is in memory than what is asked for."""
    tiles = count_decoding(monkeypatch)
    (page, *_) = tiff.open_pages(photo_file, 128)
    tiles.clear()
    page.tiles.clear()
    np.testing.assert_array_equal(page, photo)
    assert tiles == list(range(11 * 15))
    assert page.tiles == {}


def test_a_file_that_is_gone_is_an_image_error(tmp_path, photo_file):
    path = tmp_path / "part.tif"
    path.write_bytes(photo_file)
    entry = ImagePyramid.read(path)
    path.unlink()
    with pytest.raises(ImageError, match=r"part\.tif cannot be read: No such file"):
        _ = entry.pixels


def test_tiles_of_no_size_are_left(photo_file):
    with tifffile.TiffFile(io.BytesIO(photo_file)) as file:
        place = file.pages[0].tags["TileWidth"].valueoffset
    content = bytearray(photo_file)
    content[place : place + 2] = bytes(2)
    assert tiff.open_pages(bytes(content), 128) == []
    with pytest.raises(ImageError, match="cannot be read"):
        ImagePyramid.read(bytes(content))


def test_tiles_are_decoded_where_they_are_looked_at_and_once(monkeypatch, photo, photo_file):
    entry = ImagePyramid.read(photo_file)
    page = entry.levels[0]
    before = set(page.tiles)
    assert len(before) < 0.12 * 11 * 15  # samples that were compared with the overview
    decoded = count_decoding(monkeypatch)
    cut = entry.cut((400, 500, 500, 560))
    np.testing.assert_array_equal(cut, photo[500:560, 400:500])
    columns, rows = range(400 // TILE, 499 // TILE + 1), range(500 // TILE, 559 // TILE + 1)
    touched = {15 * row + column for row in rows for column in columns}
    assert set(page.tiles) == touched | before
    assert sorted(decoded) == sorted(touched - before)
    entry.cut((400, 500, 500, 560))
    np.testing.assert_array_equal(entry.pixels, photo)
    entry.cut((400, 500, 500, 560))
    assert sorted([*decoded, *before]) == list(range(11 * 15))


def test_of_a_file_only_what_is_looked_at_is_read(tmp_path, photo, photo_file):
    path = tmp_path / "part.tif"
    path.write_bytes(photo_file)
    entry = ImagePyramid.read(path)
    with tifffile.TiffFile(path) as file:
        offsets, counts = file.pages[0].dataoffsets, file.pages[0].databytecounts
    content = bytearray(photo_file)
    tile = min(set(range(11 * 15)) - set(entry.levels[0].tiles))
    content[offsets[tile] : offsets[tile] + counts[tile]] = b"\xff" * counts[tile]
    path.write_bytes(content)
    row, column = (TILE * own for own in divmod(tile, 15))
    far = entry.cut((column + TILE, row, column + 2 * TILE, row + TILE))
    np.testing.assert_array_equal(far, photo[row : row + TILE, column + TILE : column + 2 * TILE])
    with pytest.raises(ImageError, match=r"part\.tif cannot be read"):
        entry.cut((column, row, column + 9, row + 9))


def test_the_store_holds_what_is_read_from_the_file(tmp_path, photo, photo_file):
    """So a file that is served gives what training saw."""
    path, store = tmp_path / "part.tif", Store(str(tmp_path / "store"))
    path.write_bytes(photo_file)
    assert store.build("ab12", path) == HEIGHT * WIDTH
    stored, direct = store.open("ab12"), ImagePyramid.read(photo_file)
    assert isinstance(direct.levels[1], tiff.TiledPage)
    assert len(stored.levels) == len(direct.levels) == len(pyramid(photo))
    for one, other in zip(stored.levels, direct.levels, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(stored.mean, direct.mean)
    np.testing.assert_array_equal(stored.std, direct.std)
    assert stored.signature == direct.signature


def test_a_damaged_tile_is_not_stored(tmp_path, photo_file):
    with tifffile.TiffFile(io.BytesIO(photo_file)) as file:
        start, num = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    path, store = tmp_path / "part.tif", Store(str(tmp_path / "store"))
    path.write_bytes(photo_file[:start] + b"\xff" * num + photo_file[start + num :])
    assert tiff.open_pages(path, 128)
    with pytest.raises(ImageError, match=r"part\.tif cannot be read"):
        store.build("ab12", path)
    assert store.missing(["ab12"]) == ["ab12"]
    assert not [own for own in Path(store.address).rglob("*") if own.is_file()]


def test_a_chain_of_directories_that_ends_in_itself_is_refused(photo_file):
    content = bytearray(photo_file)
    with tifffile.TiffFile(io.BytesIO(photo_file)) as file:
        last = file.pages[2]
        after = last.offset + 2 + 12 * len(last.tags)
        content[after : after + 4] = int(file.pages[1].offset).to_bytes(4, "little")
    assert tiff.open_pages(bytes(content), 128) == []
    with pytest.raises(ImageError, match="its directories go round in a circle"):
        ImagePyramid.read(bytes(content))


def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded(monkeypatch, photo_file):
    monkeypatch.setattr(decode, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    assert tiff.open_pages(photo_file, 128) == []


@pytest.fixture(scope="module")
def small_file(picture, levels_of, written):
    return written(levels_of(picture(200, 260), 2))


@pytest.fixture(scope="module")
def small_tables(small_file):
    """Where the tables of the small file begin and end."""
    with tifffile.TiffFile(io.BytesIO(small_file)) as file:
        return [(0, 8), *((page.offset, page.offset + 2 + 12 * 20) for page in file.pages)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's of damaged tags
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_damage_is_an_image_error_or_is_not_looked_at(data, small_file, small_tables):
    content = bytearray(small_file)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        tables = st.one_of(*(st.integers(start, stop - 1) for start, stop in small_tables))
        for place in data.draw(st.lists(tables, min_size=1, max_size=6)):
            content[place] = data.draw(st.integers(0, 255))
    try:
        entry = ImagePyramid.read(bytes(content))
        assert entry.cut((0, 0, 50, 50)).shape == (50, 50, 3)
        assert entry.pixels.shape == (*entry.size, 3)
    except ImageError:
        pass


def test_the_brightest_pixel_says_how_deep_a_tiled_image_is_though_no_overview_shows_it(
    tmp_path, levels_of, written, photo
):
    """Specks of 60000 on an image of 12 bits: their means in the smallest level are of 14 bits or fewer."""
    pixels = photo.astype("u2") * 16
    pixels[:2, :2], pixels[300, 400] = 60000, 50000
    (tmp_path / "a.tif").write_bytes(written(levels_of(pixels), **FEW))
    direct = ImagePyramid.read(tmp_path / "a.tif")
    assert isinstance(direct.levels[0], tiff.TiledPage)
    assert direct.levels[-1].max() <= 16383
    store = Store(str(tmp_path / "store"))
    store.build("ab12", tmp_path / "a.tif")
    for entry in (direct, store.open("ab12")):
        assert (entry.range.dtype, entry.range.high) == ("uint16", 60000.0)
        assert entry.scale == 65535
