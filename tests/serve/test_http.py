"""The contract: answers are the bundle's own, and what is refused is refused before decoding."""

import asyncio
import base64
import gzip
import io
import itertools
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import tifffile

from assay.bundle.bundle import Bundle
from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.serve.contract import for_sender
from assay.serve.http import make_app
from assay.serve.inspector import OpenBundle
from assay.serve.limits import Limits
from assay.serve.tokens import Tokens

TOKEN = "a-long-secret"


def bundle_of(registry, task: str, alias: str = "champion") -> Bundle:
    return Bundle(registry.fetch(registry.holder(task, alias)))


def is_refused(reply: httpx.Response, status: int, text: str) -> bool:
    body = reply.json()
    sentence = body["error"]
    assert (reply.status_code, set(body)) == (status, {"error", "request"}), body
    assert body["request"] == reply.headers["x-request-id"]
    assert "/" not in re.sub("/v1/models|/openapi.json", "", sentence)
    assert "--" not in sentence
    assert "Traceback" not in sentence
    return text in sentence


def test_an_answer_is_the_bundles(ask, registry, pictures):
    for alias in ("champion", "challenger"):
        opened = bundle_of(registry, "parts", alias)
        for path in pictures:
            reply = ask("POST", f"/v1/parts?model={alias}", content=path.read_bytes())
            assert reply.status_code == 200, reply.text
            body, expected = reply.json(), opened.predict(path)
            assert body["answer"] == body["views"][0]["answer"]
            assert body["answer"] == {
                "label": expected.label,
                "probs": expected.probs,
                "set": list(expected.set),
                "rejected": expected.rejected,
            }
            assert body["classes"] == opened.classes
            patches = body["views"][0]["patches"]
            assert [patch["box"] for patch in patches] == expected.boxes.tolist()
            assert [patch["score"] for patch in patches] == expected.attn.tolist()
            assert body["model"]["version"] == registry.holder("parts", alias).version
            assert body["model"]["alias"] == alias
            assert body["request"] == reply.headers["x-request-id"]


def test_views_of_one_part_come_as_a_form_and_are_judged_together(ask, registry, pictures):
    opened = bundle_of(registry, "parts")
    files = [("image", (path.name, path.read_bytes(), "image/png")) for path in pictures]
    body = ask("POST", "/v1/parts", files=files).json()
    views = [opened.predict(path) for path in pictures]
    together = opened.together(views)
    assert body["answer"]["probs"] == together.probs
    assert body["answer"]["set"] == list(together.set)
    assert [view["answer"]["probs"] for view in body["views"]] == [view.probs for view in views]


def test_a_mask_comes_as_png_as_runs_or_not_at_all(ask, registry, pictures):
    expected = bundle_of(registry, "layers").predict(pictures[1])
    assert 0 < (expected.mask > 0).mean() < 1
    bodies = {
        form: ask("POST", f"/v1/layers?mask={form}", content=pictures[1].read_bytes()).json()
        for form in ("png", "rle", "none")
    }
    views = {form: body["views"][0] for form, body in bodies.items()}
    png = np.frombuffer(base64.b64decode(views["png"]["mask"]["png"]), np.uint8)
    assert np.array_equal(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), expected.mask)
    counts = views["rle"]["mask"]["rle"]["pore"]
    inside = np.repeat(np.arange(len(counts)) % 2, counts)
    height, width = expected.mask.shape
    assert np.array_equal(inside.reshape(width, height).T, expected.mask)
    assert views["none"]["mask"] is None
    for form, view in views.items():
        assert bodies[form]["answer"] is None
        assert (view["height"], view["width"]) == (height, width)
        assert [(d["label"], d["area_px"], d["box"]) for d in view["defects"]] == [
            (d.label, d.area_px, d.box.tolist()) for d in expected.defects
        ]


def test_evidence_comes_where_it_is_asked_for(ask, registry, pictures):
    opened = bundle_of(registry, "parts")
    files = [("image", (path.name, path.read_bytes(), "image/png")) for path in pictures]
    for asked in ("1", "true"):
        views = ask("POST", f"/v1/parts?explain={asked}", files=files).json()["views"]
        for path, view in zip(pictures, views, strict=True):
            expected = opened.predict(path)
            evidence = view["evidence"]
            png = np.frombuffer(base64.b64decode(evidence["png"]), np.uint8)
            grey = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
            share = expected.evidence.clip(0) / expected.evidence.max()
            assert np.abs(grey / 255 - share).max() <= 0.5 / 255 + 1e-6
            assert grey.max() == 255
            assert evidence["box"] == expected.boxes[0].tolist() == [0, 0, 80, 60]
            assert evidence["label"] == view["answer"]["label"]
    whole = pictures[0].read_bytes()
    plain, off = (
        ask("POST", f"/v1/parts{query}", content=whole).json()["views"][0]
        for query in ("", "?explain=0")
    )
    assert plain["evidence"] is None
    assert off == plain
    # a mask shows where the defect is by itself
    view = ask("POST", "/v1/layers?explain=1", content=whole).json()["views"][0]
    assert view["evidence"] is None
    assert view["mask"] is not None
    assert is_refused(ask("POST", "/v1/parts?explain=map", content=whole), 422, "explain")


def test_without_the_token_nobody_gets_anything(ask, here, pictures):
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


def test_two_tokens_in_one_request_are_refused(ask):
    """HAProxy would count the last, and what stands behind it another."""
    second = {"Authorization": "Bearer wrong"}  # beside the right one, which `ask` sends
    assert is_refused(ask("GET", "/v1/models", headers=second), 400, "stands twice")


def test_a_body_is_refused_while_it_arrives(ask, here, pictures):
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


def header_alone(width: int, height: int) -> bytes:
    """Make a PNG of this size that has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_what_is_no_image_is_refused_by_its_first_bytes_and_a_large_one_by_its_header(
    ask, pictures
):
    whole = pictures[0].read_bytes()
    for content in (b"%PDF-1.7 ...", b"GIF89a", b"\x00" * 64, b"<svg/>", b"PK\x03\x04"):
        assert is_refused(ask("POST", "/v1/parts", content=content), 415, "Image 1 is none of")
    bomb = header_alone(60_000, 60_000)
    assert is_refused(ask("POST", "/v1/parts", content=bomb), 422, "60000 x 60000")
    assert is_refused(ask("POST", "/v1/parts", content=b"\xff\xd8\xff" + b"0" * 50), 422, "read")
    files = [("image", ("a", whole)), ("image", ("b", b"no image"))]
    assert is_refused(ask("POST", "/v1/parts", files=files), 415, "Image 2")


def test_what_cannot_be_decoded_says_which(ask, pictures):
    whole = pictures[0].read_bytes()
    files = [("image", ("a", whole)), ("image", ("b", whole[:-30]))]
    assert is_refused(ask("POST", "/v1/parts", files=files), 422, "Image 2 cannot be read")


def test_counts_of_images_and_parameters_are_checked(ask, pictures):
    whole = pictures[0].read_bytes()
    assert is_refused(ask("POST", "/v1/parts", content=b""), 422, "no image")
    files = [("image", ("a", whole))] * 3
    reply = ask("POST", "/v1/parts", files=files, limits=Limits(views=2))
    assert is_refused(reply, 422, "3 images were sent; send 1 to 2")
    for query in ("model=best", "mask=gif"):
        assert is_refused(ask("POST", f"/v1/parts?{query}", content=whole), 422, query[:4])
    form = {"content-type": "multipart/form-data"}
    assert is_refused(ask("POST", "/v1/parts", content=whole, headers=form), 422, "boundary")
    form = {"content-type": "multipart/related; boundary=x"}
    assert is_refused(ask("POST", "/v1/parts", content=whole, headers=form), 415, "another kind")
    assert is_refused(ask("POST", "/v1/parts/", content=whole), 404, "no such path")
    for version in ("../../etc", "", "%00", "a" * 65):
        reply = ask("POST", f"/v1/models/parts?version={version}")
        assert is_refused(reply, 422, "The parameter version cannot be used")
    assert is_refused(ask("POST", "/v1/none", content=whole), 404, "no such task")
    assert is_refused(ask("POST", "/v1/layers?model=challenger", content=whole), 404, "challenger")
    assert is_refused(ask("GET", "/elsewhere"), 404, "no such path")
    assert is_refused(ask("DELETE", "/v1/models"), 405, "takes GET, not DELETE")
    assert is_refused(ask("POST", "/v1/models", content=whole), 405, "takes GET, not POST")


def test_only_known_parameters_are_taken_each_once(ask, pictures):
    whole = pictures[0].read_bytes()
    for path, name in (("parts?alias=challenger", "'alias' is unknown"), ("parts?x", "'x'")):
        assert is_refused(ask("POST", f"/v1/{path}", content=whole), 422, name)
    twice = ask("POST", "/v1/parts?model=champion&model=challenger", content=whole)
    assert is_refused(twice, 422, "'model' is given twice")
    assert is_refused(ask("GET", "/v1/models?task=parts"), 422, "'task' is unknown")
    assert is_refused(ask("POST", "/v1/parts?%fc=1", content=whole), 422, "is unknown")


def test_a_mask_beside_its_image_is_no_view(ask, pictures):
    files = {name: (f"{name}.png", pictures[0].read_bytes()) for name in ("image", "mask")}
    assert is_refused(ask("POST", "/v1/parts", files=files), 422, "a field 'mask'")
    del files["mask"]
    files["second"] = ("b.png", pictures[1].read_bytes())
    assert len(ask("POST", "/v1/parts", files=files).json()["views"]) == 2


def test_fields_beside_images_are_no_images(ask, pictures):
    whole = pictures[0].read_bytes()
    plain = ask("POST", "/v1/parts", content=whole).json()["answer"]
    for data in ({"serial": "A-17"}, {"a": "1", "b": "x" * 5000}):
        files = {"image": ("a.png", whole)}
        assert ask("POST", "/v1/parts", data=data, files=files).json()["answer"] == plain
    mark = "x" * 8
    parts = [
        ("name=image; filename*=utf-8''t%c3%a4st.png", whole),
        ("name=serial", b"filename=a.png"),
        ('name=second; filename=""', b""),
    ]
    lines = [
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n"
        % (mark.encode(), head.encode(), content)
        for head, content in parts
    ]
    form = {"content-type": f'multipart/form-data; boundary="{mark}"'}
    for end in (b"--%b--\r\n" % mark.encode(), b"--%b--" % mark.encode()):
        content = b"to skip\r\n" + b"".join(lines) + end
        assert ask("POST", "/v1/parts", content=content, headers=form).json()["answer"] == plain
    fields = ask("POST", "/v1/parts", content=lines[1] + end, headers=form)
    assert is_refused(fields, 422, "There is no image")
    coded = lines[0].replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1)
    assert is_refused(ask("POST", "/v1/parts", content=coded + end, headers=form), 415, "base64")
    many = ask("POST", "/v1/parts", content=lines[1] * 300 + end, headers=form)
    assert is_refused(many, 422, "more than 256 parts")


def test_an_empty_image_and_an_encoded_one_are_called_that(ask, pictures):
    whole = pictures[0].read_bytes()
    empty = ask("POST", "/v1/parts", files=[("image", ("null", b""))])
    assert is_refused(empty, 422, "no image")
    for encoding in ("gzip", "br", "identity, deflate", "GZIP"):
        headers = {"content-encoding": encoding}
        reply = ask("POST", "/v1/parts", content=gzip.compress(whole), headers=headers)
        assert is_refused(reply, 415, f"content encoding {encoding}")
    headers = {"content-encoding": "identity"}
    assert ask("POST", "/v1/parts", content=whole, headers=headers).status_code == 200
    assert is_refused(ask("POST", "/v1/parts", content=gzip.compress(whole)), 415, "it is gzip")
    coded = base64.b64encode(whole)
    assert is_refused(ask("POST", "/v1/parts", content=coded), 415, "it is a PNG in base64")
    as_json = ask("POST", "/v1/parts", json={"image": coded.decode()})
    assert is_refused(as_json, 415, "it is JSON")


def test_an_uncompressed_image_of_26_megapixels_passes_by_default(ask):
    pixels = np.full((5100, 5100, 3), 40, np.uint8)
    content = cv2.imencode(".bmp", pixels)[1].tobytes()
    assert len(content) > 78e6
    reply = ask("POST", "/v1/parts", content=content)
    assert reply.status_code == 200, reply.text
    assert [reply.json()["views"][0][side] for side in ("height", "width")] == [5100, 5100]


def test_a_path_with_an_encoded_sign_is_told_to_be_none(ask, pictures):
    """HAProxy sends it past its task, where it would be told for ever that the task starts."""
    whole = pictures[0].read_bytes()
    for path in ("/v1/%70arts", "/v1%2fparts", "/v1/parts%20"):
        assert is_refused(ask("POST", path, content=whole), 404, "write it plainly")
    assert is_refused(ask("POST", "/v1/%70arts", headers={"authorization": ""}), 404, "plainly")
    assert ask("POST", "/v1/parts?model=%63hampion", content=whole).status_code == 200


def test_who_has_no_command_line_is_told_of_no_option(ask):
    stack = io.BytesIO()
    tifffile.imwrite(stack, np.zeros((3, 40, 40, 3), np.uint8), photometric="rgb")
    reply = ask("POST", "/v1/parts", content=stack.getvalue())
    assert is_refused(reply, 422, "which one to read is not said; save each as a file of its own")
    floats = io.BytesIO()
    tifffile.imwrite(floats, np.full((40, 40), 0.5, np.float32))
    reply = ask("POST", "/v1/parts", content=floats.getvalue())
    assert is_refused(reply, 422, "do not tell what is white; convert the image to 8 bits")
    told = for_sender("it holds 2 pages, and --data.page 5 counts from 0")
    assert told == "it holds 2 pages, and the model's page 5 counts from 0"


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


def test_bodies_are_limited_together_and_in_time_on_every_path(ask, here, pictures):
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


def test_a_full_queue_is_told_before_a_body_is_read(ask, here):
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


def test_a_login_that_does_not_arrive_is_ended(ask, monkeypatch):
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


def test_a_fault_of_the_server_leaves_no_trace_outside(ask, pictures, caplog):
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


def test_models_say_what_answers_and_how_good_it_is(ask, registry):
    body = ask("GET", "/v1/models").json()
    assert set(body) == {"parts", "layers"}
    assert set(body["parts"]) == {"champion", "challenger"}
    champion = registry.holder("parts", "champion")
    described = body["parts"]["champion"]
    for name in ("version", "run", "data"):
        assert described[name] == getattr(champion, name)
    assert described["metrics"] == json.loads(json.dumps(champion.metrics))


def test_a_version_of_the_registry_is_promoted_by_the_rules_of_promote(
    ask, here, decoders, tmp_path, make_bundle, judged_rows
):
    registry = Registry(str(tmp_path / "registry"))
    versions = [
        promote(registry, make_bundle(tmp_path / name, bias=bias), judged_rows(0.9), alias).version
        for name, bias, alias in (("a", 0.0, "champion"), ("b", 1.0, "challenger"))
    ]
    worse = make_bundle(tmp_path / "c", bias=2.0)
    bad = promote(registry, worse, judged_rows(0.1), "challenger").version
    service = type(here)(registry, decoders)

    def put(version: str, task: str = "parts", more: str = "") -> httpx.Response:
        return ask("POST", f"/v1/models/{task}?version={version}{more}", service)

    for version in (versions[1], versions[0]):
        record = registry.record("parts", put(version).json()["record"])
        assert registry.holder("parts", "champion") == record
        assert (record.version, record.kind) == (version, "promoted")
    assert put(versions[1], more="&model=challenger").status_code == 200
    assert registry.holder("parts", "challenger").version == versions[1]
    assert is_refused(put(bad), 409, "significantly worse")
    assert is_refused(put("none"), 409, "no version 'none'")
    assert is_refused(put(versions[1], "other"), 404, "no such task")
    assert is_refused(put(versions[1], more="&to=1"), 422, "'to' is unknown")
    (registry.fetch(registry.holder("parts", "challenger")) / "classify.onnx").write_bytes(b"no")
    assert is_refused(put(versions[1]), 409, "log says why")
    assert registry.holder("parts", "champion").version == versions[0]


def test_one_swap_does_not_mix_two_models_in_one_answer(here, registry, pictures):
    """The bundle that began an answer ends it, whatever is promoted meanwhile."""
    inspector = here.inspectors["parts"]
    before = inspector.opened["champion"].model.version
    swapped = False

    async def swapping(opened: OpenBundle, content: bytes) -> Any:
        nonlocal swapped
        if not swapped:
            swapped = True
            other = registry.holder("parts", "challenger").id
            inspector.configure({"champion": other, "variant": "fp32"})
        return (opened.bundle.predict(content), (60, 80), None)

    images = [path.read_bytes() for path in pictures[:2]]
    reply = asyncio.run(inspector.answer(images, "champion", "none", False, swapping))
    assert reply["model"]["version"] == before
    expected = [bundle_of(registry, "parts").predict(path).probs for path in pictures[:2]]
    assert [view["answer"]["probs"] for view in reply["views"]] == expected
    assert inspector.opened["champion"].model.version != before


def test_the_document_names_every_status(here):
    schema = make_app(here, Limits(), None).app.openapi()
    statuses = set(schema["paths"]["/v1/{task}"]["post"]["responses"])
    assert {"200", "401", "404", "408", "413", "415", "422", "429", "503", "504"} <= statuses
    paths = {"/v1/{task}", "/v1/models", "/v1/models/{task}", "/health", "/ready"}
    assert set(schema["paths"]) == paths
    assert str(Path(__file__).parents[2]) not in json.dumps(schema)
