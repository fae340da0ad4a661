"""Serving: this service, LitServe and plain uvicorn with the same bundles, and the bundle alone, by turns on one machine.

Trains the smoke presets of fingerprint and segment where --storage lacks them. LitServe is no
dependency; without it its rows are left out. `--seconds 2 --rounds 1 --requests 400` tries it.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import bench
import cv2
import numpy as np
import ray

from assay.bundle.bundle import Bundle
from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.data.images.decode import probe
from assay.runs import listing
from assay.serve import control
from assay.serve.config import ApplicationConfig, ServeConfig
from assay.serve.contract import View
from assay.serve.deployment import configuration

CLIENTS = (1, 8, 32)
ROUNDS, WARM_S, SECONDS = 3, 2.0, 8.0
"""Everything is asked by turns, so often; what ends in the first seconds of a load does not count."""
TASKS = Path(__file__).parents[2] / "tasks"
Asked: TypeAlias = tuple[int, float, bool]
"""Status, seconds, and whether it counts."""
Row: TypeAlias = tuple[tuple[str, str, str], list[Asked]]
"""Task, what and how many clients, and what was asked."""


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


def load(port: int, path: str, body: bytes, kind: str, clients: int) -> list[Asked]:
    """What `columns` are made of."""
    spawned = multiprocessing.get_context("spawn")
    out = spawned.Queue()
    process = spawned.Process(target=ask, args=(port, path, body, kind, clients, SECONDS, out))
    process.start()
    found: list[Asked] = out.get()
    process.join()
    return found


def columns(rounds: list[list[Asked]]) -> list[str]:
    """Requests per second (median of the rounds, and all), then their 50th, 95th and 99th percentile (ms)."""
    asked = [one for found in rounds for one in found]
    inside = [seconds for status, seconds, counts in asked if status == 200 and counts]
    rates = [sum(counts and status == 200 for status, _, counts in f) / SECONDS for f in rounds]
    others = Counter(status for status, _, _ in asked if status != 200)
    rate = f"{np.median(rates):.1f} ({', '.join(f'{one:.1f}' for one in sorted(rates))})"
    cuts = np.percentile(np.array(inside) * 1000, [50, 95, 99])
    return [rate + (f" {dict(others)}" if others else ""), *(f"{cut:.0f}" for cut in cuts)]


def alone(folder: Path, image: bytes, threads: int = 2) -> list[Asked]:
    """The bundle in this process, a session and a thread per core, from bytes to JSON."""
    bundles = [Bundle(folder, threads=1) for _ in range(threads)]
    begin = time.monotonic() + WARM_S
    end = begin + SECONDS
    taken: list[Asked] = []

    def one(bundle: Bundle) -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            height, width = probe(image)
            form = bundle.predict(image).form("none")
            View(height=height, width=width, **form).model_dump_json()
            counts = begin <= time.monotonic() < end
            taken.append((200, time.perf_counter() - began, counts))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, bundles))
    return taken


def form(image: bytes) -> tuple[bytes, str]:
    mark = uuid4().hex
    head = 'Content-Disposition: form-data; name="image"; filename="i.png"\r\nContent-Type: image/png\r\n\r\n'
    return (
        f"--{mark}\r\n{head}".encode() + image + f"\r\n--{mark}--\r\n".encode(),
        f"multipart/form-data; boundary={mark}",
    )


def other_rows(task: str, folder: Path, image: bytes) -> list[Row]:
    """Two workers of others, with the bundle: LitServe by a form, uvicorn by the body itself."""
    rows = server_rows(task, "LitServe, 2 workers", "lit.py", folder, *form(image))
    return rows + server_rows(task, "uvicorn, 2 workers", "plain.py", folder, image, "image/png")


def server_rows(
    task: str, name: str, script: str, folder: Path, body: bytes, kind: str
) -> list[Row]:
    """Ask a script that serves a bundle at a port; nothing where it does not start."""
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
        if process.poll() is not None:
            return []
        return [((task, name, str(n)), load(port, "/predict", body, kind, n)) for n in CLIENTS]
    finally:
        process.terminate()
        process.wait()


def tell(config: ServeConfig, **fields: Any) -> None:
    """Deploy all tasks with other settings of an application, and wait until they are in force."""
    other = replace(config, app=replace(config.app, **fields))
    front, *_ = configuration(config)["applications"]
    wanted = configuration(other)
    control.deploy(wanted | {"applications": [front, *wanted["applications"][1:]]})
    time.sleep(1)
    control.wait(config)


def service_rows(config: ServeConfig, task: str, image: bytes) -> list[Row]:
    rows: list[Row] = []
    for batch in (1, 4):
        tell(config, batch=batch)
        name = f"Assay, 2 replicas, {'batches of up to 4' if batch == 4 else 'no batches'}"
        path = f"/v1/{task}?mask=none"
        rows += [
            ((task, name, str(n)), load(config.port, path, image, "image/png", n)) for n in CLIENTS
        ]
    return rows


class Requests:
    """Clients that ask as plain curl does: a connection for each request, and no second try."""

    def __init__(self, port: int, image: bytes, num: int, clients: int = 8) -> None:
        self.port, self.image, self.num = port, image, num
        self.asked: list[tuple[float, str, str]] = []
        """When it ended, its status or what failed, and the version that answered."""
        self.todo, self.lock = iter(range(num)), threading.Lock()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        while True:
            with self.lock:
                if next(self.todo, None) is None:
                    return
            status, version = self._one()
            with self.lock:
                self.asked.append((time.monotonic(), status, version))

    def _one(self) -> tuple[str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", "/v1/fingerprint", self.image, {"content-type": "image/png"})
            reply = connection.getresponse()
            content = json.loads(reply.read())
            return str(reply.status), content.get("model", {}).get("version", "")
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__, ""
        finally:
            connection.close()

    def wait(self, share: float) -> None:
        """Wait until so many of them are asked."""
        while len(self.asked) < share * self.num:
            time.sleep(0.05)

    def first_of(self, version: str, since: float) -> float:
        """Wait for the first answer by a version; return the seconds until then."""
        while True:
            with self.lock:
                ends = [end for end, _, by in self.asked if by == version and end > since]
            if ends:
                return ends[0] - since
            time.sleep(0.02)


def actors(part: str) -> list[str]:
    """Names of Ray Serve's living actors in which this stands."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(one["name"] for one in named if part in one["name"])


