"""The images of requests, from their bytes to what is said of them: decoded side by side, through the graphs together.

A thread of the decoders' pool takes an image the whole way, so that a request changes threads twice, there and
back. Images that are decoded while graphs run wait, and the thread that runs them takes them along next.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from assay.errors import ImageError
from assay.serve.decoders import Decoders
from assay.serve.inspector import Item, OpenBundle

In = TypeVar("In")


Out = TypeVar("Out")


class Batcher(Generic[In, Out]):
    """Runs items together: those that have come while others ran, by the thread that ran them.

    Args:
        run: gives the outcome of each item, in their order; called by one thread at a time.
        most: items at a time.
    """

    def __init__(self, run: Callable[[Sequence[In]], Sequence[Out]], most: int = 1) -> None:
        self.run, self.most = run, most
        self.waiting: deque[tuple[In, Future[Out]]] = deque()
        self.turn = threading.Lock()

    def put(self, item: In, future: Future[Out]) -> None:
        """Run an item, or leave it to the thread that runs others now; its outcome goes to the future, unless that is cancelled before."""
        self.waiting.append((item, future))
        # what another leaves between its last look and the end of its turn is seen here
        while self.waiting and self.turn.acquire(blocking=False):
            try:
                self._run_some()
            finally:
                self.turn.release()

    def _run_some(self) -> None:
        taken: list[tuple[In, Future[Out]]] = []
        while self.waiting and len(taken) < self.most:
            item, future = self.waiting.popleft()
            if future.set_running_or_notify_cancel():
                taken.append((item, future))
        if not taken:
            return
        try:
            outcomes = self.run([item for item, _ in taken])
        except Exception as error:  # whatever it is, each hears of it, and the thread goes on
            for _, future in taken:
                future.set_exception(error)
            return
        for (_, future), outcome in zip(taken, outcomes, strict=True):
            future.set_result(outcome)


class Looker:
    """Looks at images.

    Args:
        decoders: what decodes them.
        inspect: what answers for decoded ones together, such as `inspector.inspect`.
        most: images at a time.
    """

    def __init__(
        self, decoders: Decoders, inspect: Callable[[Sequence[Item]], list[Any]], most: int = 1
    ) -> None:
        self.decoders = decoders
        self.batcher: Batcher[Item, Any] = Batcher(inspect, most)

    async def look(self, opened: OpenBundle, content: bytes) -> Any:
        """Return what a bundle says of an image; see `inspector.inspect`.

        Raises:
            ImageError: it cannot be decoded, or is none for this bundle.
        """
        future: Future[Any] = Future()
        self.decoders.pool.submit(self._look, opened, content, future)
        return await asyncio.wrap_future(future)

    def _look(self, opened: OpenBundle, content: bytes, future: "Future[Any]") -> None:
        try:
            entry = self.decoders.read(content, opened.bundle.card.page)
            if isinstance(entry, ImageError):
                raise entry
            item = opened, opened.bundle.by_white(entry)
        except Exception as error:  # whatever a decoder raises is an answer
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        self.batcher.put(item, future)
