"""The client against a server made by hand: what it sends, and when it asks again."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from assay.errors import ServeError
from assay.serve.client import Client
from assay.serve.limits import form_parts

REPLY = {
    "request": "r", "classes": ["a"], "views": [], "milliseconds": 1.0,
    "model": {"task": "parts", "alias": "champion", "version": "v", "variant": "fp32"},
    "answer": {"label": "a", "probs": {"a": 1.0}, "set": ["a"], "rejected": False},
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Answers by the statuses of `plan` in turn, then 200."""

    plan: tuple[tuple[int, dict], ...] = ()
    asked: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        type(self).asked.append((time.monotonic(), self.path, dict(self.headers), body))
        turn = len(self.asked) - 1
        status, headers = self.plan[turn] if turn < len(self.plan) else (200, {})
        if status == 0:  # as a server that dies
            self.connection.close()
            return
        content = json.dumps(REPLY if status == 200 else {"error": f"no {status}"}).encode()
        self.send_response(status)
        for name, value in ({"content-length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[type[Handler], str]]:
    handler = type("Planned", (Handler,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as opened:
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        yield handler, f"http://127.0.0.1:{opened.server_address[1]}"
        opened.shutdown()
        thread.join()


def test_an_answer_is_typed_and_the_request_as_the_contract_has_it(server):
    handler, address = server
    client = Client(address, "secret")
    reply = client.judge("parts", b"image", alias="challenger", mask="rle")
    assert reply.answer.label == "a"
    assert reply.model.version == "v"
    client.judge("parts", b"one", b"two")
    (_, path, headers, body), (_, _, form, whole) = handler.asked
    assert (path, body) == ("/v1/parts?model=challenger&mask=rle", b"image")
    assert headers["Authorization"] == "Bearer secret"
    assert form_parts(whole, form["Content-Type"]) == [b"one", b"two"]


def test_it_asks_again_while_that_may_help_and_waits_as_told(server):
    handler, address = server
    handler.plan = ((429, {"retry-after": "1"}), (503, {}), (0, {}), (500, {}))
    assert Client(address).judge("parts", b"x").model.version == "v"
    times = [asked[0] for asked in handler.asked]
    assert len(times) == 5
    assert times[1] - times[0] >= 1.0


@pytest.mark.parametrize("status", [401, 404, 413, 415, 422])
def test_a_refusal_is_said_at_once(server, status):
    handler, address = server
    handler.plan = ((status, {}),)
    with pytest.raises(ServeError, match=f"answers {status}: no {status}"):
        Client(address).judge("parts", b"x")
    assert len(handler.asked) == 1


def test_it_gives_up_with_a_sentence():
    with pytest.raises(ServeError, match="after 2 attempts: it cannot be reached"):
        Client("http://127.0.0.1:9", retries=1).judge("parts", b"x")
