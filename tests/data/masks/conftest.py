"""Planted dark discs, images of them, and their prepared masks."""

import numpy as np
import pyarrow as pa
import pytest

from assay.data.hashes import content_hashes
from assay.data.images.decode import write_png
from assay.data.manifest import Manifest
from assay.data.masks import prepare as prepare_module


def _grey(plane):
    return np.repeat(plane[:, :, None], 3, axis=2)


def _discs(seed=0, size=160):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    truth = np.zeros((size, size), dtype=bool)
    for cy in range(25, size, 50):
        for cx in range(25, size, 50):
            truth |= (y - cy) ** 2 + (x - cx) ** 2 <= rng.integers(6, 13) ** 2
    plane = np.where(truth, 20, 170) + rng.normal(0, 8, truth.shape)
    plane[0, :2] = 0, 255
    return np.clip(plane, 0, 255).astype(np.uint8), truth


@pytest.fixture(scope="session")
def grey():
    """Repeats a plane in three channels."""
    return _grey


@pytest.fixture(scope="session")
def discs():
    """Draws dark discs on a noisy background, whose range reaches from 0 to 255; also returns where they are."""
    return _discs


@pytest.fixture(scope="session")
def pictures():
    """Writes images in folders of one name each; returns them as (id, path)."""

    def write(root, num=3, size=64):
        images = []
        for i in range(num):
            path = root / f"b{i % 2}" / f"{i // 2}.png"
            write_png(path, _grey(_discs(i, size)[0]))
            images.append((path.relative_to(root).as_posix(), path))
        return images

    return write


@pytest.fixture(scope="session")
def prepared():
    """Prepares masks of images (id, path) as they are now."""

    def run(images, root, config, folder):
        names, paths = [name for name, _ in images], [path for _, path in images]
        contents = content_hashes(paths, folder.parent / "hashes.sqlite")
        columns = {"id": names, "image": [str(path) for path in paths], "content": contents}
        return prepare_module.prepare(Manifest(pa.table(columns)), root, config, folder)

    return run


@pytest.fixture(scope="session")
def prepare(prepared):
    """The same; returns the paths of the masks alone."""
    return lambda *of: prepared(*of).paths
