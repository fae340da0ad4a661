"""What an image took is there for the next one: no page of it is made anew."""

import ctypes
import subprocess
import sys

import pytest

ROUNDS, PAGES = 50, 1000

CODE = f"""
import resource, sys
import numpy as np
from assay.serve.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def image():
    rows = [np.ones({PAGES} * 4096 // 4, np.uint8) for _ in range(4)]
    return sum(int(row[0]) for row in rows)
image()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    image()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not of the GNU C library")
def test_memory_of_one_image_is_kept_for_the_next():
    faults = {}
    for way in ("keep", "not"):
        command = [sys.executable, "-c", CODE, way]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[way] = int(told.stdout)
    assert faults["keep"] < ROUNDS
    assert faults["not"] > ROUNDS * PAGES / 4
