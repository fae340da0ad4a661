"""Serving: this service, LitServe and plain uvicorn with the same bundles, and the bundle alone, by turns on one machine.

All stand side by side, and who is not asked is stopped (SIGSTOP), so that a turn follows another within seconds: the
machine's own pace moves by a tenth in minutes, and ratios are of neighbouring turns. Trains the smoke presets of fingerprint and segment where --storage lacks
them. LitServe is no dependency; without it its rows are left out. `--seconds 2 --rounds 1 --requests 400` tries it.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import bench
import cv2
import numpy as np
from asking import WARM_S, Asked, Server, at_rest, below, free_port, server, stopped
from rollover import rollover

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
ROUNDS, SECONDS = 5, 3.0
"""Everything is asked by turns, so often."""
ALONE = "the bundle alone, 2 threads"
TASKS = Path(__file__).parents[2] / "tasks"
Row: TypeAlias = tuple[tuple[str, str, str], list[Asked]]
"""Task, what and how many clients, and what was asked."""


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


def tell(config: ServeConfig, **fields: Any) -> None:
    """Deploy all tasks with other settings of an application, and wait until they are in force."""
    other = replace(config, app=replace(config.app, **fields))
    front, *_ = configuration(config)["applications"]
    wanted = configuration(other)
    control.deploy(wanted | {"applications": [front, *wanted["applications"][1:]]})
    time.sleep(1)
    control.wait(config)


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
    """Every row but the rollover's, `ROUNDS` times."""
    with ExitStack() as stack:
        servers: dict[str, list[Server]] = {task: [] for task in runs}
        for task, run in runs.items():
            folder, image = run.folder / "bundle", images[task]
            for one in (
                server("LitServe, 2 workers", "lit.py", folder, *form(image)),
                server("uvicorn, 2 workers", "plain.py", folder, image, "image/png"),
            ):
                servers[task] += stack.enter_context(one)
        others = [each for of in servers.values() for each in of]
        stack.enter_context(control.cluster(config))
        control.deploy(configuration(config))
        control.wait(config)

        def processes() -> set[int]:
            """What began below this process and belongs to none of the others: Ray."""
            return below(os.getpid()) - {os.getpid()}.union(*(each.processes() for each in others))

        for task, image in images.items():
            path = f"/v1/{task}?mask=none"
            name = "Assay, 2 replicas, batches of up to 4"
            servers[task].append(Server(name, config.port, path, image, "image/png", processes))
        for _ in range(ROUNDS):
            yield from one_round(config, runs, images, servers)


def one_round(
    config: ServeConfig,
    runs: dict[str, listing.RunSummary],
    images: dict[str, bytes],
    servers: dict[str, list[Server]],
) -> Iterator[Row]:
    """Ask each in turn; then this service with other settings."""
    everyone = [each for of in servers.values() for each in of]
    service = servers["segment"][-1]
    others = [each for each in everyone if each.port != service.port]
    for task, run in runs.items():
        with stopped([*others, service]):
            yield (task, ALONE, "-"), alone(run.folder / "bundle", images[task])
        for clients in CLIENTS:
            for each in servers[task]:
                with stopped([o for o in [*others, service] if o.port != each.port]):
                    time.sleep(0.5)
                    yield (task, each.name, str(clients)), each.load(clients, SECONDS)
    tell(config, batch=1)
    with stopped(others):
        for task in runs:
            [own] = [each for each in servers[task] if each.port == service.port]
            yield (task, "Assay, 2 replicas, no batches", "8"), own.load(8, SECONDS)
    tell(config, variant="int8", batch=1)
    with stopped(others):
        yield ("segment", "Assay, int8, no batches", "8"), service.load(8, SECONDS)
    tell(config)


def ratios(found: dict[tuple[str, str, str], list[list[Asked]]]) -> list[list[str]]:
    """Compare this service with LitServe and with the bundle alone, round by round: median, least and most."""
    rates = {
        row: [sum(counts and status == 200 for status, _, counts in each) for each in rounds]
        for row, rounds in found.items()
    }
    lines = []
    for (task, name, clients), rate in sorted(rates.items()):
        if name.startswith("Assay") and "up to" in name:
            line = [task, clients]
            for other, at in (("LitServe, 2 workers", clients), (ALONE, "-")):
                pairs = zip(rate, rates.get((task, other, at), []), strict=False)
                of = sorted(own / max(theirs, 1) for own, theirs in pairs)
                line.append(f"{np.median(of):.2f} ({of[0]:.2f} to {of[-1]:.2f})" if of else "-")
            lines.append(line)
    return lines


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
    app = ApplicationConfig(cpus=0.5, min_replicas=2, max_replicas=2, queue=128)
    config = ServeConfig(registry=registry.address, port=free_port(), open=True, app=app)
    found: dict[tuple[str, str, str], list[list[Asked]]] = {}
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
        f"The smoke presets' bundles, from PNG bytes to JSON: {sizes}. Every row {ROUNDS} times {SECONDS:.0f} s under a load that was there before, by turns within seconds, all others stopped meanwhile (median rate, and each); "
        "the clients share the two cores with what they ask. Goals on two cores: fingerprint 1.05 of LitServe's rate and .75 of the bundle's alone at 8 and 32 clients, segment 1.05 and .95; p99 within 2 times p50 at 8 clients; at rest .1 core."
    )
    header = ["task", "what", "clients", "requests/s", "p50 (ms)", "p95", "p99"]
    compared = ["task", "clients", "Assay of LitServe", "Assay of the bundle alone"]
    beside = "Neighbouring turns beside each other (median of the rounds, least and most):"
    bench.write(
        __file__,
        text,
        bench.table(header, rows),
        beside,
        bench.table(compared, ratios(found)),
        f"{start} {rest}",
        part,
    )


if __name__ == "__main__":
    main()
