"""The command that says on one page what of a cluster fits: `assay doctor`.

Every node that is up looks at itself, in a task that takes no CPU; what they say is compared here.
"""

import os
import platform
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from assay.cluster import nodes
from assay.errors import AssayError, ResourceError
from assay.storage import reach

TIMEOUT_S = 120.0
"""Seconds for all nodes to answer."""

MOST_SKEW_S = 2.0
"""Seconds that clocks may differ: leases of runs are renewed within tens of seconds."""

PACKAGES = ("ray", "torch", "assay")

LISTENING = "0A"
"""State of a socket, in the kernel's table."""

RAY_PORTS = {8265: "dashboard and jobs", 6379: "GCS", 10001: "Ray's client"}
"""Ports that run code for whoever reaches them, where no token is asked for."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a node says of itself."""

    name: str
    python: str
    versions: dict[str, str]
    """By package; assay as it is installed there, whatever was sent."""
    gpus: int
    """GPUs that the driver sees."""
    told_gpus: int
    """GPUs that Ray was told of."""
    shm_gb: float
    store_gb: float
    """Ray's object store, which should lie in /dev/shm."""
    clock_s: float
    """Its time when it had looked (seconds since 1970)."""
    storage: str
    """Why the storage cannot be read and written; nothing where it can."""
    listening: tuple[int, ...]
    """Ports open to other machines."""
    skew_s: float = 0.0
    """How far its clock is off that of who asked, beyond what the time on the way explains."""


@dataclass(frozen=True)
class Finding:
    """One line of the page."""

    what: str
    is_good: bool
    text: str


def doctor(storage: str = "runs") -> None:
    """Say what of the cluster of RAY_ADDRESS, or of this machine, fits; the exit code is 1 where something does not.

    Args:
        storage: Folder or URI of the runs, or of the store; as every node is to see it.
    """
    from assay.cluster.session import ray_session

    with ray_session():
        probes, silent = probe_all(storage)
        growth, most = nodes.growth(), nodes.maximum()
        grows = "" if growth is None else "; it can grow"
        grows += f" to {nodes.say(most)}" if most else ""
        print(f"{len(probes) + len(silent)} nodes are up, {nodes.say(nodes.up())}{grows}")
        diagnosis = [*findings(probes, silent, storage), _token()]
    for finding in diagnosis:
        print(f"  {'ok ' if finding.is_good else 'NOT'}  {finding.what:9s} {finding.text}")
    if not all(finding.is_good for finding in diagnosis):
        raise SystemExit(1)


def probe_all(storage: str) -> tuple[list[Probe], list[str]]:
    """Let every node look at itself; returns what they say, and the names of those that did not answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    files, root = reach(storage)
    mark = f"{root}/.doctor-{uuid4().hex}"
    reason = _try_storage(storage, mark, "")
    if reason:
        raise ResourceError(f"{storage} cannot be written from here ({reason}); name another.")
    pending: dict[Any, str] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(probe).options(num_cpus=0, scheduling_strategy=pinned)
            has = node["Resources"]
            told = int(has.get("GPU", 0)), has.get("object_store_memory", 0.0) / 1e9
            name = node["NodeManagerAddress"]
            pending[look.remote(name, storage, mark, *told)] = name
    began, probes = time.time(), []
    while pending and (left_s := began + TIMEOUT_S - time.time()) > 0:
        for answered in ray.wait([*pending], timeout=left_s)[0]:
            probes.append(_with_skew(ray.get(answered), began, time.time()))
            del pending[answered]
    files.delete_file(mark)
    return probes, [*pending.values()]


def _with_skew(probe: Probe, asked_s: float, heard_s: float) -> Probe:
    """Note how far a node's clock lies outside the time between question and answer."""
    early, late = min(0.0, probe.clock_s - asked_s), max(0.0, probe.clock_s - heard_s)
    return replace(probe, skew_s=early or late)


def probe(name: str, storage: str, mark: str, told_gpus: int, store_gb: float) -> Probe:
    """Look at this node.

    Args:
        name: its address.
        storage: folder or URI that it is to read and write.
        mark: file there that the asking process wrote.
        told_gpus: GPUs that Ray was told of.
        store_gb: size of Ray's object store.
    """
    return Probe(
        name=name,
        python=platform.python_version(),
        versions={package: _version(package) for package in PACKAGES},
        gpus=_count_gpus(),
        told_gpus=told_gpus,
        shm_gb=shutil.disk_usage("/dev/shm").total / 1e9 if Path("/dev/shm").is_dir() else 0.0,
        store_gb=store_gb,
        storage=_try_storage(storage, mark, name),
        listening=tuple(sorted(_listening())),
        clock_s=time.time(),
    )


