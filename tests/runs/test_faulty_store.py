"""An object store that drops connections, is slow, refuses with 503 and loses its own answers: nothing is lost, or it is said."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from assay.data.images import decode
from assay.data.images.store import Store
from assay.errors import RunError
from assay.runs.folder import Run
from assay.runs.remote import folder_of, open_storage, pull

FAULTS = ("drop", "slow", "503", "lose")


class _Faulty(BaseHTTPRequestHandler):
    """Passes requests on to a server, but for those that are to fail."""

    protocol_version = "HTTP/1.1"

    def __init__(
        self, *arguments: object, server_at: str, fault: str, is_spared: Callable[[str], bool]
    ) -> None:
        self.server_at, self.fault, self.is_spared = server_at, fault, is_spared
        super().__init__(*arguments)

    def log_message(self, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        body = self.body()
        request = f"{self.command} {self.path}"
        fault = "" if self.is_spared(request) else self.fault
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(0.3)
        if fault == "503":
            self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        connection = http.client.HTTPConnection(self.server_at)
        is_chunked = "transfer-encoding" in self.headers
        sent = iter([body]) if is_chunked else body
        connection.request(
            self.command, self.path, sent, dict(self.headers), encode_chunked=is_chunked
        )
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        if fault == "lose":  # done, but the client does not hear of it
            self.close_connection = True
            return
        self.answer(reply.status, dict(reply.getheaders()), content)

    def body(self) -> bytes:
        if "transfer-encoding" not in self.headers:
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 (http.server's names)


@pytest.fixture
def faulty(s3: Callable[[str], str], s3_server: str) -> Iterator[Callable[..., str]]:
    """A function that makes the address of a folder behind a store that fails each request once, or always."""
    with ExitStack() as stack:

        def address(name: str, fault: str, always: bool = False) -> str:
            seen: Counter[str] = Counter()

            def is_spared(request: str) -> bool:
                seen[request] += 1
                return seen[request] > 1 and not always

            handler = partial(_Faulty, server_at=s3_server, fault=fault, is_spared=is_spared)
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return s3(name).replace(s3_server, f"127.0.0.1:{server.server_port}")

        yield address


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_on_a_store_that_fails_each_request_once_is_whole(
    fault: str, faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = faulty("runs", fault)
    contents = {f"part-{i}.txt": f"{i}" * (1000 * i) for i in range(3)}
    monkeypatch.setenv("HOME", str(tmp_path / "first"))
    run = Run(folder_of(address) / "toy-1")
    with run.lease():
        for name, content in contents.items():
            (run.folder / name).write_text(content)
        run.note(state="finished", task="toy")
    monkeypatch.setenv("HOME", str(tmp_path / "second"))
    copy = folder_of(address) / "toy-1"
    pull(copy)
    assert {name: (copy / name).read_text() for name in contents} == contents
    assert Run(copy).state == "finished"


@pytest.mark.parametrize("fault", FAULTS)
def test_pixels_on_a_store_that_fails_each_request_once_are_those_that_were_stored(
    fault: str, faulty, tmp_path: Path
) -> None:
    address = faulty("store", fault)
    for i in range(4):
        decode.write_png(tmp_path / f"{i}.png", np.full((60, 60, 3), 40 * i, np.uint8))
        Store(address, str(tmp_path / "writer")).build(f"{i:032x}", tmp_path / f"{i}.png")
    reader = Store(address, str(tmp_path / "reader"))
    assert reader.missing([f"{i:032x}" for i in range(5)]) == [f"{4:032x}"]
    for i in range(4):
        assert (reader.open(f"{i:032x}").pixels == 40 * i).all()


@pytest.mark.parametrize("fault", ["drop", "503"])
def test_a_store_that_fails_always_is_said_in_a_sentence_in_time(fault: str, faulty) -> None:
    began = time.monotonic()
    with pytest.raises(RunError, match="cannot be used"):
        open_storage(faulty("runs", fault, always=True))
    assert time.monotonic() - began < 60
