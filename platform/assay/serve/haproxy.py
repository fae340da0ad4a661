"""HAProxy in front of the replicas, as Ray Serve runs it: what its configuration lacks is added as it starts.

Ray writes a configuration and runs `RAY_SERVE_HAPROXY_BINARY_PATH` with it, at each change anew. That
is a script here (see `prepare`), which runs this file; it edits the configuration and becomes HAProxy:

    addresses   statistics and metrics on this machine's own alone, TLS where there is a certificate
    requests    one plain id, a time for the head, a body that fits in the buffer kept until it is whole,
                of who bears a token: nobody else shall fill the memory
    refusals    in the form of every other; no list of routes

A request that is whole in the buffer is sent to another replica when one dies under it: judging an
image twice harms nothing. The address is held by who began it (`hold`), so that who asks while no
HAProxy lives waits for the next one. The standard library alone, since it runs outside of the package.
"""

import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

BUFFER_BYTES, HOT_BYTES = 2 << 20, 64 << 20
"""Of a buffer of HAProxy, and of those that it does not give back to the system between two requests, which
takes ten times as long as to pass one on. A larger buffer costs small requests more than long ones gain."""


KEPT_BYTES = BUFFER_BYTES - (64 << 10)
"""Longest body that is kept, to be sent again: what a head leaves of a buffer."""


MOST_CONNECTIONS = 1000
"""Connections at a time; more wait until one ends."""


HEAD_S, IDLE_S = 10, 60
"""Longest time that a head may take to arrive, and that a connection may be idle."""


HEADERS = 256
"""Headers that HAProxy takes, more than a replica, whose refusal says more."""


PLAIN_ID = "^[A-Za-z0-9._-]{1,64}$"


SETTINGS = "settings.json"


HELD = "held.sock"
"""Gives each HAProxy of a folder the socket that it listens on."""


GIVEN_S = 5.0
"""Longest time until it is given."""


NO_PATH = "There is no such path; GET /openapi.json lists them."


ENDING = (401, 405, 408)
"""Refusals that anyone can cause before a body has come: with them the connection ends at once. What was still sent
would hold it for a minute, and a thousand of them would keep all others out."""


REFUSALS = {
    408: "The request took too long.",
    502: "A replica died under the request; try again.",
    503: "The server starts over; try again in a second.",
    504: "There was no answer in time.",
}
"""What HAProxy itself says, by status. What is no request of HTTP has a page of its own, 400, which nothing changes."""