def findings(probes: Sequence[Probe], silent: Sequence[str], storage: str) -> Iterator[Finding]:
    """Compare what nodes say of themselves.

    Args:
        probes: what they say.
        silent: names of nodes that did not answer.
        storage: what they were to read and write.
    """
    if silent:
        yield Finding("nodes", False, f"{', '.join(silent)} did not answer in {TIMEOUT_S:g} s")
    yield _alike("Python", {probe.name: probe.python for probe in probes})
    for package in PACKAGES:
        yield _alike(package, {probe.name: probe.versions[package] for probe in probes})
    wrong = [
        f"{p.name} has {p.gpus}, Ray says {p.told_gpus}" for p in probes if p.gpus != p.told_gpus
    ]
    num = sum(probe.gpus for probe in probes)
    yield Finding("GPUs", not wrong, "; ".join(wrong) or f"{num}, as Ray says")
    bad = [f"{probe.name}: {probe.storage}" for probe in probes if probe.storage]
    yield Finding("storage", not bad, "; ".join(bad) or f"{storage} is read and written by all")
    late = [f"{p.name} by {p.skew_s:+.1f} s" for p in probes if abs(p.skew_s) > MOST_SKEW_S]
    yield Finding("clock", not late, f"off: {', '.join(late)}" if late else "none is off")
    small = [
        f"{p.name} has {p.shm_gb:.1f} GB for an object store of {p.store_gb:.1f}"
        for p in probes
        if p.shm_gb < p.store_gb
    ]
    least = min(probe.shm_gb for probe in probes)
    yield Finding("/dev/shm", not small, "; ".join(small) or f"{least:.1f} GB or more")
    ports = {port: probe.name for probe in probes for port in probe.listening if port in RAY_PORTS}
    places = [f"{port} ({RAY_PORTS[port]}) on {name}" for port, name in ports.items()]
    closed = "none of Ray's known ports is open to other machines"
    text = f"open to whoever reaches the machine: {', '.join(places)}" if places else closed
    yield Finding("ports", not places or has_token(), text)


def _alike(what: str, values: dict[str, str]) -> Finding:
    by_value: dict[str, list[str]] = {}
    for name, value in values.items():
        by_value.setdefault(value, []).append(name)
    if len(by_value) == 1:
        return Finding(what, True, f"{next(iter(by_value)) or 'not installed'} on all")
    kinds = [f"{value or 'none'} on {', '.join(names)}" for value, names in by_value.items()]
    return Finding(what, False, f"differs: {'; '.join(kinds)}")


def has_token() -> bool:
    """Tell whether Ray asks for a token here."""
    from ray._private.authentication import authentication_utils

    return bool(authentication_utils.is_token_auth_enabled())


def _token() -> Finding:
    """Ask the dashboard without a token, and look who may read the token's file."""
    from ray._private.worker import get_dashboard_url

    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if path.exists() and path.stat().st_mode & 0o077:
        return Finding("token", False, f"{path} can be read by others; chmod 600 it")
    url = get_dashboard_url()  # type: ignore[no-untyped-call]
    if url:
        try:
            with urllib.request.urlopen(f"http://{url}/api/version", timeout=10):
                return Finding(
                    "token",
                    False,
                    f"{url} runs jobs of whoever reaches it, without a token; see cluster/README.md",
                )
        except urllib.error.HTTPError as refused:
            return Finding("token", refused.code in (401, 403), f"{url} asks for it")
        except OSError:
            pass  # no dashboard, or none that is reached from here
    text = "Ray asks for it" if has_token() else "Ray asks for none; see cluster/README.md"
    return Finding("token", has_token(), text)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _count_gpus() -> int:
    """Count what NVIDIA's driver sees; Ray hides GPUs from tasks that ask for none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=60)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _try_storage(storage: str, mark: str, name: str) -> str:
    """Read the asking process's mark and write one; returns why that fails.

    Args:
        storage: folder or URI.
        mark: path of the mark in it.
        name: of this node; none: it is the asking process, which makes the mark.
    """
    try:
        files, root = reach(storage)
        if name:
            with files.open_input_stream(mark) as opened:
                opened.read()
        elif files.type_name == "local":
            files.create_dir(root)
        path = f"{mark}-{name}" if name else mark
        with files.open_output_stream(path) as opened:
            opened.write(b"assay doctor")
        if name:
            files.delete_file(path)
    except (OSError, AssayError) as error:
        if name and isinstance(error, FileNotFoundError):
            return (
                "what another node wrote there is not there; it is no folder that all nodes share"
            )
        return " ".join(str(error).split())[:200]
    return ""


def _listening(folder: Path = Path("/proc/net")) -> set[int]:
    """Return the ports of this machine that listen on more than its own loopback, as Linux tells."""
    ports = set()
    for table, loopback in (("tcp", "0100007F"), ("tcp6", "0" * 24 + "01000000")):
        rows = (folder / table).read_text().splitlines()[1:] if (folder / table).exists() else []
        for _, local, _, state, *_ in map(str.split, rows):
            host, port = local.split(":")
            if state == LISTENING and host != loopback:
                ports.add(int(port, 16))
    return ports
