"""Progress bars of long work."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, label: str) -> "tqdm[Any]":
    """Return a bar on stderr; plain lines every 10 s where stderr is no terminal; nothing without a label."""
    slow = not sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=label,
        leave=False,
        disable=not label,
        mininterval=10 if slow else 0.1,
        dynamic_ncols=not slow,
    )
