"""Overviews of a tiled TIFF are taken where they are means of the image, and of nothing else."""

import io

import cv2
import numpy as np
import pytest
import tifffile

from assay.data.images import tiff
from assay.data.images.pyramid import ImagePyramid, pyramid

HEIGHT, WIDTH, TILE = 704, 928, 64


def test_overviews_stand_for_those_of_the_store(photo, photo_file):
    """A grey level at most, so that what was learnt on other files holds."""
    found, plain = ImagePyramid.read(photo_file), ImagePyramid.of(photo)
    for one, other in zip(found.levels, plain.levels, strict=True):
        assert np.abs(np.asarray(one).astype(int) - other).max() <= 2
    np.testing.assert_allclose(found.mean, plain.mean, atol=0.3 / 255)


def test_overviews_of_another_page_are_not_taken(levels_of, photo, photo_levels):
    """A second image that differs where no sample looks: whose an overview in the chain is, nobody says."""
    other = photo.copy()
    other[90:130, 700:740] = 255 - other[90:130, 700:740]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        how = {"tile": (TILE, TILE), "photometric": "rgb", "metadata": None}
        for levels in (photo_levels, levels_of(other)):
            for i, level in enumerate(levels):
                out.write(level, subfiletype=int(i > 0), **how)
    for page, image in enumerate((photo, other)):
        levels = ImagePyramid.read(file.getvalue(), page).levels
        np.testing.assert_array_equal(np.asarray(levels[0]), image)
        mean = cv2.resize(image, levels[1].shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(np.asarray(levels[1]).astype(int) - mean).max() <= 1


def test_overviews_are_taken_beside_a_mask(photo_levels):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        how = {"tile": (TILE, TILE), "metadata": None}
        out.write(photo_levels[0], photometric="rgb", **how)
        out.write(photo_levels[0][..., 0] > 9, photometric="mask", subfiletype=4, **how)
        out.write(photo_levels[1], photometric="rgb", subfiletype=1, **how)
    assert len(tiff.open_pages(file.getvalue(), 128)) == 2


def nearest(pixels):
    return pixels[::2, ::2]


OTHERWISE = {
    "nearest neighbours": lambda photo, other: [photo, nearest(photo)],
    "of another image": lambda photo, other: [photo, other],
    "a third": lambda photo, other: [
        photo,
        cv2.resize(photo, (309, 234), interpolation=cv2.INTER_AREA),
    ],
    "none": lambda photo, other: [photo],
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_overviews_are_not_taken(name, picture, halved, written, photo):
    content = written(OTHERWISE[name](photo, halved(picture(seed=1))))
    assert tiff.open_pages(content, 128) == []
    found = ImagePyramid.read(content)
    for one, other in zip(found.levels, ImagePyramid.of(photo).levels, strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_several_overviews_the_good_ones_before_the_first_bad_are_taken(written, photo_levels):
    content = written([*photo_levels[:2], nearest(photo_levels[1])])
    assert [page.shape[0] for page in tiff.open_pages(content, 128)] == [704, 352]
    np.testing.assert_array_equal(ImagePyramid.read(content).levels[2], pyramid(photo_levels[1])[1])


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_an_overview_of_few_values_is_compared_on_their_own_scale(dtype, halved, written, photo):
    """12 bits in 16 and floats from 0 to 1: of the full scale of 16 bits any two of them look alike."""
    pixels = (photo.astype("f8") * 16 if dtype == "u2" else photo / 255.0).astype(dtype)
    right = written([pixels, halved(pixels) if dtype == "u2" else mean_of(pixels)])
    other = written([pixels, np.ascontiguousarray(pixels[::2, ::2][::-1])])
    assert len(tiff.open_pages(right, 128)) == 2
    assert tiff.open_pages(other, 128) == []


def mean_of(pixels):
    """Means of 2 x 2 floats."""
    fours = pixels.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3)
    return fours.mean((1, 3)).astype(pixels.dtype)
