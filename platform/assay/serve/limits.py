"""What a request may bring: how many bytes, of which formats, of how many pixels, in what time.

Bytes are counted while they arrive, the format is told by its first bytes; pixels by the header, in
the process that decodes (see `serve.decode_process`).
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from typing import Annotated, Any

from annotated_types import Interval

from assay.config import Settings
from assay.errors import AssayError, ConfigError

MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"RIFF",
)
"""First bytes of the formats that are read: JPEG, PNG, BMP, TIFF, BigTIFF, WebP."""


OTHERS = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "ZIP",
    b"%PDF": "PDF",
    b"GIF8": "GIF",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"{": "JSON",
    b"data:": "a data URI",
    b"iVBORw0KGgo": "a PNG in base64",
    b"/9j/": "a JPEG in base64",
    b"<": "HTML or XML",
}
"""First bytes of what is sent by mistake."""


MOST_PARTS = 256
"""Parts of a multipart form, fields and images."""


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


MOST_HEAD = 8192
"""Longest head of a part (bytes)."""


PARAMETERS = ("model", "mask", "explain", "print", "time")
"""Of the address of a task; a form has none."""


MOST_BOUNDARY = 70
"""Longest boundary (RFC 2046, section 5.1.1)."""


PLAIN_CODES = ("", "binary", "8bit", "7bit")
"""Transfer encodings that change nothing."""


@dataclass(frozen=True, kw_only=True)
class Limits(Settings, section="limits"):
    """What is refused, and when."""

    body_mb: Annotated[float, Interval(gt=0, le=100_000)] = 96.0
    """Largest body (MB); more is answered 413. An uncompressed image of 5100x5100 has 78 MB."""

    held_mb: Annotated[float, Interval(gt=0, le=10_000_000)] = 1000.0
    """Bodies of all requests under way together (MB); more are answered 429."""

    image_mp: Annotated[float, Interval(gt=0, le=100_000)] = 120.0
    """Largest image (megapixels), by its header; more is answered 422."""

    views: Annotated[int, Interval(ge=1, le=10_000)] = 16
    """Most images of one request."""

    body_s: Annotated[float, Interval(gt=0, le=86_400)] = 30.0
    """Longest time that a body may take to arrive (s); else 408."""

    decode_s: Annotated[float, Interval(gt=0, le=86_400)] = 20.0
    """Longest time that an image may take to decode (s); else 422."""

    rate: Annotated[float, Interval(ge=0, le=1_000_000)] = 0.0
    """Most requests of one token per second at each replica; more are answered 429. 0: no limit."""

    answer_s: Annotated[float, Interval(gt=0, le=86_400)] = 60.0
    """Longest time until an answer (s); else 504."""

    prints: Annotated[int, Interval(ge=1, le=1_000_000)] = 1000
    """Most prints whose alarms are held between two frames; the longest unused goes."""

    print_s: Annotated[float, Interval(gt=0, le=604_800)] = 3600.0
    """Longest time between two frames of a print (s); what comes later begins it anew."""

    def __post_init__(self) -> None:
        """Refuse bodies that would never be let in."""
        super().__post_init__()
        if self.held_mb < self.body_mb:
            raise ConfigError(
                f"limits.held-mb is {self.held_mb:g} and limits.body-mb {self.body_mb:g}, so that some bodies would be answered 429 for ever; give no less for the first."
            )


class RefusedError(AssayError):
    """A request that is not answered: the status, and one sentence for its sender."""

    def __init__(self, status: int, reason: str, retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


class Room:
    """Memory for the bodies of all requests under way.

    Args:
        most: bytes.
    """

    def __init__(self, most: float) -> None:
        self.most, self.num = most, 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield what takes so many bytes of it, which are given back at the end of the block."""
        mine = 0

        def take(num: int) -> None:
            nonlocal mine
            if self.num + num > self.most:
                raise RefusedError(429, "The server holds too many images; try again.", 1)
            self.num, mine = self.num + num, mine + num

        try:
            yield take
        finally:
            self.num -= mine


async def read_body(
    receive: Receive,
    declared: str | None,
    most: int,
    seconds: float,
    take: Callable[[int], None] = lambda num: None,
) -> bytes:
    """Collect a request's body.

    Args:
        receive: gives the next piece.
        declared: the header content-length.
        most: longest body (bytes).
        seconds: longest time.
        take: is told of every piece's length, and may refuse it.

    Raises:
        RefusedError: it is too long, too slow or cut off.
    """
    bound = f"{most / 1e6:g} MB" if most >= 10_000 else f"{most} bytes"
    too_long = RefusedError(413, f"The body is larger than {bound}.")
    if declared and declared.isdecimal() and int(declared[:20]) > most:
        raise too_long
    parts, size, is_last = [], 0, False
    try:
        async with asyncio.timeout(seconds):
            while not is_last:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(400, "The body ended before it was whole.")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise too_long
                take(len(parts[-1]))
                is_last = not message.get("more_body", False)
    except TimeoutError:
        raise RefusedError(408, f"The body took longer than {seconds:g} s.") from None
    return b"".join(parts)


