"""Serving: this service, LitServe with the same bundles, and the bundle alone, by turns on one machine.

Trains the smoke presets of fingerprint and segment where --storage lacks them. LitServe is no
dependency; without it its rows are left out.
"""

import argparse
import http.client
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import bench
import cv2
import numpy as np
import ray

from assay import listing
from assay.bundle import Bundle
from assay.data.image import probe
from assay.registry import Registry, promote
from assay.serving import cluster
from assay.serving.client import Client
from assay.serving.config import ApplicationConfig, ServeConfig, configuration
from assay.serving.reply import view_of

CLIENTS = (1, 8, 32)
SECONDS = 10.0
TASKS = Path(__file__).parents[2] / "tasks"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(
    port: int, path: str, body: bytes, kind: str, clients: int, seconds: float, out: Any
) -> None:
    """Clients that ask without pause; puts (status, seconds, whether in time) of each request. A process of its own."""
    found: list[tuple[int, float, bool]] = []
    end = time.monotonic() + seconds

    def one() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.monotonic() < end:
            began = time.perf_counter()
            connection.request("POST", path, body, {"content-type": kind})
            reply = connection.getresponse()
            reply.read()
            found.append((reply.status, time.perf_counter() - began, time.monotonic() < end))

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.put(found)


def load(port: int, path: str, body: bytes, kind: str, clients: int) -> list[str]:
    """Columns of a table: requests per second, and the 50th, 95th and 99th percentile (ms)."""
    spawned = multiprocessing.get_context("spawn")
    out = spawned.Queue()
    process = spawned.Process(target=ask, args=(port, path, body, kind, clients, SECONDS, out))
    process.start()
    found = out.get()
    process.join()
    good = [(seconds, inside) for status, seconds, inside in found if status == 200]
    return columns(good, Counter(status for status, _, _ in found))


def columns(good: list[tuple[float, bool]], statuses: Counter) -> list[str]:
    cuts = np.percentile(np.array([seconds for seconds, _ in good]) * 1000, [50, 95, 99])
    num = sum(inside for _, inside in good)  # what ends later took time that is not counted
    others = {status: num for status, num in statuses.items() if status != 200}
    rate = f"{num / SECONDS:.1f}" + (f" ({others})" if others else "")
    return [rate, *(f"{cut:.0f}" for cut in cuts)]


def alone(folder: Path, image: bytes, threads: int = 2) -> list[str]:
    """The bundle in this process, a session and a thread per core, from bytes to JSON."""
    bundles = [Bundle(folder, threads=1) for _ in range(threads)]
    end = time.monotonic() + SECONDS
    taken: list[tuple[float, bool]] = []

    def one(bundle: Bundle) -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            view_of(bundle.predict(image), probe(image), "none").model_dump_json()
            taken.append((time.perf_counter() - began, time.monotonic() < end))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, bundles))
    return columns(taken, Counter())


def form(image: bytes) -> tuple[bytes, str]:
    mark = uuid4().hex
    head = 'Content-Disposition: form-data; name="image"; filename="i.png"\r\nContent-Type: image/png\r\n\r\n'
    return (
        f"--{mark}\r\n{head}".encode() + image + f"\r\n--{mark}--\r\n".encode(),
        f"multipart/form-data; boundary={mark}",
    )


def lit_rows(task: str, folder: Path, image: bytes) -> list[list[str]]:
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("lit.py")), str(folder), str(port)]
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
        body, kind = form(image)
        return [
            [task, "LitServe, 2 workers", str(n), *load(port, "/predict", body, kind, n)]
            for n in CLIENTS
        ]
    finally:
        process.terminate()
        process.wait()


def tell(config: ServeConfig, **fields: Any) -> None:
    """Deploy all tasks with other settings of an application, and wait until they are in force."""
    other = replace(config, app=replace(config.app, **fields))
    front, *_ = configuration(config)["applications"]
    wanted = configuration(other)
    cluster.deploy(wanted | {"applications": [front, *wanted["applications"][1:]]})
    time.sleep(1)
    cluster.wait()


def service_rows(config: ServeConfig, task: str, image: bytes) -> list[list[str]]:
    rows = []
    for batch in (1, 4):
        tell(config, batch=batch)
        name = f"Assay, 2 replicas, {'batches of up to 4' if batch == 4 else 'no batches'}"
        path = f"/v1/{task}?mask=none"
        rows += [
            [task, name, str(n), *load(config.port, path, image, "image/png", n)] for n in CLIENTS
        ]
    return rows


