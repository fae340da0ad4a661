"""Tiled TIFFs with overviews, against files that tifffile and imagecodecs wrote."""

import io
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.images import decode, tiff
from assay.data.images.pyramid import ImagePyramid, pyramid
from assay.data.images.store import Store
from assay.errors import ImageError

HEIGHT, WIDTH, TILE = 704, 928, 64
FEW = {"compression": "deflate", "predictor": 2}
LOSSY = {"compression": "jpeg", "compressionargs": {"level": 98}}


def picture(height=HEIGHT, width=WIDTH, seed=0):
    """Smooth shapes and grain, as a camera's."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((height // 8 + 2, width // 8 + 2, 3)).astype(np.float32)
    shapes = cv2.resize(cv2.GaussianBlur(noise, (0, 0), 2), (width, height))
    grain = rng.normal(0, 4, (height, width, 3))
    return (cv2.normalize(shapes, None, 20, 235, cv2.NORM_MINMAX) + grain).clip(0, 255).astype("u1")


def halved(pixels):
    """Means of 2 x 2 pixels, rounded, by plain numpy; what is odd at the end is left out."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    fours = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, *pixels.shape[2:])
    return np.rint(fours.mean((1, 3))).astype(pixels.dtype)


def levels_of(pixels, num=3):
    found = [pixels]
    while len(found) < num:
        found.append(halved(found[-1]))
    return found


def written(
    levels, below=False, tile=(TILE, TILE), order="<", photometric="rgb", bigtiff=False, **options
):
    """A TIFF of these levels; `below`: overviews as SubIFDs."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=bigtiff) as out:
        common = {"tile": tile, "photometric": photometric, "metadata": None, **options}
        out.write(levels[0], subifds=len(levels) - 1 if below else 0, **common)
        for level in levels[1:]:
            out.write(level, subfiletype=1, **common)
    return file.getvalue()


PIXELS = picture()
LEVELS = levels_of(PIXELS)
FILE = written(LEVELS, **FEW)


def deep(pixels):
    return pixels.astype("u2") * 256 + np.random.default_rng(1).integers(0, 256, pixels.shape, "u2")


KINDS = {
    "rgb": (PIXELS, {}),
    "grey": (PIXELS[..., 0], {"photometric": "minisblack"}),
    "inverted grey": (PIXELS[..., 0], {"photometric": "miniswhite"}),
    "rgb 16": (deep(PIXELS), {}),
    "grey 16": (deep(PIXELS[..., 0]), {"photometric": "minisblack"}),
    "cmyk": (np.dstack([255 - PIXELS, PIXELS[..., :1] // 4]), {"photometric": "separated"}),
    "alpha": (np.dstack([PIXELS, 255 - PIXELS[..., :1]]), {"extrasamples": ["unassalpha"]}),
}
CODECS = [{}, {"compression": "lzw"}, FEW, {"compression": "zstd"}, {"compression": "packbits"}]


@pytest.mark.parametrize(
    ("kind", "codec", "below", "order"),
    [
        *product(KINDS, [FEW], [False, True], "<>"),
        *product(["rgb"], CODECS, [False], "<"),
    ],
)
def test_whatever_it_holds_its_parts_are_those_of_the_whole(kind, codec, below, order):
    pixels, options = KINDS[kind]
    content = written(levels_of(pixels), below, order=order, **codec, **options)
    pages = tiff.open_pages(content, 128)
    assert [page.shape[:2] for page in pages] == [(704, 928), (352, 464), (176, 232)]
    whole = decode.read(content)
    assert pages[0].dtype == whole.dtype
    for top, left, below_, right in ((3, 5, 130, 200), (640, 860, 704, 928), (9, 9, 10, 10)):
        np.testing.assert_array_equal(
            pages[0][top:below_, left:right], whole[top:below_, left:right]
        )
    np.testing.assert_array_equal(np.asarray(pages[0]), whole)
    overview = decode.read(written(levels_of(pixels)[1:2], order=order, **codec, **options))
    np.testing.assert_array_equal(np.asarray(pages[1]), overview)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_of_lossy_tiles_too_the_parts_are_those_of_the_whole(subsampling):
    """Colours are upsampled within a tile; smooth enough, overviews are still means."""
    smooth = cv2.GaussianBlur(picture(), (0, 0), 6)
    content = written(levels_of(smooth), **LOSSY, subsampling=subsampling)
    pages = tiff.open_pages(content, 128)
    assert len(pages) == (3 if subsampling == (1, 1) else 2)  # an overview is less smooth
    whole = decode.read(content)
    np.testing.assert_array_equal(pages[0][100:300, 50:333], whole[100:300, 50:333])
    np.testing.assert_array_equal(np.asarray(pages[0]), whole)


def encoded_tiles(content):
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        pairs = zip(page.dataoffsets, page.databytecounts, strict=True)
        return [content[start : start + num] for start, num in pairs]


def without_tables(tile):
    """A JPEG's tables as a file of their own, and the JPEG without them."""
    tables, rest, start = b"", b"", 2
    while tile[start + 1] != 0xDA:
        stop = start + 2 + int.from_bytes(tile[start + 2 : start + 4], "big")
        if tile[start + 1] in (0xDB, 0xC4):
            tables += tile[start:stop]
        else:
            rest += tile[start:stop]
        start = stop
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + tile[start:]