def refuse_encoding(encoding: str) -> None:
    """Refuse a body that is compressed on its way.

    Raises:
        RefusedError: it is.
    """
    names = [name.strip() for name in encoding.split(",")]
    if any(name.lower() not in ("", "identity") for name in names):
        shown = re.sub(r"[^\w, -]", "?", encoding)[:40]
        raise RefusedError(
            415, f"The body has the content encoding {shown}; send images as they are, without one."
        )


def read_images(body: bytes, content_type: str, limits: Limits) -> list[bytes]:
    """Take the images out of a body: the body itself, or the parts of a multipart form that hold a file.

    Raises:
        RefusedError: there is none, there are too many, or one is of no allowed format.
    """
    images = [body] if body else []
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = form_parts(body, content_type)
    elif kind.startswith("multipart/"):
        raise RefusedError(
            415, "The body is multipart of another kind; send an image, or a form (form-data)."
        )
    if not images:
        raise RefusedError(422, f"There is no image; send 1 to {limits.views}.")
    if len(images) > limits.views:
        raise RefusedError(422, f"{len(images)} images were sent; send 1 to {limits.views}.")
    for number, content in enumerate(images, 1):
        _check(content, number)
    return images


def form_parts(body: bytes, content_type: str) -> list[bytes]:
    """Take the files out of a multipart form, in order (RFC 7578; no nesting).

    A file is a part with a file name that is not empty, or whose content type is an image's.

    Raises:
        RefusedError: it is no such form, has fields and no file, or a field that is a parameter of the address.
    """
    boundary = _read_head(b"content-type: " + content_type.encode("latin-1", "replace"))[0]
    if not 1 <= len(boundary) <= MOST_BOUNDARY:
        raise RefusedError(422, "The multipart form has no boundary.")
    contents: list[bytes] = []
    num_fields = 0
    for part in _cut(b"\r\n" + body, b"\r\n--" + boundary):
        head, gap, content = part.partition(b"\r\n\r\n")
        if not gap or len(head) > MOST_HEAD:
            raise RefusedError(422, "A part of the multipart form has no header, or a long one.")
        _, is_file, code, name = _read_head(head.strip())
        if is_file and code not in PLAIN_CODES:
            raise RefusedError(415, f"A part has the transfer encoding {code}; send it as it is.")
        if name in PARAMETERS:  # of a file too: a mask beside its image is no view of a part
            raise RefusedError(
                422,
                f"The form has a field {name!r}, which is a parameter of the address; ask for ?{name}=VALUE, and call images image.",
            )
        if is_file:
            contents.append(content)
        num_fields += not is_file
    if num_fields and not contents:
        raise RefusedError(
            422,
            "There is no image: no part of the form has a file name, or the content type of an image.",
        )
    return contents


def _read_head(head: bytes) -> tuple[bytes, bool, str, str]:
    """Read a head's boundary, whether it is a file's, its transfer encoding, and the name of its field."""
    message = message_from_bytes(head[:MOST_HEAD])
    try:
        boundary = (message.get_boundary() or "").encode("latin-1", "replace")
        file = message.get_filename() or ""
        name = str(message.get_param("name", "", "content-disposition"))
    except Exception:  # parameters that nobody writes; the parser raises what it likes
        return b"", False, "", ""
    is_file = bool(file.strip()) or message.get_content_maintype() == "image"
    code = re.sub(r"[^\w-]", "", str(message["content-transfer-encoding"] or ""))[:32].lower()
    return boundary, is_file, code, name


def _cut(body: bytes, mark: bytes) -> Iterator[bytes]:
    """Yield what stands between marks, each of which ends its line, up to the last.

    Raises:
        RefusedError: there is no last mark, or there are too many.
    """
    marks = re.finditer(re.escape(mark) + rb"(--|[ \t]*(?=\r\n))", body)
    start = -1
    for number, line in enumerate(marks):
        if start >= 0:
            yield body[start : line.start()]
        if line[1] == b"--":
            return
        if number == MOST_PARTS:
            raise RefusedError(422, f"The multipart form has more than {MOST_PARTS} parts.")
        start = line.end()
    raise RefusedError(422, "The multipart form has no end.")


def _check(content: bytes, number: int) -> None:
    if not content:
        raise RefusedError(422, f"Image {number} is empty; there is no image in it.")
    if not content.startswith(MAGIC):
        kinds = [kind for magic, kind in OTHERS.items() if content.startswith(magic)]
        told = f"by its first bytes it is {kinds[0]}" if kinds else "by its first bytes"
        raise RefusedError(415, f"Image {number} is none of: JPEG, PNG, TIFF, BMP, WebP ({told}).")
