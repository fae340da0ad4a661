"""Who may ask, how much and by which path, and what is told where that ends or fails."""

import asyncio
import itertools
import json
import re
from pathlib import Path
from typing import Any

import httpx

from assay.serve.http import make_app
from assay.serve.limits import Limits
from assay.serve.tokens import Tokens

TOKEN = "a-long-secret"


def test_without_the_token_nobody_gets_anything(ask, here, pictures, is_refused):
    picture = pictures[0].read_bytes()
    wrong = ["", "Bearer", "Bearer wrong", "Basic a-long-secret", "bearer a-long-secre"]
    asked = ["POST /v1/parts", "GET /v1/models", "GET /openapi.json", "GET /none"]
    for token, request in itertools.product(wrong, asked):
        reply = ask(*request.split(), content=picture, headers={"authorization": token})
        assert is_refused(reply, 401, "Bearer")
        assert reply.headers["www-authenticate"] == "Bearer"
    assert here.counted == []
    for path in ("/health", "/ready"):
        assert ask("GET", path, headers={"authorization": ""}).status_code == 200


def test_two_tokens_in_one_request_are_refused(ask, is_refused):
    """HAProxy would count the last, and what stands behind it another."""
    second = {"Authorization": "Bearer wrong"}  # beside the right one, which `ask` sends
    assert is_refused(ask("GET", "/v1/models", headers=second), 400, "stands twice")


def test_a_body_is_refused_while_it_arrives(ask, here, pictures, is_refused):
    limits = Limits(body_mb=0.01)
    assert is_refused(ask("POST", "/v1/parts", content=b"x" * 10_001, limits=limits), 413, "0.01")
    taken = 0

    async def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1000
            yield b"x" * 1000

    assert is_refused(ask("POST", "/v1/parts", content=endless(), limits=limits), 413, "larger")
    assert taken <= 12_000

    async def slow() -> Any:
        yield b"x"
        await asyncio.sleep(60)

    reply = ask("POST", "/v1/parts", content=slow(), limits=Limits(body_s=0.05))
    assert is_refused(reply, 408, "longer")
    assert [status for _, status in here.counted] == [413, 413, 408]


def test_a_path_with_an_encoded_sign_is_told_to_be_none(ask, pictures, is_refused):
    """HAProxy sends it past its task, where it would be told for ever that the task starts."""
    whole = pictures[0].read_bytes()
    for path in ("/v1/%70arts", "/v1%2fparts", "/v1/parts%20"):
        assert is_refused(ask("POST", path, content=whole), 404, "write it plainly")
    assert is_refused(ask("POST", "/v1/%70arts", headers={"authorization": ""}), 404, "plainly")
    assert ask("POST", "/v1/parts?model=%63hampion", content=whole).status_code == 200


def test_head_is_where_get_is(ask):
    for path in ("/health", "/ready", "/v1/models", "/", "/login", "/page/inspect.js"):
        reply, whole = ask("HEAD", path), ask("GET", path)
        assert (reply.status_code, reply.content) == (200, b"")
        assert reply.headers["content-length"] == str(len(whole.content))
    assert ask("HEAD", "/v1/parts").status_code == 405


def test_an_id_that_is_no_utf_8_is_replaced(here, pictures):
    app = make_app(here, Limits(), None)
    headers = [(b"x-request-id", b"\xfc\x6e"), (b"x-other", b"\xff")]
    scope = {"type": "http", "method": "GET", "path": "/health", "query_string": b""}
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(app(scope | {"headers": headers}, receive, send))
    assert messages[0]["status"] == 200
    assert re.fullmatch(rb"[0-9a-f]{32}", dict(messages[0]["headers"])[b"x-request-id"])