def written_with_tiles(levels, tiles, tables=None):
    """A TIFF whose first level has these JPEG tiles."""
    file, jpeg = io.BytesIO(), {**LOSSY, "subsampling": (2, 2), "photometric": "rgb"}
    with tifffile.TiffWriter(file) as out:
        common = {"tile": (TILE, TILE), "metadata": None, **jpeg}
        shape = {"shape": levels[0].shape, "dtype": levels[0].dtype}
        out.write(iter(tiles), jpegtables=tables, **shape, **common)
        out.write(levels[1], subfiletype=1, **common)
    return file.getvalue()


def test_tables_that_lossy_tiles_share_are_read():
    """As GDAL writes them."""
    levels = levels_of(cv2.GaussianBlur(picture(), (0, 0), 6), 2)
    content = written(levels[:1], **LOSSY, subsampling=(2, 2))
    tables, tiles = zip(*map(without_tables, encoded_tiles(content)), strict=True)
    assert len(set(tables)) == 1
    shared = written_with_tiles(levels, tiles, tables[0])
    whole = decode.read(shared)
    np.testing.assert_array_equal(whole, decode.read(content))
    np.testing.assert_array_equal(np.asarray(tiff.open_pages(shared, 128)[0]), whole)


def test_a_lossy_tile_that_is_larger_than_it_says_is_refused_before_it_is_decoded(monkeypatch):
    levels = levels_of(cv2.GaussianBlur(picture(), (0, 0), 6), 2)
    tiles = encoded_tiles(written(levels[:1], **LOSSY, subsampling=(2, 2)))
    tiles[1] = cv2.imencode(".jpg", np.zeros((4096, 4096, 3), "u1"))[1].tobytes()
    (page, _) = tiff.open_pages(written_with_tiles(levels, tiles), 128)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    with pytest.raises(ImageError, match=r"tile 1 is damaged \(a JPEG in it is of another size"):
        _ = page[:TILE, TILE : 2 * TILE]


LAYOUTS = {
    "minisblack": [(1, ""), (2, "unassalpha"), (2, "assocalpha"), (2, "unspecified")],
    "miniswhite": [(1, "")],
    "separated": [(4, "")],
    "rgb": [(3, ""), (4, "unassalpha"), (4, "assocalpha"), (4, "unspecified")],
}
ANY_CODEC = ["none", "packbits", "lzw", "deflate", "adobe_deflate", "zstd", "lzma"]
SMOOTH = cv2.GaussianBlur(picture(130, 140), (0, 0), 6)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("photometric", "num", "extra"),
    [(key, num, extra) for key, layouts in LAYOUTS.items() for num, extra in layouts],
)
def test_of_any_layout_the_parts_are_those_of_the_whole_or_it_is_decoded_whole(
    photometric, num, extra, bits
):
    pixels = np.dstack([SMOOTH, 200 - SMOOTH[..., :1] // 2])[..., -num:].squeeze()
    pixels = deep(pixels) if bits == 16 else pixels
    options = {"photometric": photometric, "planarconfig": "contig" if pixels.ndim == 3 else None}
    options |= {"extrasamples": [extra]} if extra else {}
    codecs = ["none", "packbits", *(["jpeg"] if (bits, extra) == (8, "") else [])]
    predicted = ["lzw", "deflate", "adobe_deflate", "zstd", "lzma"]
    for codec, predictor, order in [
        *product(codecs, [None], "<>"),
        *product(predicted, [None, 2], "<>"),
    ]:
        how = {"compression": codec, "predictor": predictor, "order": order, **options}
        content = written(levels_of(pixels, 2), **how)
        pages = tiff.open_pages(content, 128)
        try:
            whole = decode.read(content)
        except ImageError:
            assert pages == []
            continue
        # means of what was multiplied by alpha are no means of the colours
        assert pages or extra == "assocalpha"
        np.testing.assert_array_equal(ImagePyramid.read(content).pixels, whole)


OTHER_LAYOUTS = {
    "palette": (SMOOTH[..., 0], {"photometric": "palette", "colormap": np.zeros((3, 256), "u2")}),
    "bilevel": (SMOOTH[..., 0] > 127, {"photometric": "minisblack"}),
}


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_files_of_other_colours_are_decoded_whole(name):
    pixels, options = OTHER_LAYOUTS[name]
    content = written([pixels, pixels[::2, ::2]], **options)
    assert tiff.open_pages(content, 128) == []
    np.testing.assert_array_equal(ImagePyramid.read(content).pixels, decode.read(content))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compression": "jpeg2000"}, r"Compression \(259\) is 34712 \(JPEG2000\)"),
        ({"compression": "packbits", "predictor": 2}, r"Predictor \(317\) is 2 \(HORIZONTAL\)"),
    ],
)
def test_what_is_refused_whole_is_refused_in_part(options, reason):
    """Both ways or none: what is served is what was trained on."""
    content = written(LEVELS, **options)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        np.testing.assert_array_equal(file.pages[0].asarray()[:9, :9].shape, (9, 9, 3))
    assert tiff.open_pages(content, 128) == []
    with pytest.raises(ImageError, match=reason) as whole:
        decode.read(content)
    with pytest.raises(ImageError) as part:
        ImagePyramid.read(content)
    assert str(part.value) == str(whole.value)


