import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from assay.data.masks.header import Stand, read_orientation, read_stand, turn
from assay.errors import MaskError

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def save(path, orientation, pixels=PIXELS):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_orientation_is_read_and_undone_as_pillow_does(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    save(path, orientation)
    assert read_orientation(path) == orientation
    save(tmp_path / "b.png", orientation)
    with Image.open(tmp_path / "b.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(turn(PIXELS, orientation), upright)
    assert read_stand(path, None) == Stand(upright.shape, orientation)
    assert read_stand(path, None).stored == PIXELS.shape


def test_a_file_without_exif_stands_upright(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.bmp")
    assert read_orientation(tmp_path / "a.bmp") == 1


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"II*\0\0\0", b"text"])
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MaskError, match=r"a\.png"):
        read_orientation(tmp_path / "a.png")


@pytest.mark.parametrize("options", [{"bigtiff": True}, {"dtype": np.float32}, {"samples": 2}])
def test_tiffs_that_pillow_does_not_open_have_an_orientation_too(tmp_path, options):
    pixels = np.zeros((4, 6, options.get("samples", 1)), options.get("dtype", np.uint16))
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        bigtiff=options.get("bigtiff", False),
        photometric="minisblack",
        planarconfig="contig" if "samples" in options else None,
        extratags=[(274, 3, 1, 6, True)],
    )
    assert read_orientation(tmp_path / "a.tif") == 6


def test_each_page_of_an_image_stands_by_its_own_orientation(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for orientation in (1, 6):
            tag = (274, 3, 1, orientation, True)
            file.write(PIXELS, photometric="minisblack", metadata=None, extratags=[tag])
    assert read_stand(tmp_path / "a.tif", 0) == Stand(PIXELS.shape, 1)
    assert read_stand(tmp_path / "a.tif", 1) == Stand(PIXELS.shape[::-1], 6)