def rollover(config: ServeConfig, runs: list[Path], image: bytes, num: int) -> str:
    """Ask under two promotions and two killed replicas, then a killed controller, then a killed HAProxy."""
    registry = Registry(config.registry)
    asking = Requests(config.port, image, num)
    faults: dict[str, float] = {}
    lives = []
    for turn, run in enumerate(runs, 1):
        asking.wait(turn / 6)
        faults[f"replica {turn} killed"] = time.monotonic()
        ray.kill(ray.get_actor(actors("::fingerprint#replica")[0], namespace="serve"))
        found = listing.judged(str(run), run.parent)
        began = time.monotonic()
        record = promote(registry, run / "bundle", found.predictions(), "champion", "benchmark")
        lives.append(asking.first_of(record.version, began))
    asking.wait(0.6)
    faults["controller killed"] = time.monotonic()
    ray.kill(ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve"), no_restart=False)
    asking.wait(0.8)
    faults["HAProxy killed"] = time.monotonic()
    for pid, name in serve_processes().items():
        if name == "haproxy":
            os.kill(pid, signal.SIGKILL)
    for thread in asking.threads:
        thread.join()
    counted = Counter(status for _, status, _ in asking.asked)
    failed = [
        f"{status} {end - max(at for at in faults.values() if at <= end):.1f} s after {name}"
        for end, status, _ in asking.asked
        if status != "200" and end > min(faults.values())
        for name in [max((at, name) for name, at in faults.items() if at <= end)[1]]
    ]
    versions = {version for _, _, version in asking.asked if version}
    return (
        f"{num} requests of 8 clients, each once and on a connection of its own, under two promotions, two killed replicas, a killed controller and a killed HAProxy: "
        f"{', '.join(f'{status}: {n}' for status, n in counted.items())}; {len(versions)} versions answered. Failed: {'; '.join(failed[:12]) or 'none'}. "
        f"From the promotion to the first answer by the new bundle: {', '.join(f'{s:.1f} s' for s in lives)}; the registry is looked into every 2 s."
    )


def serve_processes() -> dict[int, str]:
    """Name the processes of Ray Serve that began below this one: controller, proxies, replicas, HAProxy."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    below, named = {os.getpid()}, {}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    for pid in below:
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


def smoke_runs(storage: Path) -> tuple[list[listing.RunSummary], listing.RunSummary]:
    """Two runs of fingerprint and one of segment, trained where they are missing."""
    for task in ("fingerprint", "segment"):
        command = [sys.executable, str(TASKS / f"{task}.py"), "--preset", "smoke", "--workers", "0"]
        subprocess.run([*command, "--storage", str(storage)], check=True, stdout=subprocess.DEVNULL)
    runs = [run for run in listing.read_all(storage) if list(run.folder.glob("bundle/*.onnx"))]
    prints = [run for run in runs if run.task == "fingerprint" and run.result]
    return prints, next(run for run in runs if run.task == "segment" and run.result)


def picture(run: listing.RunSummary, side: int) -> bytes:
    """The golden image of a run's bundle, so many times larger, as PNG."""
    golden = cv2.imread(str(next((run.folder / "bundle").glob("golden.*"))))
    return cv2.imencode(".png", cv2.resize(golden, None, fx=side, fy=side))[1].tobytes()


def all_rows(
    config: ServeConfig, runs: dict[str, listing.RunSummary], images: dict[str, bytes]
) -> Iterator[Row]:
    """Every row but the rollover's; the service runs while the later ones are asked for."""
    for task, run in runs.items():
        folder = run.folder / "bundle"
        yield (task, "the bundle alone, 2 threads", "-"), alone(folder, images[task])
        yield from other_rows(task, folder, images[task])
    with control.cluster(config):
        control.deploy(configuration(config))
        control.wait(config)
        for task, image in images.items():
            yield from service_rows(config, task, image)
        tell(config, variant="int8", batch=1)
        asked = load(config.port, "/v1/segment?mask=none", images["segment"], "image/png", 8)
        yield ("segment", "Assay, int8, no batches", "8"), asked


def main() -> None:
    global ROUNDS, SECONDS
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    ROUNDS, SECONDS = given.rounds, given.seconds
    prints, masks = smoke_runs(given.storage)
    registry = Registry(str(given.storage / f"registry-{uuid4().hex[:6]}"))
    runs = {"fingerprint": prints[0], "segment": masks}
    images = {"fingerprint": picture(prints[0], 1), "segment": picture(masks, 2)}
    for run in runs.values():
        promote(registry, run.folder / "bundle", run.predictions(), "champion")
    os.environ["ASSAY_TOKEN"] = ""
    app = ApplicationConfig(cpus=0.5, min_replicas=2, max_replicas=2, queue=128, batch=1)
    config = ServeConfig(registry=registry.address, port=free_port(), open=True, app=app)
    found: dict[tuple[str, str, str], list[list[Asked]]] = {}
    for _ in range(ROUNDS):
        for row, asked in all_rows(config, runs, images):
            found.setdefault(row, []).append(asked)
    rows = sorted(([*row, *columns(each)] for row, each in found.items()), key=lambda row: row[0])
    began = time.monotonic()
    with control.cluster(config):
        control.deploy(configuration(config))
        control.wait(config)
        start = f"From nothing to ready: {time.monotonic() - began:.0f} s."
        time.sleep(5)
        rest = at_rest(4 * SECONDS)
        folders = [prints[1].folder, prints[0].folder]
        part = rollover(config, folders, images["fingerprint"], given.requests)
    sizes = ", ".join("{} {}x{}".format(t, *reversed(probe(i))) for t, i in images.items())
    text = (
        f"The smoke presets' bundles, from PNG bytes to JSON: {sizes}. Every row {ROUNDS} times {SECONDS:.0f} s under a load that was there before, by turns (median rate, and each); the clients share the two cores "
        "with what they ask. Goals on two cores: fingerprint 1.05 of LitServe's rate and .75 of the bundle's alone at 8 and 32 clients, segment 1.05 and .95; p99 within 2 times p50 at 8 clients; at rest .1 core."
    )
    header = ["task", "what", "clients", "requests/s", "p50 (ms)", "p95", "p99"]
    bench.write(__file__, text, bench.table(header, rows), f"{start} {rest}", part)


if __name__ == "__main__":
    main()