def count_decoding(monkeypatch):
    """The list to which the number of each tile goes that is decoded."""
    tiles, decode_tile = [], tiff.TiledPage._decode_tile

    def counting(self, content, tile):
        tiles.append(tile)
        return decode_tile(self, content, tile)

    monkeypatch.setattr(tiff.TiledPage, "_decode_tile", counting)
    return tiles


def test_tiles_are_decoded_one_by_one(monkeypatch):
    """So that of large tiles no more is in memory than what is asked for."""
    tiles = count_decoding(monkeypatch)
    (page, *_) = tiff.open_pages(FILE, 128)
    tiles.clear()
    page.tiles.clear()
    np.testing.assert_array_equal(page, PIXELS)
    assert tiles == list(range(11 * 15))
    assert page.tiles == {}


def test_a_file_that_is_gone_is_an_image_error(tmp_path):
    path = tmp_path / "part.tif"
    path.write_bytes(FILE)
    entry = ImagePyramid.read(path)
    path.unlink()
    with pytest.raises(ImageError, match=r"part\.tif cannot be read: No such file"):
        _ = entry.pixels


def test_tiles_of_no_size_are_left():
    with tifffile.TiffFile(io.BytesIO(FILE)) as file:
        place = file.pages[0].tags["TileWidth"].valueoffset
    content = bytearray(FILE)
    content[place : place + 2] = bytes(2)
    assert tiff.open_pages(bytes(content), 128) == []
    with pytest.raises(ImageError, match="cannot be read"):
        ImagePyramid.read(bytes(content))


