"""Bounds on heads and connections, over sockets, against uvicorn in this process."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
import uvicorn.config

from assay.serve import gate
from assay.serve.gate import HEAD_BYTES, HEADERS, BoundedProtocol, Gate


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Tell the request's headers; or fail as Ray Serve's proxy does when what is behind it dies."""
    while scope["path"] == "/reads" and (await receive()).get("more_body"):
        pass
    headers = dict(scope["headers"])
    if scope["path"] == "/dies":
        raise RuntimeError("no replica")
    if scope["path"] == "/silent":
        return
    plain, status = (b"text/plain", 500) if scope["path"] == "/plain" else (b"a/b", 200)
    start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", plain)]}
    await send(start | {"headers": [*start["headers"], (b"x-request-id", b"another")]})
    await send(
        {"type": "http.response.body", "body": json.dumps(sorted(map(str, headers))).encode()}
    )


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]


@pytest.fixture
def talk(monkeypatch):
    """Let functions talk to a server in this process, each through a connection of its own."""

    def run(*talks: Talk, seconds: float = 1.0) -> Any:
        monkeypatch.setattr(gate, "SECONDS", dict.fromkeys(gate.SECONDS, seconds))

        async def serve() -> Any:
            with socket.socket() as listening:
                listening.bind(("127.0.0.1", 0))
                config = uvicorn.Config(
                    Gate(answer), http=BoundedProtocol, log_level="critical", lifespan="off"
                )
                server = uvicorn.Server(config)
                task = asyncio.create_task(server.serve([listening]))
                while not server.started:
                    await asyncio.sleep(0.01)
                try:
                    async with asyncio.timeout(20):
                        return await asyncio.gather(*[_talk(listening, one) for one in talks])
                finally:
                    server.should_exit = True
                    await task

        return asyncio.run(serve())

    return run


async def _talk(listening: socket.socket, one: Talk) -> Any:
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    try:
        return await one(reader, writer)
    finally:
        writer.close()


