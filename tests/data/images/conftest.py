"""An image as a camera's, and tiled TIFFs of it with overviews, as tifffile writes them."""

import io

import cv2
import numpy as np
import pytest
import tifffile

HEIGHT, WIDTH, TILE = 704, 928, 64
FEW = {"compression": "deflate", "predictor": 2}


@pytest.fixture(scope="session")
def picture():
    """Draws smooth shapes and grain, as a camera's."""

    def draw(height=HEIGHT, width=WIDTH, seed=0):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((height // 8 + 2, width // 8 + 2, 3)).astype(np.float32)
        shapes = cv2.resize(cv2.GaussianBlur(noise, (0, 0), 2), (width, height))
        grain = rng.normal(0, 4, (height, width, 3))
        return (
            (cv2.normalize(shapes, None, 20, 235, cv2.NORM_MINMAX) + grain)
            .clip(0, 255)
            .astype("u1")
        )

    return draw


@pytest.fixture(scope="session")
def halved():
    """Means of 2 x 2 pixels, rounded, by plain numpy; what is odd at the end is left out."""

    def make(pixels):
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        fours = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, *pixels.shape[2:])
        return np.rint(fours.mean((1, 3))).astype(pixels.dtype)

    return make


@pytest.fixture(scope="session")
def levels_of(halved):
    """An image and its overviews, each half of the one before."""

    def make(pixels, num=3):
        found = [pixels]
        while len(found) < num:
            found.append(halved(found[-1]))
        return found

    return make


@pytest.fixture(scope="session")
def written():
    """Writes a TIFF of these levels; `below`: overviews as SubIFDs."""

    def make(
        levels,
        below=False,
        tile=(TILE, TILE),
        order="<",
        photometric="rgb",
        bigtiff=False,
        **options,
    ):
        file = io.BytesIO()
        with tifffile.TiffWriter(file, byteorder=order, bigtiff=bigtiff) as out:
            common = {"tile": tile, "photometric": photometric, "metadata": None, **options}
            out.write(levels[0], subifds=len(levels) - 1 if below else 0, **common)
            for level in levels[1:]:
                out.write(level, subfiletype=1, **common)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def photo(picture):
    """The image that most files hold."""
    return picture()


@pytest.fixture(scope="session")
def photo_levels(photo, levels_of):
    """The image and its overviews."""
    return levels_of(photo)


@pytest.fixture(scope="session")
def photo_file(photo_levels, written):
    """A file of the image and its overviews."""
    return written(photo_levels, **FEW)
