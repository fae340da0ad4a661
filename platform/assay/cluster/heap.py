"""The memory that a process has freed: kept for what comes next, or given back. Of the GNU C library alone; with another nothing changes."""

import ctypes
import gc

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Names of <malloc.h>."""

KEPT_BYTES, LARGE_BYTES = 64 << 20, 32 << 20
"""What is kept, and from what size on memory comes from the system and goes back to it all the same."""


def keep_freed_memory() -> None:
    """Keep so much of what is freed for the next image.

    Else every page of it is made and cleared anew for each: some hundred page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def keep_all_freed_memory() -> None:
    """Keep what is freed, however large, for the next update; `give_back_freed_memory` gives it back.

    Else what a forward pass leaves for its backward pass, some gigabytes, comes from the system anew in each
    update, page by page, which takes a CPU longer than the arithmetic. Of threads it holds alone where they share
    the process's first arena (MALLOC_ARENA_MAX=1, set as it starts).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Give what is freed back to the system.

    Each thread has an arena, and what was freed stays in it: a process that trains one network after
    another, each in a thread of its own, comes to hold the memory of eight trainings for each of its cores.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
