"""Images drawn by chance."""

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def smooth():
    """Draws smooth noise."""

    def draw(height, width, sigma=6.0, seed=0):
        noise = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
        blurred = cv2.GaussianBlur(noise, (0, 0), sigma)
        return cv2.normalize(blurred, None, 10, 245, cv2.NORM_MINMAX).astype(np.uint8)

    return draw
