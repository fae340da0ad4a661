"""Notices that a machine is about to be taken away: SIGTERM, as clouds and schedulers send it.

A loop that gets one saves a checkpoint between two updates; see `Loop`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a program that SIGTERM ended, as shells give it."""

LOOK_S = 2.0
"""Seconds between looks for a notice."""


@dataclass(frozen=True)
class Notice:
    """Where a loop learns of a notice."""

    is_given: Callable[[], bool] = lambda: False
    """Called by all workers at the same update."""
    ends: bool = False
    """Whether training ends then; if not, it goes on until it is ended."""


NO_NOTICE = Notice()


@contextmanager
def listening() -> Iterator[Notice]:
    """Take SIGTERM for a notice in this block, which then ends by it; beside the main thread there is none.

    Raises:
        SystemExit: at the end of the block, where a notice came that no loop has seen.
    """
    if threading.current_thread() is not threading.main_thread():
        yield NO_NOTICE
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield Notice(received.is_set, ends=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    if received.is_set():
        raise SystemExit(TERMINATED)
