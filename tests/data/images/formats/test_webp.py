"""WebP with and without losses and alpha."""

import cv2
import numpy as np
import pytest

from assay.data.images.decode import read, read_plane
from assay.errors import ImageError

RNG = np.random.default_rng(4)
HEIGHT, WIDTH = 21, 34
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 3)


def test_webp_of_every_kind(saved):
    lossless = saved(RGB, "WEBP", lossless=True)
    np.testing.assert_array_equal(read(lossless), RGB)
    alpha = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.uint8)
    content = saved(np.dstack([RGB, alpha]), "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(read(content), RGB)
    np.testing.assert_array_equal(read_plane(content, "alpha"), alpha[..., 0])
    assert np.abs(read(saved(SMOOTH, "WEBP", quality=98)).astype(int) - SMOOTH).mean() < 4
    with pytest.raises(ImageError, match="no alpha channel"):
        read_plane(lossless, "alpha")