def rollover(
    config: ServeConfig, client: Client, runs: list[Path], image: bytes, num: int
) -> list[str]:
    """Requests under two promotions and two killed replicas; counts, and seconds until live."""
    registry = Registry(config.registry)
    statuses: Counter = Counter()
    versions: Counter = Counter()
    lock = threading.Lock()
    todo = iter(range(num))
    seen: dict[str, float] = {}

    def one() -> None:
        while True:
            with lock:
                if next(todo, None) is None:
                    return
            try:
                reply = client.judge("fingerprint", image)
            except Exception as error:
                with lock:
                    statuses[str(error)[:60]] += 1
                continue
            with lock:
                statuses["200"] += 1
                versions[reply.model.version] += 1
                seen.setdefault(reply.model.version, time.monotonic())

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    lives = []
    for run in runs:
        while True:
            with lock:
                if statuses.total() >= num * (len(lives) + 1) / 4:
                    break
            time.sleep(0.1)
        named = [
            one["name"]
            for one in ray.util.list_named_actors(all_namespaces=True)
            if "::fingerprint#replica" in one["name"]
        ]
        ray.kill(ray.get_actor(named[0], namespace="serve"))
        found = listing.judged(str(run), run.parent)
        with lock:
            seen.clear()
        began = time.monotonic()
        record = promote(registry, run / "bundle", found.predictions(), "champion", "benchmark")
        while record.version not in seen:
            time.sleep(0.02)
        lives.append(seen[record.version] - began)
    for thread in threads:
        thread.join()
    said = ", ".join(f"{status}: {n}" for status, n in statuses.items())
    return [
        f"{num} requests of 8 clients (with retries), without batches, under two promotions and two killed replicas: {said}; {len(versions)} versions answered. "
        f"From the promotion to the first answer by the new bundle: {', '.join(f'{s:.1f} s' for s in lives)}; the registry is looked into every 2 s."
    ]


def smoke_runs(storage: Path) -> tuple[list[listing.Listed], listing.Listed]:
    """Two runs of fingerprint and one of segment, trained where they are missing."""
    for task in ("fingerprint", "segment"):
        command = [sys.executable, str(TASKS / f"{task}.py"), "--preset", "smoke", "--workers", "0"]
        subprocess.run([*command, "--storage", str(storage)], check=True, stdout=subprocess.DEVNULL)
    runs = [run for run in listing.read_all(storage) if list(run.folder.glob("bundle/*.onnx"))]
    prints = [run for run in runs if run.task == "fingerprint" and run.result]
    return prints, next(run for run in runs if run.task == "segment" and run.result)


def picture(run: listing.Listed, side: int) -> bytes:
    """The golden image of a run's bundle, so many times larger, as PNG."""
    golden = cv2.imread(str(next((run.folder / "bundle").glob("golden.*"))))
    return cv2.imencode(".png", cv2.resize(golden, None, fx=side, fy=side))[1].tobytes()


def all_rows(
    config: ServeConfig, runs: dict[str, listing.Listed], images: dict[str, bytes]
) -> Iterator[list[str]]:
    """Every row but the rollover's; the service runs while the later ones are asked for."""
    for task, run in runs.items():
        folder = run.folder / "bundle"
        yield [task, "the bundle alone, 2 threads", "-", *alone(folder, images[task])]
        yield from lit_rows(task, folder, images[task])
    with cluster.cluster(config):
        cluster.deploy(configuration(config))
        cluster.wait()
        for task, image in images.items():
            yield from service_rows(config, task, image)
        tell(config, variant="int8", batch=1)
        asked = load(config.port, "/v1/segment?mask=none", images["segment"], "image/png", 8)
        yield ["segment", "Assay, int8, no batches", "8", *asked]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    prints, masks = smoke_runs(given.storage)
    registry = Registry(str(given.storage / f"registry-{uuid4().hex[:6]}"))
    runs = {"fingerprint": prints[0], "segment": masks}
    images = {"fingerprint": picture(prints[0], 1), "segment": picture(masks, 2)}
    for run in runs.values():
        promote(registry, run.folder / "bundle", run.predictions(), "champion")
    os.environ["ASSAY_TOKEN"] = ""
    app = ApplicationConfig(cpus=0.5, min_replicas=2, max_replicas=2, queue=128, batch=1)
    config = ServeConfig(registry=registry.place, port=free_port(), open=True, app=app)
    rows = sorted(all_rows(config, runs, images), key=lambda row: row[0])
    with cluster.cluster(config) as address:
        cluster.deploy(configuration(config))
        cluster.wait()
        folders = [prints[1].folder, prints[0].folder]
        client = Client(address, retries=8)
        parts = rollover(config, client, folders, images["fingerprint"], given.requests)
    sizes = ", ".join("{} {}x{}".format(t, *reversed(probe(i))) for t, i in images.items())
    text = (
        f"The smoke presets' bundles, from PNG bytes to JSON: {sizes}. Every row {SECONDS:.0f} s; the clients share the two cores "
        "with what they ask. Goal for graphs of 50 ms and more (segment): LitServe's rate, .85 of the bundle's alone, p99 within 3 times p50. "
        "On two cores the goals are missed: at rest the processes of Ray and Ray Serve take 0.2 to 0.3 cores, and of a fingerprint's request the front takes 10 ms and the proxy 8 ms of CPU (by /proc, one application, 2026-11-25)."
    )
    header = ["task", "what", "clients", "requests/s", "p50 (ms)", "p95", "p99"]
    bench.write(__file__, text, bench.table(header, rows), *parts)


if __name__ == "__main__":
    main()
