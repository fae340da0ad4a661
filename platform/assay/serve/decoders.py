"""Images are decoded beside the graphs where that costs a bounded time and memory, else in processes that may die.

JPEG and PNG are: two libraries that have been attacked for decades decode them, in a time by their
pixels, of which their header says the number (see `is_bounded`). What else a request brings may hang a
decoder, fill the memory or crash a library; then its own answer is a refusal, the process is
replaced, and nothing else notices; see `serve.decode_process`.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

from assay.data.images.formats import jpeg, png
from assay.data.images.pyramid import ImagePyramid
from assay.errors import ImageError
from assay.serve.decode_process import Child, DecodeLimits, probe_within, say

MOST_HERE = 40_000_000
"""Pixels up to which a JPEG or a PNG is decoded in this process: .6 GB if they have 16 bits."""


MOST_SCANS = 4
"""Scans of a JPEG up to which it is: each may take as long as decoding all of its pixels. One or three, and that of a preview."""


class Decoders:
    """A pool of threads, each with a process of its own from the first image on that needs one.

    Args:
        num: how many.
        limits: what an image may cost.
    """

    def __init__(self, num: int, limits: DecodeLimits) -> None:
        self.limits = limits
        self.children: dict[int, Child] = {}
        """By thread."""
        self.pool = ThreadPoolExecutor(num, "decode")
        self.is_closed = False

    def close(self) -> None:
        """End the processes, whatever they do; one that is just begun ends itself."""
        self.is_closed = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        for child in list(self.children.values()):
            child.kill()

    def _child(self) -> Child:
        """Return this thread's process; a new one where there is none."""
        name = threading.get_ident()
        if name not in self.children:
            self.children[name] = Child(self.limits)
            if self.is_closed:
                self.children[name].kill()
        return self.children[name]

    def read(self, content: bytes, page: int | None = None) -> ImagePyramid | ImageError:
        """Decode a file, or that page of it, in a thread of the pool; or return why that cannot be done."""
        try:
            is_here = page is None and is_bounded(content)
            if is_here and probe_within(content, page, self.limits.pixels) <= MOST_HERE:
                return ImagePyramid.read(content)
        except Exception as error:  # whatever a decoder raises is an answer
            return ImageError(say(error))
        for _ in range(2):  # a process may be ended by another than its image: by want of memory
            child = self._child()
            try:
                return child.read(content, page)
            except Exception as error:  # it died, hangs, or answers whatever an attacker wants
                child.kill()
                del self.children[threading.get_ident()]
                if isinstance(error, TimeoutError):
                    self.pool.submit(self._child)
                    return ImageError(f"it takes longer than {self.limits.seconds:g} s to decode")
        self.pool.submit(self._child)
        return ImageError("it ends the process that decodes it, so it is damaged")


def is_bounded(content: bytes) -> bool:
    """Tell whether a file is decoded in a time by its pixels alone: a PNG, or a JPEG of few scans."""
    if content.startswith(jpeg.MAGIC):
        return content.count(b"\xff\xda") <= MOST_SCANS
    return content.startswith(png.MAGIC)
