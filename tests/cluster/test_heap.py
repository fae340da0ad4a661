"""What an image took is there for the next one, and what a training took is not held when it has ended."""

import ctypes
import os
import subprocess
import sys

import pytest

from assay.cluster.session import ONE_ARENA

ROUNDS, PAGES = 50, 1000

CODE = f"""
import resource, sys
import numpy as np
from assay.cluster.heap import keep_freed_memory
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


UPDATES = """
import resource, sys, threading
from assay.cluster.heap import ALL, give_back_freed_memory, keep_freed_memory
sys.argv[1] == "keep" and keep_freed_memory(ALL)
def update():
    return sum(len(bytearray(size << 20)) for size in (100, 40, 5))
def train():
    update()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        update()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10
thread = threading.Thread(target=train)
thread.start() if sys.argv[2] == "thread" else train()
thread.join() if sys.argv[2] == "thread" else None
before = held()
give_back_freed_memory()
print(before - held())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not of the GNU C library")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_memory_of_one_update_is_kept_for_the_next_and_given_back_at_the_end(where):
    """145 MB in pages of 4 KB; of a thread where the session's one arena is set."""
    faults, given = {}, {}
    for way in ("keep", "not"):
        command = [sys.executable, "-c", UPDATES, way, where]
        environment = os.environ | ONE_ARENA
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        faults[way], given[way] = map(int, told.stdout.split())
    assert faults["keep"] < 100 < faults["not"]
    assert given["keep"] > 90 > given["not"]


ARENAS = """
import threading
from assay.cluster.heap import give_back_freed_memory

def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10

def work():
    blocks = [bytearray(50_000) for _ in range(4000)]
    last.append(bytearray(50_000))  # above them, so that the heap cannot shrink

last, before = [], held()
thread = threading.Thread(target=work)
thread.start()
thread.join()
after = held()
give_back_freed_memory()
print(before, after, held())
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not of the GNU C library"
)
def test_memory_of_a_thread_that_has_ended_is_given_back():
    told = subprocess.run(
        [sys.executable, "-c", ARENAS], capture_output=True, text=True, check=True
    )
    before, after, at_last = map(int, told.stdout.split())
    assert after - before > 150  # MB of 200
    assert at_last - before < 20