def test_tiles_are_decoded_where_they_are_looked_at_and_once(monkeypatch):
    entry = ImagePyramid.read(FILE)
    page = entry.levels[0]
    before = set(page.tiles)
    assert len(before) < 0.12 * 11 * 15  # samples that were compared with the overview
    decoded = count_decoding(monkeypatch)
    cut = entry.cut((400, 500, 500, 560))
    np.testing.assert_array_equal(cut, PIXELS[500:560, 400:500])
    columns, rows = range(400 // TILE, 499 // TILE + 1), range(500 // TILE, 559 // TILE + 1)
    touched = {15 * row + column for row in rows for column in columns}
    assert set(page.tiles) == touched | before
    assert sorted(decoded) == sorted(touched - before)
    entry.cut((400, 500, 500, 560))
    np.testing.assert_array_equal(entry.pixels, PIXELS)
    entry.cut((400, 500, 500, 560))
    assert sorted([*decoded, *before]) == list(range(11 * 15))


def test_of_a_file_only_what_is_looked_at_is_read(tmp_path):
    path = tmp_path / "part.tif"
    path.write_bytes(FILE)
    entry = ImagePyramid.read(path)
    with tifffile.TiffFile(path) as file:
        offsets, counts = file.pages[0].dataoffsets, file.pages[0].databytecounts
    content = bytearray(FILE)
    tile = min(set(range(11 * 15)) - set(entry.levels[0].tiles))
    content[offsets[tile] : offsets[tile] + counts[tile]] = b"\xff" * counts[tile]
    path.write_bytes(content)
    row, column = (TILE * own for own in divmod(tile, 15))
    far = entry.cut((column + TILE, row, column + 2 * TILE, row + TILE))
    np.testing.assert_array_equal(far, PIXELS[row : row + TILE, column + TILE : column + 2 * TILE])
    with pytest.raises(ImageError, match=r"part\.tif cannot be read"):
        entry.cut((column, row, column + 9, row + 9))


def test_the_store_holds_what_is_read_from_the_file(tmp_path):
    """So a file that is served gives what training saw."""
    path, store = tmp_path / "part.tif", Store(str(tmp_path / "store"))
    path.write_bytes(FILE)
    assert store.build("ab12", path) == HEIGHT * WIDTH
    stored, direct = store.open("ab12"), ImagePyramid.read(FILE)
    assert isinstance(direct.levels[1], tiff.TiledPage)
    assert len(stored.levels) == len(direct.levels) == len(pyramid(PIXELS))
    for one, other in zip(stored.levels, direct.levels, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(stored.mean, direct.mean)
    np.testing.assert_array_equal(stored.std, direct.std)
    assert stored.signature == direct.signature


def test_overviews_stand_for_those_of_the_store():
    """A grey level at most, so that what was learnt on other files holds."""
    found, plain = ImagePyramid.read(FILE), ImagePyramid.of(PIXELS)
    for one, other in zip(found.levels, plain.levels, strict=True):
        assert np.abs(np.asarray(one).astype(int) - other).max() <= 2
    np.testing.assert_allclose(found.mean, plain.mean, atol=0.3 / 255)


def test_overviews_of_another_page_are_not_taken():
    """A second image that differs where no sample looks: whose an overview in the chain is, nobody says."""
    other = PIXELS.copy()
    other[90:130, 700:740] = 255 - other[90:130, 700:740]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        how = {"tile": (TILE, TILE), "photometric": "rgb", "metadata": None}
        for levels in (LEVELS, levels_of(other)):
            for i, level in enumerate(levels):
                out.write(level, subfiletype=int(i > 0), **how)
    for page, image in enumerate((PIXELS, other)):
        levels = ImagePyramid.read(file.getvalue(), page).levels
        np.testing.assert_array_equal(np.asarray(levels[0]), image)
        mean = cv2.resize(image, levels[1].shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(np.asarray(levels[1]).astype(int) - mean).max() <= 1


def test_overviews_are_taken_beside_a_mask():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        how = {"tile": (TILE, TILE), "metadata": None}
        out.write(LEVELS[0], photometric="rgb", **how)
        out.write(LEVELS[0][..., 0] > 9, photometric="mask", subfiletype=4, **how)
        out.write(LEVELS[1], photometric="rgb", subfiletype=1, **how)
    assert len(tiff.open_pages(file.getvalue(), 128)) == 2


def nearest(pixels):
    return pixels[::2, ::2]


OTHERWISE = {
    "nearest neighbours": [PIXELS, nearest(PIXELS)],
    "of another image": [PIXELS, halved(picture(seed=1))],
    "a third": [PIXELS, cv2.resize(PIXELS, (309, 234), interpolation=cv2.INTER_AREA)],
    "none": [PIXELS],
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_overviews_are_not_taken(name):
    content = written(OTHERWISE[name])
    assert tiff.open_pages(content, 128) == []
    found = ImagePyramid.read(content)
    for one, other in zip(found.levels, ImagePyramid.of(PIXELS).levels, strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_several_overviews_the_good_ones_before_the_first_bad_are_taken():
    content = written([*LEVELS[:2], nearest(LEVELS[1])])
    assert [page.shape[0] for page in tiff.open_pages(content, 128)] == [704, 352]
    np.testing.assert_array_equal(ImagePyramid.read(content).levels[2], pyramid(LEVELS[1])[1])


@pytest.mark.parametrize(
    "options",
    [
        {"tile": None, "rowsperstrip": 64},
        {"extratags": [(274, "H", 1, 6)]},
    ],
)
def test_files_of_another_layout_are_decoded_whole(options):
    content = written(LEVELS, **options)
    assert tiff.open_pages(content, 128) == []
    turned = "extratags" in options
    expected = np.rot90(PIXELS, -1) if turned else PIXELS
    np.testing.assert_array_equal(ImagePyramid.read(content).pixels, expected)


@pytest.mark.parametrize("size", [(703, 929), (640, 127), (129, 2000)])
def test_odd_sizes(size):
    pixels = picture(*size)
    content = written(levels_of(pixels, 2), tile=(128, 112))
    pages = tiff.open_pages(content, 128)
    assert len(pages) == 2
    np.testing.assert_array_equal(np.asarray(pages[0]), pixels)
    np.testing.assert_array_equal(np.asarray(pages[1]), halved(pixels))


def test_a_damaged_tile_is_not_stored(tmp_path):
    with tifffile.TiffFile(io.BytesIO(FILE)) as file:
        start, num = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    path, store = tmp_path / "part.tif", Store(str(tmp_path / "store"))
    path.write_bytes(FILE[:start] + b"\xff" * num + FILE[start + num :])
    assert tiff.open_pages(path, 128)
    with pytest.raises(ImageError, match=r"part\.tif cannot be read"):
        store.build("ab12", path)
    assert store.missing(["ab12"]) == ["ab12"]
    assert not [own for own in Path(store.address).rglob("*") if own.is_file()]


@pytest.mark.parametrize(
    "options",
    [{"bigtiff": True}, {"bigtiff": True, "order": ">"}, {"compression": "webp"}, {"below": True}],
)
def test_tiles_of_other_containers_are_those_of_the_whole(options):
    lossless = {"compressionargs": {"lossless": True}} if "compression" in options else {}
    content = written(LEVELS, **options, **lossless)
    (page, *_) = tiff.open_pages(content, 128)
    np.testing.assert_array_equal(page, PIXELS)
    np.testing.assert_array_equal(decode.read(content), PIXELS)


def test_tiles_of_separate_planes_are_those_of_the_whole():
    content = written([level.transpose(2, 0, 1) for level in LEVELS], planarconfig="separate")
    (page, *_) = tiff.open_pages(content, 128)
    np.testing.assert_array_equal(page, PIXELS)


def test_a_chain_of_directories_that_ends_in_itself_is_refused():
    content = bytearray(FILE)
    with tifffile.TiffFile(io.BytesIO(FILE)) as file:
        last = file.pages[2]
        after = last.offset + 2 + 12 * len(last.tags)
        content[after : after + 4] = int(file.pages[1].offset).to_bytes(4, "little")
    assert tiff.open_pages(bytes(content), 128) == []
    with pytest.raises(ImageError, match="its directories go round in a circle"):
        ImagePyramid.read(bytes(content))


def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    assert tiff.open_pages(FILE, 128) == []


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's of damaged tags
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_damage_is_an_image_error_or_is_not_looked_at(data):
    content = bytearray(SMALL)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        tables = st.one_of(*(st.integers(start, stop - 1) for start, stop in TABLES))
        for place in data.draw(st.lists(tables, min_size=1, max_size=6)):
            content[place] = data.draw(st.integers(0, 255))
    try:
        entry = ImagePyramid.read(bytes(content))
        assert entry.cut((0, 0, 50, 50)).shape == (50, 50, 3)
        assert entry.pixels.shape == (*entry.size, 3)
    except ImageError:
        pass


SMALL = written(levels_of(picture(200, 260), 2))
with tifffile.TiffFile(io.BytesIO(SMALL)) as _file:
    TABLES = [(0, 8), *((page.offset, page.offset + 2 + 12 * 20) for page in _file.pages)]


def test_the_brightest_pixel_says_how_deep_a_tiled_image_is_though_no_overview_shows_it(tmp_path):
    """Specks of 60000 on an image of 12 bits: their means in the smallest level are of 14 bits or fewer."""
    pixels = PIXELS.astype("u2") * 16
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


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_an_overview_of_few_values_is_compared_on_their_own_scale(dtype):
    """12 bits in 16 and floats from 0 to 1: of the full scale of 16 bits any two of them look alike."""
    pixels = (PIXELS.astype("f8") * 16 if dtype == "u2" else PIXELS / 255.0).astype(dtype)
    right = written([pixels, halved(pixels) if dtype == "u2" else mean_of(pixels)])
    other = written([pixels, np.ascontiguousarray(pixels[::2, ::2][::-1])])
    assert len(tiff.open_pages(right, 128)) == 2
    assert tiff.open_pages(other, 128) == []


def mean_of(pixels):
    """Means of 2 x 2 floats."""
    fours = pixels.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3)
    return fours.mean((1, 3)).astype(pixels.dtype)