def sends(*pieces: bytes, pause: float = 0.0) -> Talk:
    """Send pieces, then read until the server ends the connection."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        reading = asyncio.create_task(_read(reader))
        with suppress(ConnectionError):  # it may have heard enough
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        return await reading

    return one


async def _read(reader: asyncio.StreamReader) -> bytes:
    content = b""
    with suppress(ConnectionError):
        while piece := await reader.read(65536):
            content += piece
    return content


def parsed(reply: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = reply.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = [line.split(": ", 1) for line in lines]
    assert len({name for name, _ in headers}) == len(headers), headers
    return int(first.split()[1]), dict(headers), body


def is_refused(reply: bytes, status: int) -> bool:
    code, headers, body = parsed(reply)
    told = json.loads(body)
    assert set(told) == {"error", "request"}
    assert told["request"] == headers["x-request-id"]
    return code == status


GET = b"GET / HTTP/1.1\r\nhost: a\r\n"


def test_a_head_is_bounded_in_bytes_and_in_headers(talk):
    line = b"x-%d: " + b"y" * 100 + b"\r\n"
    whole = GET + b"".join(line % i for i in range(90)) + b"connection: close\r\n\r\n"
    long = GET + b"x: " + b"y" * HEAD_BYTES + b"\r\n\r\n"
    many = GET + b"".join(b"x-%d: y\r\n" % i for i in range(HEADERS + 1)) + b"\r\n"
    address = b"GET /" + b"y" * HEAD_BYTES + b" HTTP/1.1\r\nhost: a\r\n\r\n"
    endless = [GET] + [b"x: " + b"y" * 8000] * 100  # one header that never ends
    replies = talk(*[sends(text) for text in (whole, long, many, address)], sends(*endless))
    assert parsed(replies[0])[0] == 200
    assert all(is_refused(reply, 431) for reply in replies[1:])


def test_a_head_that_comes_in_pieces_is_bounded_too(talk):
    pieces = [b"x-%d: y\r\n" % i for i in range(HEADERS + 5)]
    assert is_refused(talk(sends(GET, *pieces, pause=0.001), seconds=15.0)[0], 431)


def test_time_runs_from_the_first_byte_and_on_connections_that_say_nothing(talk):
    close = b"connection: close\r\n\r\n"
    nothing, partial, dribble, lines, rest = talk(
        sends(),
        sends(GET),
        sends(*[b"%c" % byte for byte in (GET + close)[:12]], pause=0.04),
        sends(GET + b"\r\n", *[b"\r\n"] * 9, pause=0.04),
        sends(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n", pause=0.04),
        seconds=0.2,
    )
    assert nothing == b""
    assert is_refused(partial, 408)
    assert is_refused(dribble, 408)
    assert parsed(lines)[0] == parsed(rest)[0] == 200  # and were ended after their answers


def test_what_is_no_request_has_an_id_too(talk):
    assert is_refused(talk(sends(b"\x16\x03\x01 tls?\r\n\r\n"))[0], 400)


CHUNKED = (
    b"POST /reads HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
)


def test_a_body_that_is_none_is_refused_and_an_earlier_answer_is_not(talk):
    first = GET.replace(b"/", b"/reads", 1) + b"\r\n"
    for body in (b"zz\r\nabc", b"3\r\nabcX", b"0\r\nx: " + b"y" * HEAD_BYTES + b"\r\n\r\n"):
        assert talk(sends(CHUNKED + body))[0].count(b"HTTP/1.1 4") == 1
        assert is_refused(talk(sends(CHUNKED + body))[0], 431 if len(body) > 99 else 400)
        (reply,) = talk(sends(first, CHUNKED + body, pause=0.1))
        assert reply.startswith(b"HTTP/1.1 200")


def test_a_whole_request_is_answered_whatever_follows_it(talk):
    """A body that is longer than it says, for one."""
    post = b"POST /reads HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"
    for rest in (
        b"\x89PNG",
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        GET + b"x: " + b"y" * HEAD_BYTES,
    ):
        (reply,) = talk(sends(post * 2 + rest))
        assert reply.count(b"HTTP/1.1 200") == 2
        (reply,) = talk(sends(post + rest))
        assert reply.startswith(b"HTTP/1.1 200")


def test_what_follows_a_body_changes_no_header(talk):
    (reply,) = talk(sends(CHUNKED, b"0\r\nx-late: 1\r\n\r\n", pause=0.1))
    assert parsed(reply)[0] == 200
    assert b"x-late" not in reply


def test_a_websocket_is_the_request_that_it_begins_as(talk):
    lines = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    (reply,) = talk(sends(GET + lines + b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"))
    status, headers, _ = parsed(reply)
    assert status == 200
    assert len(headers["x-request-id"]) == 32
    for kind in (b"h2c", b"websocket"):  # whose body would not be read
        post = b"POST / HTTP/1.1\r\ncontent-length: 3\r\nconnection: upgrade\r\nupgrade: "
        assert is_refused(talk(sends(post + kind + b"\r\n\r\nabc"))[0], 501)


def test_requests_on_one_connection_are_each_counted_alone(talk):
    """The bound is of one head: many requests of half of it each pass."""
    text = GET + b"x: " + b"y" * (HEAD_BYTES // 2) + b"\r\n\r\n"
    (reply,) = talk(sends(*[text] * 5))
    assert reply.count(b"HTTP/1.1 200") == 5


def test_a_fault_behind_it_has_the_form_of_a_refusal(talk):
    for path, status in (("dies", 503), ("silent", 503), ("plain", 503), ("-/routes", 404)):
        text = f"GET /{path} HTTP/1.1\r\nconnection: close\r\n\r\n".encode()
        assert is_refused(talk(sends(text))[0], status)


def test_ids_are_plain_and_headers_that_steer_ray_are_taken_away(talk):
    def ask(header: bytes) -> tuple[str, str]:
        text = GET + header + b"\r\nconnection: close\r\n\r\n"
        status, headers, body = parsed(talk(sends(text))[0])
        assert status == 200
        return headers["x-request-id"], body.decode()

    assert ask(b"X-Request-ID: line-4.17")[0] == "line-4.17"
    for odd in (b"\xfc\x6e", b"a b", b"\xff" * 70, b""):
        name, _ = ask(b"X-Request-ID: " + odd)
        assert len(name) == 32
    for steering in (b"x-session-id: \xfc", b"serve_multiplexed_model_id: a"):
        assert steering.partition(b":")[0].decode() not in ask(steering)[1]


def test_head_and_body_of_an_answer_leave_at_once(talk, monkeypatch):
    """A process that is killed between them would leave a head that HAProxy cannot take back."""
    socket_transport = asyncio.selector_events._SelectorSocketTransport
    written, write = [], socket_transport.write

    def note(self: Any, data: bytes) -> None:
        written.append(bytes(data))
        write(self, data)

    monkeypatch.setattr(socket_transport, "write", note)
    twice = (
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    )
    (reply,) = talk(sends(twice))
    answers = [data for data in written if data != twice]
    assert b"".join(answers) == reply
    assert len(answers) == 2
    for each in answers:
        status, _, body = parsed(each)
        assert status == 200
        assert b"host" in body


def test_ray_is_given_both(monkeypatch):
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    (around,) = gate.middlewares()
    assert around.cls is Gate
    config = uvicorn.Config(answer)
    config.load()
    assert config.http_protocol_class is BoundedProtocol