def test_bodies_are_limited_together_and_in_time_on_every_path(ask, here, pictures, is_refused):
    whole = pictures[0].read_bytes()
    small = Limits()
    vars(small)["held_mb"] = len(whole) / 1e6  # less than a body, as where others are held
    full = ask("POST", "/v1/parts", content=whole + b"x", limits=small)
    assert is_refused(full, 429, "too many images")
    assert full.headers["retry-after"] == "1"
    app = make_app(here, small, Tokens(TOKEN))

    async def twice() -> list[int]:
        """What one request held is there for the next."""
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://here",
            headers={"authorization": f"Bearer {TOKEN}"},
        ) as client:
            return [(await client.post("/v1/parts", content=whole)).status_code for _ in range(3)]

    assert asyncio.run(twice()) == [200] * 3


def test_a_full_queue_is_told_before_a_body_is_read(ask, here, is_refused):
    here.is_full = True

    async def unread() -> Any:
        raise AssertionError
        yield b""

    reply = ask("POST", "/v1/parts", content=unread())
    assert is_refused(reply, 429, "queue")
    assert reply.headers["retry-after"] == "1"
    assert here.counted == [("parts", 429)]


def test_a_path_is_whole_whatever_prefix_of_it_was_routed_by(here, pictures):
    app = make_app(here, Limits(), None)
    statuses: list[int] = []

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"root_path": "/v1/parts"}, receive, send)

    async def request() -> None:
        transport = httpx.ASGITransport(routed)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            content = pictures[0].read_bytes()
            for path in ("/v1/parts", "/v1/parts/more", "/v1/partsmore"):
                statuses.append((await client.post(path, content=content)).status_code)

    asyncio.run(request())
    assert statuses == [200, 404, 404]


def test_a_login_that_does_not_arrive_is_ended(ask, monkeypatch, is_refused):
    monkeypatch.setattr("assay.serve.page.LOGIN_S", 0.05)

    async def slow() -> Any:
        yield b"t"
        await asyncio.sleep(60)

    reply = ask("POST", "/login", content=slow(), headers={"authorization": ""})
    assert is_refused(reply, 408, "longer")


class Failing:
    """A service in which something goes wrong."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def tasks(self) -> list[str]:
        return ["parts"]

    def admit(self, task: str) -> None:
        pass

    async def answer(self, *_: Any) -> dict[str, Any]:
        if isinstance(self.what, Exception):
            raise self.what
        await asyncio.sleep(self.what)
        return {}

    async def models(self) -> dict[str, Any]:
        return {"parts": {}}

    async def promote(self, *_: Any) -> str:
        raise self.what

    async def sample(self, task: str) -> None:
        return None

    def uncertain(self) -> None:
        return None

    def count(self, *_: Any) -> None:
        pass


def test_a_fault_of_the_server_leaves_no_trace_outside(ask, pictures, caplog, is_refused):
    whole = pictures[0].read_bytes()
    reply = ask("POST", "/v1/parts", Failing(ValueError("/secret/path")), content=whole)
    assert is_refused(reply, 500, "its log has more")
    assert "secret" not in reply.text
    reply = ask("POST", "/v1/parts", Failing(30), Limits(answer_s=0.05), content=whole)
    assert is_refused(reply, 504, "no answer within")
    reply = ask("GET", "/ready", Failing(0))
    assert is_refused(reply, 503, "Not every task")
    assert reply.headers["retry-after"] == "2"


def test_a_request_keeps_its_own_id_if_it_is_plain(ask):
    def answered_id(sent: str) -> str:
        return ask("GET", "/health", headers={"x-request-id": sent}).headers["x-request-id"]

    assert answered_id("line-4.17") == "line-4.17"
    for odd in ("a b", "x" * 65, "a\tb", "<script>"):
        assert re.fullmatch(r"[0-9a-f]{32}", answered_id(odd))


def test_the_document_names_every_status(here):
    schema = make_app(here, Limits(), None).app.openapi()
    statuses = set(schema["paths"]["/v1/{task}"]["post"]["responses"])
    assert {"200", "401", "404", "408", "413", "415", "422", "429", "503", "504"} <= statuses
    paths = {"/v1/{task}", "/v1/models", "/v1/models/{task}", "/health", "/ready"}
    assert set(schema["paths"]) == paths
    assert str(Path(__file__).parents[2]) not in json.dumps(schema)
