"""The memory that a process keeps between two images.

glibc gives what is freed at the top of its heap back to the system, and has every page of it made
and cleared anew for the next image: some hundred page faults.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of <malloc.h>."""

KEPT_BYTES, LARGE_BYTES = 64 << 20, 32 << 20
"""What is kept, and from what size on memory comes from the system and goes back to it all the same."""


def keep_freed_memory() -> None:
    """Keep so much of what is freed; where the C library is another one nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
