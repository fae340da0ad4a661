"""A cluster of several nodes on this machine, each a session of processes that is killed whole, as a machine is lost."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ray.util import get_node_ip_address

ROOT = Path(__file__).parents[2]
free_ports = runpy.run_path(str(ROOT / "cluster" / "local_autoscaling.py"))["free_ports"]

START_S = 240
"""Seconds within which a node is up, on a machine that others use too."""


def end_all(session: int) -> None:
    """End the processes of one session that this process has begun, at once."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.getsid(int(entry.name)) == session:
                    os.kill(int(entry.name), signal.SIGKILL)


@dataclass
class Nodes:
    """What runs of a cluster, by name."""

    folder: Path
    environment: dict[str, str]
    """In which commands find it."""
    ports: list[int]
    store_bytes: int = 150_000_000
    """Object store of each node."""
    within: dict[str, list[str]] = field(default_factory=dict)
    """Words before a node's command, by its name, such as put it into namespaces of its own."""
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, name: str, num_cpus: int) -> None:
        """Start a node, the head where it is named so, and wait until it is up."""
        port, dashboard, client = self.ports
        words = f'--address={self.environment["RAY_ADDRESS"]} --resources={{"{name}":1}}'
        if name == "head":
            words = f"--head --port={port} --dashboard-port={dashboard} --ray-client-server-port={client}"
            words += f" --temp-dir={self.folder}"
        words += f" --block --num-cpus={num_cpus} --object-store-memory={self.store_bytes}"
        words += " --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0"
        log = self.folder / f"{name}-{time.time_ns()}.log"
        own = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        with log.open("wb") as out:
            node = subprocess.Popen(
                [*self.within.get(name, []), "ray", "start", *words.split()],
                env=own,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.running[name] = node
        end = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)

    def kill(self, name: str) -> None:
        """Lose a node with all that runs on it."""
        node = self.running.pop(name)
        end_all(node.pid)
        node.wait()


@contextmanager
def cluster(store_bytes: int = 150_000_000, address: str = "") -> Iterator[Nodes]:
    """Make a cluster that has no node yet, its head at an address (this machine's); whatever was started ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="assay-", dir="/tmp"))  # sockets need short names
    ports = free_ports(3)
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}",
        "PYTHONPATH": str(ROOT / "platform"),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_raylet_start_wait_time_s": "180",
        "RAY_ADDRESS": f"{address or get_node_ip_address()}:{ports[0]}",  # type: ignore[no-untyped-call]
    }
    nodes = Nodes(folder, own, ports, store_bytes)
    try:
        yield nodes
    finally:
        for name in list(nodes.running):
            nodes.kill(name)
        shutil.rmtree(folder, ignore_errors=True)
