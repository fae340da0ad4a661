"""What the benchmarks of serving share: clients that ask without pause, others' servers, and the processes of each."""

import http.client
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

WARM_S = 1.0
"""Seconds of a load that do not count."""
Asked: TypeAlias = tuple[int, float, bool]
"""Status, seconds, and whether it counts."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(
    port: int, path: str, body: bytes, kind: str, clients: int, seconds: float, out: Any
) -> None:
    """Clients that ask without pause; puts (status, seconds, whether in time) of each request. A process of its own."""
    found: list[tuple[int, float, bool]] = []
    begin = time.monotonic() + WARM_S
    end = begin + seconds

    def one() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.monotonic() < end:
            began = time.perf_counter()
            connection.request("POST", path, body, {"content-type": kind})
            reply = connection.getresponse()
            reply.read()
            counts = begin <= time.monotonic() < end
            found.append((reply.status, time.perf_counter() - began, counts))

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.put(found)


def load(port: int, path: str, body: bytes, kind: str, clients: int, seconds: float) -> list[Asked]:
    """What `columns` are made of."""
    spawned = multiprocessing.get_context("spawn")
    out = spawned.Queue()
    process = spawned.Process(target=ask, args=(port, path, body, kind, clients, seconds, out))
    process.start()
    found: list[Asked] = out.get()
    process.join()
    return found


@dataclass
class Server:
    """What answers for a task: how it is asked, and which processes it is."""

    name: str
    port: int
    path: str
    body: bytes
    kind: str
    processes: Callable[[], set[int]]

    def load(self, clients: int, seconds: float) -> list[Asked]:
        """See `load`."""
        return load(self.port, self.path, self.body, self.kind, clients, seconds)


@contextmanager
def server(name: str, script: str, folder: Path, body: bytes, kind: str) -> Iterator[list[Server]]:
    """Let a script serve a bundle at a port; none where it does not start."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name(script)), str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 90
        while time.monotonic() < end and process.poll() is None:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.5)
        started = Server(name, port, "/predict", body, kind, lambda: below(process.pid))
        yield [started] if process.poll() is None else []
    finally:
        left = below(process.pid)
        process.terminate()
        process.wait()
        send(left, signal.SIGKILL)  # LitServe leaves its workers


@contextmanager
def stopped(servers: Sequence[Server]) -> Iterator[None]:
    """Stop the processes of servers for a while."""
    pids = set().union(*(each.processes() for each in servers))
    try:
        send(pids, signal.SIGSTOP)
        yield
    finally:
        send(pids, signal.SIGCONT)
    time.sleep(0.5)


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to those of these processes that are still there."""
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, number)


def below(root: int) -> set[int]:
    """Return a process and all that it began, or they."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    pids = {root}
    while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= more
    return pids


def serve_processes() -> dict[int, str]:
    """Name the processes of Ray Serve that began below this one: controller, proxies, replicas, HAProxy."""
    named = {}
    for pid in below(os.getpid()):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "haproxy" in words[0] or "Serve" in words[0] or "Proxy" in words[0]:
                named[pid] = words[0].removeprefix("ray::").rpartition("/")[2]
    return named


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Memory that ends with a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1000


def at_rest(seconds: float) -> str:
    """Cores that Ray Serve takes when nobody asks, by process, and each one's memory."""
    named = serve_processes()
    before = {pid: cpu_seconds(pid) for pid in named}
    time.sleep(seconds)
    cores = {pid: (cpu_seconds(pid) - was) / seconds for pid, was in before.items()}
    told = [f"{named[pid]} {cores[pid]:.3f} ({memory_mb(pid):.0f} MB)" for pid in named]
    return f"At rest, over {seconds:.0f} s, Ray Serve takes {sum(cores.values()):.3f} cores: {', '.join(told)}."
