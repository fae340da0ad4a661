"""Of tiled TIFFs of any layout the parts are those of the whole, against files that tifffile and imagecodecs wrote."""

import io
from itertools import product

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile

from assay.data.images import decode, tiff
from assay.data.images.pyramid import ImagePyramid
from assay.errors import ImageError

TILE = 64
FEW = {"compression": "deflate", "predictor": 2}
LOSSY = {"compression": "jpeg", "compressionargs": {"level": 98}}


def deep(pixels):
    return pixels.astype("u2") * 256 + np.random.default_rng(1).integers(0, 256, pixels.shape, "u2")


KINDS = {
    "rgb": (lambda photo: photo, {}),
    "grey": (lambda photo: photo[..., 0], {"photometric": "minisblack"}),
    "inverted grey": (lambda photo: photo[..., 0], {"photometric": "miniswhite"}),
    "rgb 16": (deep, {}),
    "grey 16": (lambda photo: deep(photo[..., 0]), {"photometric": "minisblack"}),
    "cmyk": (
        lambda photo: np.dstack([255 - photo, photo[..., :1] // 4]),
        {"photometric": "separated"},
    ),
    "alpha": (
        lambda photo: np.dstack([photo, 255 - photo[..., :1]]),
        {"extrasamples": ["unassalpha"]},
    ),
}
CODECS = [{}, {"compression": "lzw"}, FEW, {"compression": "zstd"}, {"compression": "packbits"}]


@pytest.mark.parametrize(
    ("kind", "codec", "below", "order"),
    [
        *product(KINDS, [FEW], [False, True], "<>"),
        *product(["rgb"], CODECS, [False], "<"),
    ],
)
def test_whatever_it_holds_its_parts_are_those_of_the_whole(
    kind, codec, below, order, levels_of, written, photo
):
    view, options = KINDS[kind]
    pixels = view(photo)
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
def test_of_lossy_tiles_too_the_parts_are_those_of_the_whole(
    subsampling, picture, levels_of, written
):
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


def test_tables_that_lossy_tiles_share_are_read(picture, levels_of, written):
    """As GDAL writes them."""
    levels = levels_of(cv2.GaussianBlur(picture(), (0, 0), 6), 2)
    content = written(levels[:1], **LOSSY, subsampling=(2, 2))
    tables, tiles = zip(*map(without_tables, encoded_tiles(content)), strict=True)
    assert len(set(tables)) == 1
    shared = written_with_tiles(levels, tiles, tables[0])
    whole = decode.read(shared)
    np.testing.assert_array_equal(whole, decode.read(content))
    np.testing.assert_array_equal(np.asarray(tiff.open_pages(shared, 128)[0]), whole)


def test_a_lossy_tile_that_is_larger_than_it_says_is_refused_before_it_is_decoded(
    monkeypatch, picture, levels_of, written
):
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


@pytest.fixture(scope="module")
def smooth(picture):
    return cv2.GaussianBlur(picture(130, 140), (0, 0), 6)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("photometric", "num", "extra"),
    [(key, num, extra) for key, layouts in LAYOUTS.items() for num, extra in layouts],
)
def test_of_any_layout_the_parts_are_those_of_the_whole_or_it_is_decoded_whole(
    photometric, num, extra, bits, levels_of, written, smooth
):
    pixels = np.dstack([smooth, 200 - smooth[..., :1] // 2])[..., -num:].squeeze()
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
    "palette": (
        lambda smooth: smooth[..., 0],
        {"photometric": "palette", "colormap": np.zeros((3, 256), "u2")},
    ),
    "bilevel": (lambda smooth: smooth[..., 0] > 127, {"photometric": "minisblack"}),
}


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_files_of_other_colours_are_decoded_whole(name, written, smooth):
    view, options = OTHER_LAYOUTS[name]
    pixels = view(smooth)
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
def test_what_is_refused_whole_is_refused_in_part(options, reason, written, photo_levels):
    """Both ways or none: what is served is what was trained on."""
    content = written(photo_levels, **options)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        np.testing.assert_array_equal(file.pages[0].asarray()[:9, :9].shape, (9, 9, 3))
    assert tiff.open_pages(content, 128) == []
    with pytest.raises(ImageError, match=reason) as whole:
        decode.read(content)
    with pytest.raises(ImageError) as part:
        ImagePyramid.read(content)
    assert str(part.value) == str(whole.value)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": None, "rowsperstrip": 64},
        {"extratags": [(274, "H", 1, 6)]},
    ],
)
def test_files_of_another_layout_are_decoded_whole(options, written, photo, photo_levels):
    content = written(photo_levels, **options)
    assert tiff.open_pages(content, 128) == []
    turned = "extratags" in options
    expected = np.rot90(photo, -1) if turned else photo
    np.testing.assert_array_equal(ImagePyramid.read(content).pixels, expected)


@pytest.mark.parametrize("size", [(703, 929), (640, 127), (129, 2000)])
def test_odd_sizes(size, picture, halved, levels_of, written):
    pixels = picture(*size)
    content = written(levels_of(pixels, 2), tile=(128, 112))
    pages = tiff.open_pages(content, 128)
    assert len(pages) == 2
    np.testing.assert_array_equal(np.asarray(pages[0]), pixels)
    np.testing.assert_array_equal(np.asarray(pages[1]), halved(pixels))


@pytest.mark.parametrize(
    "options",
    [{"bigtiff": True}, {"bigtiff": True, "order": ">"}, {"compression": "webp"}, {"below": True}],
)
def test_tiles_of_other_containers_are_those_of_the_whole(options, written, photo, photo_levels):
    lossless = {"compressionargs": {"lossless": True}} if "compression" in options else {}
    content = written(photo_levels, **options, **lossless)
    (page, *_) = tiff.open_pages(content, 128)
    np.testing.assert_array_equal(page, photo)
    np.testing.assert_array_equal(decode.read(content), photo)


def test_tiles_of_separate_planes_are_those_of_the_whole(written, photo, photo_levels):
    content = written([level.transpose(2, 0, 1) for level in photo_levels], planarconfig="separate")
    (page, *_) = tiff.open_pages(content, 128)
    np.testing.assert_array_equal(page, photo)
