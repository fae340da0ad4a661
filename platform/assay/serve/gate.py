"""In front of what answers: bounds on a request's head and on the time of every connection.

Ray Serve's proxy, and a replica that is its own ingress, run uvicorn without such bounds. Ray calls
`middlewares` in each of them (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, see `assay.cluster.session`) before
they listen. Plain uvicorn and ASGI otherwise: nothing here knows Ray or what answers.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias
from uuid import uuid4

import uvicorn.config
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_BYTES, HEADERS = 32_768, 100
"""Longest head of a request, and most headers; more is answered 431. One read of the socket may pass
before it is noticed."""


SECONDS = {"new": 10.0, "head": 10.0, "rest": 10.0, "idle": 60.0, "refused": 2.0}
"""How long a connection may be without a first byte, a head take to arrive, a body that nobody waits
for any more go on, a connection be idle between two requests, and a sender take to read that its
head is refused."""


CONTROL = {
    b"x-session-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve-multiplexed-model-id",
}
"""Headers by which a client would steer Ray Serve; taken away."""


REASONS = {
    404: "There is no such path; GET /openapi.json lists them.",
    408: "The request took too long.",
    429: "The server is full; try again in a second.",
    431: f"The head of the request is larger than {HEAD_BYTES} bytes or has more than {HEADERS} headers.",
    501: "A connection does not change its protocol here; send the request without the header Upgrade.",
}


Message: TypeAlias = MutableMapping[str, Any]


Receive: TypeAlias = Callable[[], Awaitable[Message]]


Send: TypeAlias = Callable[[Message], Awaitable[None]]


App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]


PLAIN_ID = "[A-Za-z0-9._-]{1,64}"
"""What the id of a request, or of a print, may be."""


def name_request(headers: Mapping[bytes, bytes]) -> str:
    """Return the id that a request brings, if that is plain, else a new one."""
    name = headers.get(b"x-request-id", b"")
    return name.decode() if re.fullmatch(PLAIN_ID.encode(), name) else uuid4().hex


class JoinedWrites:
    """A transport that sends what is written in one turn of the loop at once.

    uvicorn writes head and body of an answer one after the other. A replica that is killed between
    them leaves a head in HAProxy that cannot be taken back, so the request cannot be sent to another.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.loop = transport, loop
        self.waiting: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        """Leave all else to the transport."""
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        """Send at the end of this turn."""
        if not self.waiting:
            self.loop.call_soon(self.flush)
        self.waiting.append(data)

    def flush(self) -> None:
        """Send what waits."""
        if self.waiting:
            data = b"".join(self.waiting)
            self.waiting.clear()
            self.transport.write(data)

    def write_eof(self) -> None:
        """Send what waits, and say that nothing follows."""
        self.flush()
        self.transport.write_eof()

    def close(self) -> None:
        """Send what waits, then close."""
        self.flush()
        self.transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the bounds of `HEAD_BYTES`, `HEADERS` and `SECONDS`; answers go out whole."""

    in_head = in_message = False
    is_refused = is_over = False
    num_bytes = num_headers = 0
    state = ""
    status = 400
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a first byte."""
        super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Count what of a head arrives, and how long that takes."""
        if self.is_refused or self.is_over:
            return
        was_in_head = self.in_head
        super().data_received(data)
        if was_in_head and self.in_head and not self.transport.is_closing():
            self.num_bytes += len(data)
            if self.num_bytes > HEAD_BYTES:
                self._refuse(431)
        self._watch()

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self.in_head = self.in_message = True
        self.num_bytes = self.num_headers = 0

    def on_url(self, url: bytes) -> None:
        """Count the address."""
        super().on_url(url)
        self._count(len(url), 0)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; what follows the body in its place is counted and left out."""
        self._count(len(name) + len(value), 1)
        if self.in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let it be answered.

        Raises:
            ValueError: the parser would leave out its body, as that of another protocol.
        """
        self.in_head = False
        has_body = {name for name, _ in self.headers} & {b"content-length", b"transfer-encoding"}
        if has_body and self.parser.should_upgrade():
            self.status = 501
            raise ValueError(REASONS[501])
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that nothing of it is to come."""
        self.in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the next."""
        super().on_response_complete()
        self._watch()

    def _should_upgrade(self) -> bool:
        """Take what would be a WebSocket as the request that it begins as: there are none here."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing of it in the log: anyone can ask."""

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, or too large a one, in the form of every refusal."""
        if self.cycle is not None and not self.cycle.response_complete:
            if (
                self.in_head or not self.in_message
            ):  # what follows a whole request, which is answered
                self.cycle.keep_alive = self.in_head = False
                self.is_over = True
                return
            if self.cycle.response_started or self.pipeline:
                self.transport.close()  # an answer is under way, of this request or an earlier one
                return
            self.cycle.disconnected = True  # so that nobody else answers this one
            self.cycle.message_event.set()
        headers, content = form(self.status, REASONS.get(self.status, msg), uuid4().hex)
        lines = [b"%b: %b\r\n" % pair for pair in [*headers, (b"connection", b"close")]]
        self.transport.write(b"".join([STATUS_LINE[self.status], *lines, b"\r\n", content]))
        self.is_refused = True  # closed at once, what it still sends would undo the answer
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _count(self, num_bytes: int, num_headers: int) -> None:
        """Count parts of a head that came in one piece.

        Raises:
            ValueError: they are too many; the parser passes it on as its own error.
        """
        self.num_bytes += num_bytes
        self.num_headers += num_headers
        if self.num_bytes > HEAD_BYTES or self.num_headers > HEADERS:
            self.status = 431
            raise ValueError(REASONS[431])

    def _refuse(self, status: int) -> None:
        self.status = status
        self.send_400_response(REASONS[status])

    def _watch(self) -> None:
        """Start the clock of what is waited for; further bytes of the same do not set it back."""
        state = self._tell_state()
        if state == self.state:
            return
        self.state = state
        if self.timer is not None:
            self.timer.cancel()
        wait = SECONDS.get(state)
        self.timer = self.loop.call_later(wait, self._expire) if wait else None

    def _tell_state(self) -> str:
        if self.is_refused:
            return "refused"
        if self.in_head:
            return "head"
        if self.cycle is None:
            return "new"
        if not self.cycle.response_complete:
            return "answer"  # whose time is the application's own
        return "rest" if self.in_message else "idle"

    def _expire(self) -> None:
        if self.transport.is_closing():
            return
        if self.state == "head":
            self._refuse(408)
        else:
            self.transport.close()


def form(status: int, error: str, name: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of a refusal."""
    content = json.dumps({"error": error, "request": name}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"x-request-id", name.encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    return headers, content


class Gate:
    """Gives every request a plain id, and every fault behind it the form of a refusal.

    Args:
        app: what is behind: Ray Serve's proxy, say, which answers in plain text when a replica dies,
            or not at all, and lists its routes to everyone.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = name_request(dict(scope["headers"]))
        reply = _Reply(send, name)
        kept = [pair for pair in scope["headers"] if pair[0].replace(b"_", b"-") not in _REPLACED]
        scope["headers"] = [*kept, (b"x-request-id", name.encode())]
        if scope["path"] == "/-/routes":
            await reply.refuse(404)
            return
        try:
            await self.app(scope, receive, reply.send)
        except Exception:  # it has its own log; the sender has an answer in any case
            if reply.has_started:
                raise
        if not reply.has_started:
            await reply.refuse(503)


_REPLACED = CONTROL | {b"x-request-id"}


class _Reply:
    """One answer on its way: with one id, and in place of plain text a refusal."""

    def __init__(self, send: Send, name: str) -> None:
        self._send, self.name = send, name
        self.has_started = self.is_replaced = False

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            headers = [pair for pair in message["headers"] if pair[0].lower() != b"x-request-id"]
            kind = dict(headers).get(b"content-type", b"")
            if message["status"] >= 400 and kind.startswith(b"text/plain"):
                self.is_replaced = True
                await self.refuse(503 if message["status"] >= 500 else message["status"])
                return
            self.has_started = True
            message["headers"] = [*headers, (b"x-request-id", self.name.encode())]
        if not self.is_replaced:
            await self._send(message)

    async def refuse(self, status: int) -> None:
        """Answer in the place of what is behind."""
        self.has_started = True
        reason = REASONS.get(status, "The server starts over; try again in a second.")
        headers, content = form(status, reason, self.name)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})


def middlewares() -> list[Middleware]:
    """Bound the connections of the uvicorn that this process will run; return what goes around its application."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
    return [Middleware(Gate)]
