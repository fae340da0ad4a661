"""Where the time of an update goes, by named parts that do not overlap."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by part; what is timed within a part is taken out of it.

    A device that computes on while Python goes on is waited for where a number is read from it: on
    CUDA the end of what `forward` launched counts as `backward`.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within: list[float] = []
        """Seconds of inner parts, of each part that is open."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time this block as one part."""
        self._within.append(0.0)
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] += spent - self._within.pop()
            if self._within:
                self._within[-1] += spent

    def lap(self) -> dict[str, float]:
        """Return what was added up, and begin anew."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds
