"""A registry with two tasks, the HTTP application on it in this process, Ray Serve on another, and a server made by hand."""

import asyncio
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from assay.bundle.promotion import promote, promote_again
from assay.bundle.registry import Registry
from assay.metrics.alarm import Alarm
from assay.serve.client import Client
from assay.serve.config import ApplicationConfig, ServeConfig, SharedConfig
from assay.serve.decode_process import DecodeLimits
from assay.serve.decoders import Decoders
from assay.serve.deployment import configuration
from assay.serve.frames import Frame, PrintStates
from assay.serve.http import make_app
from assay.serve.inspector import Inspector, inspect
from assay.serve.limits import Limits, RefusedError
from assay.serve.looker import Looker
from assay.serve.tokens import Tokens, open_tokens

SHARED = ("lids", "lips")
TOKEN = "a-long-secret"


def _draw(path: Path, seed: int, height: int = 60, width: int = 80) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    cv2.circle(pixels, (20 + 10 * seed, 30), 12, (30, 60, 250), -1)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [_draw(folder / f"{seed}.png", seed) for seed in range(4)]


@pytest.fixture(scope="session")
def header_alone() -> Callable[[int, int], bytes]:
    """Makes a PNG of this width and height that has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    def make(width: int, height: int) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")

    return make


@pytest.fixture(scope="session")
def registry(tmp_path_factory, make_bundle, judged_rows) -> Registry:
    """parts has a champion (bias 0) and a challenger (bias 2), layers a champion."""
    folder = tmp_path_factory.mktemp("serving")
    registry = Registry(str(folder / "registry"))
    promote(registry, make_bundle(folder / "first"), judged_rows(0.9), "champion")
    promote(registry, make_bundle(folder / "second", bias=2.0), judged_rows(0.9), "challenger")
    promote(registry, make_bundle(folder / "mask", "layers"), judged_rows(0.9), "champion")
    return registry


@pytest.fixture(scope="session")
def decoders() -> Iterator[Decoders]:
    opened = Decoders(1, DecodeLimits(120e6, 20.0))
    yield opened
    opened.close()


class Here:
    """Answers in this process, each image alone."""

    def __init__(self, registry: Registry, decoders: Decoders) -> None:
        self.inspectors = {}
        self.looker = Looker(decoders, inspect)
        self.counted: list[tuple[str, int]] = []
        self.recent: Any = None
        self.is_full = False
        self.prints = PrintStates(100, 60.0)
        for task in registry.tasks():
            inspector = Inspector(registry, task, threads=1)
            inspector.configure(ids(registry, task))
            self.inspectors[task] = inspector

    def tasks(self) -> list[str]:
        return list(self.inspectors)

    def admit(self, task: str) -> None:
        if self.is_full:
            raise RefusedError(429, "The queue is full.", 1)

    async def answer(
        self, task: str, images: Any, alias: Any, mask: Any, explain: bool, frame: Frame | None
    ) -> dict[str, Any]:
        async def watch(*told: Any) -> dict[str, Any]:
            model, *rest = told
            return self.prints.advance(model, frame, *rest)

        parts = await self.inspectors[task].answer(
            images, alias, mask, explain, self.looker.look, None if frame is None else watch
        )
        if self.recent and parts.get("answer"):
            self.recent.add(task, parts["answer"], parts["thumb"])
        return parts

    async def models(self) -> dict[str, Any]:
        return {task: inspector.describe() for task, inspector in self.inspectors.items()}

    async def promote(self, task: str, version: str, alias: Any) -> str:
        registry = self.inspectors[task].registry
        return (await asyncio.to_thread(promote_again, registry, task, version, alias)).id

    async def sample(self, task: str) -> bytes | None:
        return self.inspectors[task].sample()

    def uncertain(self) -> list[dict[str, Any]] | None:
        return self.recent.rank() if self.recent else None

    def count(self, task: str, status: int, seconds: float) -> None:
        self.counted.append((task, status))


def ids(registry: Registry, task: str, variant: str = "fp32") -> dict[str, str]:
    records = {alias: registry.holder(task, alias) for alias in ("champion", "challenger")}
    names = {alias: record.id if record else "" for alias, record in records.items()}
    return names | {"variant": variant}


@pytest.fixture
def here(registry, decoders) -> Here:
    return Here(registry, decoders)


@pytest.fixture
def ask(here):
    """Send requests to the application as a bearer of the token."""

    def send(
        method: str,
        path: str,
        service: Any = here,
        limits: Limits | None = None,
        tokens: str = TOKEN,
        app: Any = None,
        **fields: Any,
    ) -> httpx.Response:
        app = app or make_app(service, limits or Limits(), Tokens(tokens))
        fields.setdefault("headers", {})
        fields["headers"] = {"authorization": f"Bearer {TOKEN}"} | fields["headers"]

        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, **fields)

        return asyncio.run(request())

    return send


@pytest.fixture(scope="session")
def is_refused() -> Callable[[httpx.Response, int, str], bool]:
    """Whether a reply refuses with this status and text; every refusal is one sentence without paths and options."""

    def check(reply: httpx.Response, status: int, text: str) -> bool:
        body = reply.json()
        sentence = body["error"]
        assert (reply.status_code, set(body)) == (status, {"error", "request"}), body
        assert body["request"] == reply.headers["x-request-id"]
        assert "/" not in re.sub("/v1/models|/openapi.json", "", sentence)
        assert "--" not in sentence
        assert "Traceback" not in sentence
        return text in sentence

    return check


REPLY = {
    "request": "r",
    "classes": ["a"],
    "views": [],
    "milliseconds": 1.0,
    "model": {"task": "parts", "alias": "champion", "version": "v", "variant": "fp32"},
    "answer": {"label": "a", "probs": {"a": 1.0}, "set": ["a"], "rejected": False},
}


class PlannedHandler(BaseHTTPRequestHandler):
    """Answers by the statuses of `plan` in turn, then 200."""

    plan: tuple[tuple[int, dict], ...] = ()
    asked: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        type(self).asked.append((time.monotonic(), self.path, self.headers, body))
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
def server() -> Iterator[tuple[type[PlannedHandler], str]]:
    handler = type("Planned", (PlannedHandler,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as opened:
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        yield handler, f"http://127.0.0.1:{opened.server_address[1]}"
        opened.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    built = built.public_key(key.public_key()).serial_number(1)
    built = built.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    built = built.add_extension(address, False)
    built = built.add_extension(x509.BasicConstraints(True, None), True)
    folder = tmp_path_factory.mktemp("certificate")
    paths = folder / "cert.pem", folder / "key.pem"
    pem = serialization.Encoding.PEM
    paths[0].write_bytes(built.sign(key, hashes.SHA256()).public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(pem, *plain))
    return paths


class Once(threading.Thread):
    """Asks once."""

    def __init__(self, client: Client, images: list[bytes]) -> None:
        super().__init__()
        self.client, self.images = client, images
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        self.begun.set()
        self.reply = self.client.judge("parts", *self.images)


def _noise_jpeg(side: int) -> bytes:
    """Make an image that takes its time to decode."""
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 30])[1].tobytes()


@pytest.fixture(scope="module")
def winners(tmp_path_factory, make_bundle, judged_rows) -> Registry:
    folder = tmp_path_factory.mktemp("cluster")
    registry = Registry(str(folder / "registry"))
    alarm = Alarm(kind="cusum", reference=-1e3, window=1, threshold=5.5e3)  # at the sixth frame
    for i, bias in enumerate((0.0, 2.0)):
        bundle = make_bundle(folder / str(i), bias=bias, alarms=[alarm])
        promote(registry, bundle, judged_rows(0.9), "champion")
    for task in SHARED:
        promote(registry, make_bundle(folder / task, task), judged_rows(0.9), "champion")
    return registry


@pytest.fixture(scope="module")
def served(winners, tmp_path_factory) -> Iterator[ServeConfig]:
    from assay.serve import control

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServeConfig(
        registry=winners.address,
        port=port,
        token_file=tmp_path_factory.mktemp("token") / "token",
        app=ApplicationConfig(cpus=0.1, batch=2, queue=8, min_replicas=2),
        shared=SharedConfig(tasks=("li*",), most_open=1),
    )
    with control.cluster(config):
        control.deploy(configuration(config))
        assert sorted(control.wait(config)) == [*SHARED, "parts"]
        yield config
        client = Client(config.address, open_tokens(config).present()[0].secret, retries=0)
        asking = Once(client, [_noise_jpeg(1500)] * 12)
        asking.begun.wait()
        time.sleep(0.3)
    asking.join()
    assert len(asking.reply.views) == 12  # what was under way at the end is answered


@pytest.fixture
def client(served) -> Client:
    return Client(f"http://127.0.0.1:{served.port}", open_tokens(served).present()[0].secret)
