"""Every layout of the TIFF table that tifffile, OpenCV or Pillow writes, value by value."""

import io
from itertools import product

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from assay.data.images.decode import probe, read, read_plane
from assay.data.images.formats.table import CODECS, COLOURS
from assay.errors import ImageError

RNG = np.random.default_rng(3)
HEIGHT, WIDTH = 37, 53
LOSSLESS = ["none", "packbits", "lzw", "deflate", "adobe_deflate", "zstd", "lzma"]
PREDICTED = LOSSLESS[2:]


def noise(dtype, *channels, bits=None):
    top = 2 ** (bits or 8 * np.dtype(dtype).itemsize)
    return RNG.integers(0, top, (HEIGHT, WIDTH, *channels), dtype=dtype)


def written(pixels, *, big=False, order="<", **options):
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as out:
        out.write(pixels, metadata=None, **options)
    return file.getvalue()


def grey(values):
    return np.stack([values] * 3, -1)


@pytest.mark.parametrize("layout", ["strips", "tiles", "planes"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("codec", LOSSLESS)
def test_rgb_of_any_codec(codec, dtype, layout):
    pixels = noise(dtype, 3)
    how = {
        "tiles": {"tile": (16, 32)},
        "strips": {"rowsperstrip": 5},
        "planes": {"rowsperstrip": 9},
    }
    stored = pixels.transpose(2, 0, 1) if layout == "planes" else pixels
    predictors = [None, 2] if codec in PREDICTED else [None]
    planes = "separate" if layout == "planes" else "contig"
    for predictor, order, big in product(predictors, "<>", [False, True]):
        options = {"compression": codec, "predictor": predictor, "planarconfig": planes}
        content = written(stored, photometric="rgb", order=order, big=big, **options, **how[layout])
        np.testing.assert_array_equal(read(content), pixels)
        assert probe(content) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("codec", LOSSLESS)
def test_grey_and_white_is_zero(codec, dtype, order):
    pixels = noise(dtype)
    top = np.iinfo(dtype).max
    for photometric, right in (("minisblack", pixels), ("miniswhite", top - pixels)):
        content = written(pixels, photometric=photometric, compression=codec, order=order)
        np.testing.assert_array_equal(read(content), grey(right))
        for plane in ("level", "index"):
            np.testing.assert_array_equal(read_plane(content, plane), right)


@pytest.mark.parametrize("dtype", ["f4", "u4"])
def test_alpha_of_floats_and_wide_integers_is_refused(dtype):
    """Of 0 and 1 nothing would be left."""
    pixels = np.ones((HEIGHT, WIDTH, 2), dtype)
    how = {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"}
    with pytest.raises(ImageError, match="its samples are 32-bit"):
        read_plane(written(pixels, **how), "alpha")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("predictor", [None, 3])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_floats_are_read_as_they_are(dtype, predictor, channels):
    pixels = (RNG.random((HEIGHT, WIDTH, *channels)) * 3 - 0.5).astype(dtype)
    codec = "deflate" if predictor else "none"
    photometric = "rgb" if channels else "minisblack"
    for order in "<>":
        options = {"compression": codec, "predictor": predictor, "photometric": photometric}
        content = written(pixels, order=order, **options)
        right = pixels.astype(np.float32)
        shown = read(content)
        assert shown.dtype == np.float32
        np.testing.assert_array_equal(shown, right if channels else np.stack([right] * 3, 2))
        assert probe(content) == (HEIGHT, WIDTH)
        for plane in ("level", "index"):
            with pytest.raises(ImageError, match="-bit floats, which"):
                read_plane(content, plane)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_refused(value):
    pixels = np.ones((5, 6), "f4")
    pixels[2, 3] = value
    with pytest.raises(ImageError, match="NaN or infinite"):
        read(written(pixels, photometric="minisblack"))


@pytest.mark.parametrize("dtype", ["u4", "u8"])
def test_large_integers_are_read_as_floats(dtype):
    pixels = noise(dtype) >> 1
    right = pixels.astype(np.float32)
    shown = read(written(pixels, photometric="minisblack"))
    assert shown.dtype == np.float32
    np.testing.assert_array_equal(shown, np.stack([right] * 3, 2))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_by_its_meaning(channels, dtype):
    top = np.iinfo(dtype).max
    alpha = noise(dtype)
    alpha[:5] = top
    alpha[5] = 0
    colours = noise(dtype, channels)
    photometric = "rgb" if channels == 3 else "minisblack"
    levels = alpha if dtype == "u1" else np.rint(alpha / 257)
    for meaning in ("unassalpha", "assocalpha", "unspecified"):
        stored, right = colours, colours
        if meaning == "assocalpha":
            share = alpha[..., None].astype(np.float64) / top
            stored = np.rint(colours * share).astype(dtype)
            with np.errstate(all="ignore"):
                right = np.where(share == 0, 0, np.floor(stored / share + 0.5).clip(0, top))
        content = written(
            np.dstack([stored, alpha]),
            photometric=photometric,
            planarconfig="contig",
            extrasamples=[meaning],
        )
        expected = np.repeat(right, 3, 2) if channels == 1 else right
        # a half may go up or down
        assert np.abs(read(content).astype(float) - expected).max() <= (meaning == "assocalpha")
        if meaning == "unspecified":
            with pytest.raises(ImageError, match="no alpha channel"):
                read_plane(content, "alpha")
        else:
            np.testing.assert_array_equal(read_plane(content, "alpha"), levels)


def test_palettes_of_16_bits_keep_them():
    colours = RNG.integers(0, 65536, (256, 3), dtype=np.uint16)
    index = noise("u1")
    image = read(written(index, photometric="palette", colormap=colours.T))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, colours[index])


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_inks(dtype):
    inks, top = noise(dtype, 4), np.iinfo(dtype).max
    light = (top - inks.astype(np.float64)) / top
    right = light[..., :3] * light[..., 3:] * top
    image = read(written(inks, photometric="separated"))
    assert image.dtype == dtype
    assert np.abs(image - right).max() <= 1


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("how", [{"rowsperstrip": 16}, {"tile": (32, 32)}])
def test_jpeg_strips_and_tiles_are_close_to_what_was_written(how, subsampling):
    smooth = cv2.GaussianBlur(noise("u1", 3), (0, 0), 4)
    options = {"compression": "jpeg", **how}
    args = {"photometric": "rgb", "subsampling": subsampling}
    content = written(smooth, compressionargs={"level": 98}, **args, **options)
    assert np.abs(read(content).astype(int) - smooth).mean() < 2
    options |= {
        "photometric": "minisblack",
        "compressionargs": {"level": 98},
    }  # tifffile changes them
    content = written(smooth[..., 0].copy(), **options)
    assert np.abs(read(content)[..., 1].astype(int) - smooth[..., 0]).mean() < 2
    inverted = with_photometric(content, 0)
    np.testing.assert_array_equal(read(inverted), 255 - read(content))


def with_photometric(content, value):
    """The file with another photometric interpretation."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        place = file.pages.first.tags["PhotometricInterpretation"].valueoffset
    return content[:place] + bytes([value]) + content[place + 1 :]


@pytest.mark.parametrize("channels", [3, 4])
def test_webp_strips(channels):
    pixels = noise("u1", channels)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    options = {"compression": "webp", "compressionargs": {"lossless": True}, "tile": (32, 32)}
    pixels[..., 3:] |= 1  # WebP keeps no colour where nothing is seen
    content = written(pixels, photometric="rgb", **options, **extra)
    np.testing.assert_array_equal(read(content), pixels[..., :3])


def test_opencv_and_pillow_files():
    for pixels in (noise("u2", 3), noise("u1", 3)):
        content = cv2.imencode(".tif", pixels[..., ::-1])[1].tobytes()
        np.testing.assert_array_equal(read(content), pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw", big_tiff=True)
    np.testing.assert_array_equal(read(file.getvalue()), pixels)


# What is not in the table


REFUSED = {
    "lerc": (noise("u1", 3), {"photometric": "rgb", "compression": "lerc"}, r"34887 \(LERC\)"),
    "jpeg 2000": (noise("u1", 3), {"photometric": "rgb", "compression": "jpeg2000"}, "JPEG2000"),
    "jpeg xl": (noise("u1", 3), {"photometric": "rgb", "compression": "jpegxl"}, "JPEGXL"),
    "lab": (noise("u1", 3), {"photometric": "cielab"}, r"\(262\) is 8 \(CIELAB\)"),
    "signed": (noise("u1").view("i1"), {}, r"SampleFormat \(339\) is 2 \(INT\)"),
    "signed 16": (noise("u2").view("i2"), {}, r"SampleFormat \(339\) is 2 \(INT\)"),
    "complex": (noise("u1").astype("c8"), {}, r"SampleFormat \(339\) is 6"),
    "raw": (noise("u2"), {"photometric": "cfa"}, r"\(262\) is 32803 \(CFA\)"),
    "inverted floats": (np.ones((9, 9), "f4"), {"photometric": "miniswhite"}, r"\(258\) is 32"),
    "webp of grey": (noise("u1", 4), {"photometric": "separated", "compression": "webp"}, "262"),
    "five channels": (
        noise("u1", 5),
        {"photometric": "rgb", "extrasamples": ["unspecified"] * 2},
        r"samples per pixel \(277\) are 5",
    ),
    "predictor of run lengths": (
        noise("u1", 3),
        {"photometric": "rgb", "compression": "packbits", "predictor": 2},
        r"Predictor \(317\) is 2 \(HORIZONTAL\) with compression 32773 \(PACKBITS\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layouts_are_refused_by_tag_and_value(name):
    pixels, options, reason = REFUSED[name]
    if name == "webp of grey":
        content = with_photometric(
            written(pixels[..., :3], photometric="rgb", compression="webp"), 5
        )
    else:
        content = written(pixels, **({"photometric": "minisblack"} | options))
    for read_it in (read, probe, lambda each: read_plane(each, "level")):
        with pytest.raises(ImageError, match=reason) as caught:
            read_it(content)
        assert "allowed" in str(caught.value) or "save" in str(caught.value)


def test_the_table_is_tested():
    assert set(CODECS) == {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000, 50001}
    assert set(COLOURS) == {0, 1, 2, 3, 5, 6}
