"""What a request may bring: how many bytes, of which formats, of how many pixels, in what time.

Everything is checked before an image is decoded: bytes while they arrive, the format by its magic
bytes, the pixels by the header.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt

from assay.config import Settings
from assay.data.images import decode
from assay.errors import AssayError, ImageError

MAGIC = {
    "jpeg": b"\xff\xd8\xff",
    "png": b"\x89PNG\r\n\x1a\n",
    "bmp": b"BM",
    "tiff": b"II*\0",
    "tiff-be": b"MM\0*",
    "bigtiff": b"II+\0",
    "bigtiff-be": b"MM\0+",
    "webp": b"RIFF",
}
"""First bytes of the formats that are read."""


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})"?', re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limits(Settings, section="limits"):
    """What is refused, and when."""

    body_mb: Annotated[float, Gt(0)] = 96.0
    """Largest body (MB); more is answered 413. An uncompressed image of 5100x5100 has 78 MB."""

    image_mp: Annotated[float, Gt(0)] = 120.0
    """Largest image (megapixels), by its header; more is answered 422."""

    views: Annotated[int, Ge(1)] = 16
    """Most images of one request."""

    body_s: Annotated[float, Gt(0)] = 30.0
    """Longest time that a body may take to arrive (s); else 408."""

    answer_s: Annotated[float, Gt(0)] = 60.0
    """Longest time until an answer (s); else 504."""


class RefusedError(AssayError):
    """A request that is not answered: the status, and one sentence for its sender."""

    def __init__(self, status: int, reason: str, retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


async def read_body(receive: Receive, declared: str | None, limits: Limits) -> bytes:
    """Collect a request's body, as long as it stays within the limits.

    Raises:
        RefusedError: it is too long, too slow or cut off.
    """
    most = int(limits.body_mb * 1e6)
    too_long = RefusedError(413, f"The body is larger than {limits.body_mb:g} MB.")
    if declared and declared.isdecimal() and int(declared) > most:
        raise too_long
    parts, size, is_last = [], 0, False
    try:
        async with asyncio.timeout(limits.body_s):
            while not is_last:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(400, "The body ended before it was whole.")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise too_long
                is_last = not message.get("more_body", False)
    except TimeoutError:
        raise RefusedError(408, f"The body took longer than {limits.body_s:g} s.") from None
    return b"".join(parts)


def read_images(body: bytes, content_type: str, limits: Limits) -> list[bytes]:
    """Take the images out of a body: the body itself, or the parts of a multipart form that hold a file.

    Raises:
        RefusedError: there is none, there are too many, or one is of no allowed format or too large.
    """
    images = [body]
    if content_type.strip().lower().startswith("multipart/form-data"):
        images = form_parts(body, content_type)
    if not 1 <= len(images) <= limits.views or not images[0]:
        raise RefusedError(
            422, f"{len(images) if body else 0} images were sent; send 1 to {limits.views}."
        )
    for number, content in enumerate(images, 1):
        _check(content, number, limits)
    return images


def form_parts(body: bytes, content_type: str) -> list[bytes]:
    """Take a multipart form apart, in order (RFC 7578; no nesting, no transfer encoding).

    Raises:
        RefusedError: it is not one.
    """
    named = _BOUNDARY.search(content_type)
    mark = b"\r\n--" + named[1].encode() if named else b""
    _, *parts = (b"\r\n" + body).split(mark) if mark else [b""]
    if not parts or not parts[-1].startswith(b"--"):
        raise RefusedError(422, "The multipart form has no boundary or no end.")
    contents = []
    for part in parts[:-1]:
        _, gap, content = part.partition(b"\r\n\r\n")
        if not gap:
            raise RefusedError(422, "A part of the multipart form has no header.")
        contents.append(content)
    return contents


def _check(content: bytes, number: int, limits: Limits) -> None:
    if not any(content.startswith(magic) for magic in MAGIC.values()):
        raise RefusedError(
            415, f"Image {number} is none of: JPEG, PNG, TIFF, BMP, WebP (by its first bytes)."
        )
    try:
        height, width = decode.probe(content, page=0)
    except ImageError:
        raise RefusedError(422, f"Image {number} has a damaged header.") from None
    if height * width > limits.image_mp * 1e6:
        raise RefusedError(
            422,
            f"Image {number} has {width} x {height} pixels, more than {limits.image_mp:g} megapixels.",
        )
