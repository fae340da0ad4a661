"""The memory that a process has freed: kept for what comes next, or given back. Of the GNU C library alone; with another nothing changes."""

import ctypes
import gc

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of <malloc.h>."""

REQUEST_BYTES, IMAGE_BYTES, ALL = 64 << 20, 512 << 20, -1
"""What is kept by a process that answers requests, by one that handles images of 26 megapixels, and by one that trains."""


def keep_freed_memory(most: int = REQUEST_BYTES) -> None:
    """Keep so much (bytes) of what is freed for the next image or update; `give_back_freed_memory` gives it back.

    Else every page of it is made and cleared anew for each: on a virtual machine, where a page takes 2 microseconds,
    a third of the time to store an image, and half of an update, whose forward pass leaves gigabytes to its backward
    pass. What is above 64 MB is kept for threads alone that share the process's first arena (MALLOC_ARENA_MAX=1, set as it starts).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, most)


def give_back_freed_memory() -> None:
    """Give what is freed back to the system.

    Each thread has an arena, and what was freed stays in it: a process that trains one network after
    another, each in a thread of its own, comes to hold the memory of eight trainings for each of its cores.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
