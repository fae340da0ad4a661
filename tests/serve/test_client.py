"""The client against a server made by hand: what it sends, and when it asks again."""

import pytest

from assay.errors import ServeError
from assay.serve.client import Client
from assay.serve.limits import form_parts


def test_an_answer_is_typed_and_the_request_as_the_contract_has_it(server):
    handler, address = server
    client = Client(address, "secret")
    reply = client.judge("parts", b"image", alias="challenger", mask="rle")
    assert reply.answer.label == "a"
    assert reply.model.version == "v"
    client.judge("parts", b"one", b"two", explain=True)
    (_, path, headers, body), (_, other, form, whole) = handler.asked
    assert other == "/v1/parts?model=champion&mask=png&explain=1"
    assert (path, body) == ("/v1/parts?model=challenger&mask=rle", b"image")
    assert headers["authorization"] == "Bearer secret"
    assert form_parts(whole, form["content-type"]) == [b"one", b"two"]


def test_a_frame_that_is_sent_again_has_the_same_id_and_another_frame_another(server):
    handler, address = server
    handler.plan = ((503, {}), (0, {}))
    client = Client(address)
    client.judge("parts", b"x", print_id="line-4", seconds=1660000000.5)
    client.judge("parts", b"x", print_id="a&b")
    paths = [path.partition("&print=")[2] for _, path, *_ in handler.asked]
    assert paths == ["line-4&time=1660000000.5"] * 3 + ["a%26b"]
    names = [headers["x-request-id"] for _, _, headers, _ in handler.asked]
    assert [names.index(name) for name in names] == [0, 0, 0, 3]


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
