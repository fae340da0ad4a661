"""Image files by Pillow, and rows of a few bits packed by hand."""

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def saved():
    """Writes an image, or pixels, in a form of Pillow's, and returns the file."""

    def write(image, form, **options):
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    return write


@pytest.fixture(scope="session")
def pack():
    """Packs rows of numbers of so many bits into bytes."""

    def into_bytes(values, bits):
        digits = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        return np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1)

    return into_bytes
