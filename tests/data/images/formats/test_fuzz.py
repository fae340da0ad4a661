"""A few hundred mutated files of each format: pixels or an ImageError, and nothing else.

`tests/benchmarks/fuzz.py` tries thousands.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from assay.data.images.decode import probe, read, read_plane
from assay.data.images.pyramid import ImagePyramid
from assay.errors import ImageError

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "mutate.py"
SPEC = importlib.util.spec_from_file_location("mutate", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
mutate = importlib.util.module_from_spec(SPEC)
sys.modules["mutate"] = mutate
SPEC.loader.exec_module(mutate)
FILES = mutate.files()


@pytest.mark.parametrize("form", FILES)
def test_of_mutated_files_come_pixels_or_an_image_error(form, capfd):
    rng = np.random.default_rng(11)
    for number in range(250):
        content = mutate.mutate(rng, FILES[form][number % len(FILES[form])])
        size = None
        try:
            size = probe(content, page=0)
            if size[0] * size[1] > 10**6:
                continue
            pixels = read(content, page=0)
            assert pixels.shape == (*size, 3)
            assert read_plane(content, "level", page=0).shape == size
            assert ImagePyramid.read(content, 0).size == size
        except ImageError:
            continue
    assert capfd.readouterr() == ("", "")