def prepare(folder: Path, binary: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Write what starts HAProxy into a folder that its owner alone can enter; return the environment for Ray.

    Args:
        folder: where; also for the socket that commands HAProxy, so its path must be short.
        binary: HAProxy.
        settings: `host` to listen on, `tokens` (as they are now; None lets everyone in), `certificate` (a PEM file, its key beside it with the suffix .key; "" for none), `body_s` and
            `answer_s` as limits (s), `ports` of statistics, metrics and of Ray's fallback.
    """
    digests = folder / "digests"
    lines = [sha256(f"Bearer {secret}".encode()).hexdigest() for secret in settings["tokens"] or ()]
    digests.write_text("\n".join(lines) + "\n")
    known = "" if settings["tokens"] is None else str(digests)
    kept = {key: value for key, value in settings.items() if key != "tokens"}
    (folder / SETTINGS).write_text(json.dumps({**kept, "binary": binary, "digests": known}))
    script = folder / "haproxy"
    command = [sys.executable, "-I", str(Path(__file__).absolute()), str(folder)]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)
    script.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    script.chmod(0o700)
    statistics, metrics, fallback = settings["ports"]
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        # a line of each request that Python takes apart, for meters of Ray's own beside ours
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": os.environ.get(
            "RAY_SERVE_HAPROXY_METRICS_ENABLED", "0"
        ),
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_MAXCONN": str(MOST_CONNECTIONS),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(IDLE_S),
        # an application refuses before
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(
            int(settings["body_s"] + settings["answer_s"]) + 10
        ),
    }


@contextmanager
def hold(host: str, port: int, folder: Path) -> Iterator[None]:
    """Hold an address for each HAProxy that is begun from a folder; while none lives, connections to it wait for the next.

    Until the first listens they are refused.

    Raises:
        OSError: the address is taken, or is none of this machine.
    """
    kind, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(kind) as held, socket.socket(socket.AF_UNIX) as asked:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
        asked.bind(str(folder / HELD))
        asked.listen()
        giving = threading.Thread(target=_give, args=(held, asked), daemon=True)
        giving.start()
        try:
            yield
        finally:
            asked.shutdown(socket.SHUT_RDWR)
            giving.join()


def _give(held: socket.socket, asked: socket.socket) -> None:
    """Give a socket to each who asks."""
    while True:
        try:
            script = asked.accept()[0]
        except OSError:  # nobody can ask any more
            return
        with script, suppress(OSError):  # one that went away keeps it from no other
            socket.send_fds(script, [b"."], [held.fileno()])


def _take(folder: Path) -> int | None:
    """Return the number of the socket that is held; None where who held it is gone."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(GIVEN_S)
            asking.connect(str(folder / HELD))
            _, held, *_ = socket.recv_fds(asking, 1, 1)
    except OSError:
        return None
    for number in held:
        os.set_inheritable(number, True)
    return held[0] if held else None


def edit(text: str, settings: Mapping[str, Any], held: int | None = None) -> str:
    """Add to a configuration by Ray what it lacks.

    Args:
        text: the configuration.
        settings: as `prepare` takes them, with `digests`.
        held: the socket to listen on; None: one of its own.

    Raises:
        ValueError: it is none as Ray 2.60 writes it.
    """
    address = rf"{settings['host']}:\1"
    if held is not None:
        # Ray begins one before it tells it of any application; who waits meanwhile is not refused
        has_routes = re.search(r"^ +use_backend ", text, re.MULTILINE)
        address = f"fd@{held}" if has_routes else f"abns@assay-{os.getpid()}"
    for pattern, num, replacement in _edits(address, settings):
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if count != num:
            raise ValueError(f"{pattern} is found {count} times in the configuration, not {num}")
    return text


def _edits(address: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield patterns, how often each is there, and what takes its place."""
    certificate = settings["certificate"]
    tls = f" ssl crt {certificate} alpn h2,http/1.1" if certificate else ""
    kept = ["METH_POST", f"{{ req.hdr(content-length) -m int le {KEPT_BYTES} }}"]
    if settings["digests"]:
        digest = "req.hdr(authorization),sha2(256),hex"
        kept.append(f"{{ {digest} -m str -i -f {settings['digests']} }}")
    front = [
        f"bind {address}{tls}",
        "http-request set-var(txn.id) req.fhdr(x-request-id)",
        f"http-request set-var-fmt(txn.id) %[unique-id] unless {{ var(txn.id) -m reg {PLAIN_ID} }}",
        "http-request set-header x-request-id %[var(txn.id)]",
        f"http-request set-header x-forwarded-proto {'https' if certificate else 'http'}",
        f"http-request return {_refusal(404, NO_PATH)} unless {{ path_beg / }}",
        f"http-request wait-for-body time {int(settings['body_s'] * 1000)}ms if {' '.join(kept)}",
        *_end_refused(),
    ]
    defaults = [
        "defaults",
        f"timeout http-request {HEAD_S}s",
        r"unique-id-format %[uuid(),regsub(-,,g)]",
        *[f"http-error {_refusal(status, why)}" for status, why in REFUSALS.items()],
    ]
    yield (
        r"^global$",
        1,
        f"global\n    tune.http.maxhdr {HEADERS}\n    tune.memory.hot-size {HOT_BYTES}",
    )
    yield r"^defaults$", 1, "\n    ".join(defaults)
    yield r"^    timeout http-keep-alive .*\n", 1, f"    timeout http-keep-alive {IDLE_S}s\n"
    yield r"^    errorfile 50[234] .*\n", 3, ""
    yield r"^ +bind (?::|\*:)(\d+)$(?=\n +(?:mode http|stats enable)$)", 2, r"    bind 127.0.0.1:\1"
    yield r"(?<=^frontend http_frontend\n)    bind \S+:(\d+)$", 1, "    " + "\n    ".join(front)
    missing = _refusal(404, NO_PATH)
    yield (
        r"^    http-request return .* if routes$",
        1,
        f"    http-request return {missing} if routes",
    )
    starting = _refusal(503, REFUSALS[503])
    yield (
        r"(?<=^backend default_backend\n)    http-request return .*$",
        1,
        f"    http-request return {starting}",
    )


def _end_refused() -> Iterator[str]:
    """Yield what says a replica's refusal in HAProxy's own name, which ends the connection with it."""
    is_ours = "{ res.hdr(content-type) application/json }"
    any_status = f"{{ status {' '.join(map(str, ENDING))} }}"
    yield f"http-response wait-for-body time 1s if {any_status} {is_ours}"
    # the replica's own are gone when they are said
    yield f"http-response set-var(txn.body) res.body if {any_status} {is_ours}"
    kept = {"authenticate": "www-authenticate", "allow": "allow"}
    for variable, name in kept.items():
        is_there = f"{{ res.hdr({name}) -m found }}"
        yield f"http-response set-var(txn.{variable}) res.hdr({name}) if {any_status} {is_there}"
    headers = " ".join(f"hdr {name} %[var(txn.{variable})]" for variable, name in kept.items())
    for status in ENDING:
        answer = f"{_reply(status, '%[var(txn.body)]', '%[var(txn.id)]')} {headers}"
        yield f"http-response return {answer} if {{ status {status} }} {{ var(txn.body) -m found }}"


def _refusal(status: int, why: str) -> str:
    """Describe an answer; a request that was not read yet has no id but HAProxy's own."""
    name = "%[unique-id]" if status == 408 else "%[var(txn.id)]"
    again = " hdr retry-after 1" if status >= 500 else ""
    return _reply(status, f'{{"error": "{why}", "request": "{name}"}}', name) + again


def _reply(status: int, body: str, name: str) -> str:
    return f"status {status} content-type application/json lf-string '{body}' hdr x-request-id {name} hdr x-content-type-options nosniff"


def main() -> None:
    """Edit the configuration that Ray names, then become HAProxy."""
    folder, *words = sys.argv[1:]
    settings = json.loads(Path(folder, SETTINGS).read_text())
    path = Path(words[words.index("-f") + 1])
    path.write_text(edit(path.read_text(), settings, _take(Path(folder))))
    os.execv(settings["binary"], [settings["binary"], *words])


if __name__ == "__main__":
    main()
