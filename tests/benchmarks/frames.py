"""What a frame of a print costs beside the same image without one: the replica that looked at it asks the front for the print's alarms.

Trains the smoke preset of extrusion where --storage lacks it; two replicas, one client on one connection, by turns.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import bench
import serve as benchmark
from asking import free_port

from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.data.images.decode import probe
from assay.runs import listing
from assay.serve import control
from assay.serve.config import ApplicationConfig, ServeConfig
from assay.serve.deployment import configuration

WAYS = {"an image": "", "a frame of a print": "&print=line-1&time={frame}"}


def extrusion_run(storage: Path) -> listing.RunSummary:
    """Return a run of the smoke preset, trained where it is missing."""
    command = [sys.executable, str(benchmark.TASKS / "extrusion.py"), "--preset", "smoke"]
    command += ["--workers", "0", "--storage", str(storage)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    runs = listing.read_all(storage)
    return next(run for run in runs if run.task == "extrusion" and (run.folder / "bundle").exists())


def answers(port: int, image: bytes, num: int) -> dict[str, list[float]]:
    """Return the seconds of each answer, asked by turns after some to warm up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for frame in range(num + 20):
        for way, more in WAYS.items():
            path = f"/v1/extrusion?mask=none{more.format(frame=frame)}"
            began = time.perf_counter()
            connection.request("POST", path, image, {"content-type": "image/png"})
            reply = connection.getresponse()
            content = json.loads(reply.read())
            ended = time.perf_counter()
            assert reply.status == 200, content
            assert bool(content["print"]) == bool(more), content
            if frame >= 20:
                taken[way].append(ended - began)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    run = extrusion_run(given.storage)
    registry = Registry(str(given.storage / f"registry-{uuid4().hex[:6]}"))
    promote(registry, run.folder / "bundle", run.predictions(), "champion")
    image = benchmark.picture(run, 1)
    os.environ["ASSAY_TOKEN"] = ""
    app = ApplicationConfig(cpus=0.5, min_replicas=2, max_replicas=2, queue=128, batch=1)
    port = free_port()
    config = ServeConfig(registry=registry.address, port=port, open=True, app=app)
    with control.cluster(config):
        control.deploy(configuration(config))
        control.wait(config)
        taken = answers(port, image, given.requests)
    rows = []
    for way, each in taken.items():
        cuts = statistics.quantiles(each, n=100)
        rows.append([way, *(f"{1000 * cut:.1f}" for cut in (cuts[49], cuts[94], cuts[98]))])
    pairs = zip(*taken.values(), strict=True)
    between = statistics.median(frame - plain for plain, frame in pairs)
    height, width = probe(image)
    bench.write(
        __file__,
        f"{given.requests} requests of each kind, one at a time and by turns; the image is {width}x{height}.",
        bench.table(["what is sent", "p50 (ms)", "p95", "p99"], rows),
        f"A frame takes {1000 * between:.1f} ms longer than the image sent before it (median of the pairs).",
    )


if __name__ == "__main__":
    main()
