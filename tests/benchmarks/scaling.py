"""From 1 to 512 GPUs: what each stage costs, measured here; a model of the whole by that; and how far off it is where it can be checked.

python tests/benchmarks/scaling.py STORAGE [model|all]

STORAGE keeps the runs of fingerprint's smoke preset on 1, 2 and 4 worker processes; `model` leaves them out. The model is of the
source's own experiment: 213,840 images of 26 megapixels in 141 GB of files, EVA02-L at 8 patches of 448 px, 6 images a GPU;
and of a hundred times as many.
"""

import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray
from bench import table, write
from sizes import PEAK, REACHED, Update, recipe_task, recipe_update
from stages import Costs, measure

TASK = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
IMAGES, FILES_GB, PIXELS = 213_840, 141.0, 5100 * 5100
GPUS = (1, 8, 24, 64, 128, 512)
BATCH, EPOCHS = 6, 50


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the machines; none of it was measured."""

    gpus_of_node: int = 8
    cores_of_gpu: int = 16
    network_gb_s: float = 12.5
    """Of a node, each way: 100 Gbit/s."""
    disk_gb_s: float = 6.0
    disk_tb: float = 30.0
    """Of a node's NVMe."""
    object_store_gb_s: float = 100.0
    """Of all nodes together."""


@dataclass(frozen=True)
class Forecast:
    """What the model says of a number of GPUs."""

    gpus: int
    images_s: float
    wait: float
    """Share of an update in which the GPU waits."""
    limit: str
    before_h: dict[str, float]
    """Hours before the first update, by stage."""
    trained_h: float
    store_tb: float
    handed_gb: float


@lru_cache
def recipe() -> Update:
    """Count an update of the source's recipe."""
    return recipe_update(recipe_task("eva02_large_patch14_448"), BATCH, recomputes=False)


def forecast(costs: Costs, cluster: Cluster, gpus: int, images: int) -> Forecast:
    """Say how fast the chain is, and what limits it.

    What a GPU computes, what its cores prepare and what its disk reads go on at once, so that the slowest counts;
    gradients are summed during the backward pass, two thirds of an update, and what exceeds that is waited for.
    """
    nodes = math.ceil(gpus / cluster.gpus_of_node)
    cores = gpus * cluster.cores_of_gpu
    update = recipe()
    computes = update.operations / (PEAK * REACHED)
    store_tb = 4 * PIXELS * images / 1e12
    local = min(gpus, cluster.gpus_of_node)
    # a node looks at its own share of the images: from its disk if that has room, else over the network
    is_kept = store_tb / nodes <= cluster.disk_tb
    source_gb_s = cluster.disk_gb_s if is_kept else cluster.network_gb_s
    source_gb_s = source_gb_s if is_kept else min(source_gb_s, cluster.object_store_gb_s / nodes)
    parts = {
        "the GPU": computes,
        "its cores": BATCH * costs.feed / cluster.cores_of_gpu,
        "the disk" if is_kept else "the object store": BATCH
        * local
        * costs.read_mb
        / 1e3
        / source_gb_s,
    }
    parameters = update.weights / 16  # float32 weight, gradient and two moments
    summed = 2 * (nodes - 1) / nodes * 4 * parameters / 1e9 / cluster.network_gb_s
    exposed = max(0.0, summed - computes * 2 / 3)
    slowest = max(parts, key=parts.__getitem__)
    step = parts[slowest] + exposed
    limit = "the network" if exposed > parts[slowest] - computes and exposed > 0 else slowest
    near = images * (costs.sketch + costs.words + 8 * costs.lay) + costs.pair * images**2
    before = {
        "hash": max(
            FILES_GB * images / IMAGES * costs.hash_gb / 8,
            FILES_GB * images / IMAGES / cluster.network_gb_s,
        ),
        "decode": max(
            images * costs.fill / cores,
            store_tb * 1e3 / nodes / (cluster.disk_gb_s if is_kept else cluster.network_gb_s),
        ),
        "near-duplicates": near / cores,
        "table and split": images * costs.row,
    }
    rate = gpus * BATCH / step
    return Forecast(
        gpus,
        rate,
        1 - computes / step,
        limit,
        {name: value / 3600 for name, value in before.items()},
        EPOCHS * 0.8 * images / rate / 3600,
        store_tb,
        gpus * images * costs.bytes_of_row / 1e9,
    )


def forecast_rows(costs: Costs, cluster: Cluster, images: int) -> list[list[str]]:
    """One row for each number of GPUs."""
    rows = []
    for gpus in GPUS:
        modelled = forecast(costs, cluster, gpus, images)
        hours = " / ".join(f"{value:.2g}" for value in modelled.before_h.values())
        rows.append(
            [
                f"{gpus}",
                f"{modelled.images_s:.0f}",
                f"{modelled.wait:.0%}",
                modelled.limit,
                hours,
                f"{modelled.trained_h:.3g}",
                f"{modelled.store_tb:.0f}",
                f"{modelled.handed_gb:.2g}",
            ]
        )
    return rows


BREAKS = """What breaks first. At the source's size nothing of the chain, but the disk: pixels in the store take 4 bytes each, 22 TB, which
are refused with figures before anything is decoded where they have no room; `--store s3://...` with `--cache` holds them elsewhere. Before images are compared
by blocks on all cores the search for near-duplicates was the first: by extrapolation from 10,000 images more than 10 hours of one process, for what 128 cores do in minutes. From 64 GPUs on gradients
of all weights take longer than the backward pass hides (float32 over 100 Gbit/s); larger batches, which `--accumulate` finds room for, sum them less often. At a hundred times the images it is the
search for near-duplicates again, which compares all pairs (`--split.near-duplicates off` looks for none and says so), then the store (2.2 PB), which no node's disk
holds, and the table of rows, of which every worker has a copy (4 GB)."""


def draw(costs: Costs, cluster: Cluster) -> str:
    """Draw images/s by the number of GPUs on logarithmic axes, as SVG; grey is one GPU's rate times their number."""
    modelled = [
        [forecast(costs, cluster, n, num).images_s for n in GPUS] for num in (IMAGES, 100 * IMAGES)
    ]
    ideal = [modelled[0][0] * n for n in GPUS]
    left, top, width, height = 70, 20, 560, 260

    def x(gpus: float) -> float:
        return round(left + width * math.log(gpus) / math.log(GPUS[-1]), 1)

    def y(rate: float) -> float:
        return round(
            top + height * (1 - math.log(rate / ideal[0]) / math.log(ideal[-1] / ideal[0])), 1
        )

    parts = ['<rect width="660" height="330" fill="#fff"/>']
    for rates, colour in ((ideal, "#bbb"), (modelled[0], "#1f5fa8"), (modelled[1], "#c0504d")):
        points = " ".join(f"{x(n)},{y(rate)}" for n, rate in zip(GPUS, rates, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    for gpus, rate in zip(GPUS, ideal, strict=True):
        parts.append(f'<text x="{x(gpus)}" y="300" text-anchor="middle">{gpus}</text>')
        parts.append(f'<text x="{left - 8}" y="{y(rate) + 4}" text-anchor="end">{rate:.0f}</text>')
    parts.append(
        f'<text x="{left}" y="320">GPUs; images/s. Blue: {IMAGES:,} images, red: a hundred times as many, grey: no loss</text>'
    )
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 330" {style}>{"".join(parts)}</svg>\n'


HEADER = [
    "GPUs",
    "images/s",
    "GPU waits",
    "limit",
    "before: hash / decode / near-duplicates / table (h)",
    f"{EPOCHS} epochs (h)",
    "store (TB)",
    "handed to workers (GB)",
]


def trained(
    storage: Path, address: str, workers: int, batch: int
) -> tuple[float, dict[str, float]]:
    """Images/s of the last epochs of a run on so many processes, and seconds of an update by part."""
    shutil.rmtree(storage, ignore_errors=True)
    options = ["--preset", "smoke", "--workers", str(workers), "--train.batch-size", str(batch)]
    options += ["--train.epochs", "6", "--storage", str(storage), "--split.near-duplicates", "off"]
    options += ["--parts.parts-per-seen", "12"]
    command, environment = (
        [sys.executable, str(TASK), *options],
        os.environ | {"RAY_ADDRESS": address},
    )
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    # of the task and its baseline the one that selects
    (file,) = [path for path in storage.glob("fingerprint-*/metrics.jsonl") if selects(path.parent)]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step" and line["epoch"] >= 2]
    parts = {
        name: statistics.mean(line[name] for line in steps)
        for name in ("step_s", "wait_s", "cut_s", "forward_s", "backward_s", "update_s")
        if name in steps[0]
    }
    return statistics.median(line["samples_per_s"] for line in steps), parts


def selects(folder: Path) -> bool:
    """Tell the task's run from that of random patches."""
    return bool(json.loads((folder / "run.json").read_text())["name"] == "fingerprint")


def burn(seconds: float, out: Any) -> None:
    """Count what a process multiplies in so many seconds."""
    one, num, end = np.ones((256, 256), np.float32), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        one @ one
        num += 1
    out.put(num)


def cores_here(processes: int) -> float:
    """How many times one process's arithmetic this machine does in so many: of two threads of one core less than two."""
    counts = []
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = (
        "1"  # of the processes begun here
    )
    for num in (1, processes):
        spawned = multiprocessing.get_context("spawn")
        out = spawned.Queue()
        started = [spawned.Process(target=burn, args=(4.0, out)) for _ in range(num)]
        for process in started:
            process.start()
        counts.append(sum(out.get() for _ in started))
        for process in started:
            process.join()
    return counts[1] / counts[0]


def here(storage: Path) -> str:
    """Strong and weak scaling over processes of this machine, beside what the model says."""
    cores, rows = cores_here(2), []
    # a Ray that says it has five CPUs: four workers and Ray Data
    ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False)
    address = ray.get_runtime_context().gcs_address
    base, parts = trained(storage / "1", address, 1, 12)
    for workers, batch in ((1, 12), (2, 12), (4, 12), (2, 24), (4, 48)):
        is_first = (workers, batch) == (1, 12)
        rate = (
            base
            if is_first
            else trained(storage / f"{workers}-{batch}", address, workers, batch)[0]
        )
        modelled = base * min(workers, cores)
        kind = "strong" if batch == 12 else "weak"
        rows.append(
            [
                kind,
                str(workers),
                str(batch),
                f"{rate:.1f}",
                f"{modelled:.1f}",
                f"{modelled / rate - 1:+.0%}",
            ]
        )
    text = ", ".join(f"{name[:-2]} {1000 * value:.0f} ms" for name, value in parts.items())
    header = ["scaling", "workers", "batch", "images/s", "model", "error"]
    return (
        f"Processes of this machine, which does {cores:.2f} times one process's arithmetic in two; fingerprint's smoke preset, an update of one worker: {text}. "
        f"The model: one worker's rate times the lesser of workers and cores.\n\n{table(header, rows)}"
    )


def main(storage: Path, part: str) -> None:
    """Measure, forecast and write."""
    cv2.setNumThreads(1)
    costs, cluster = measure(), Cluster()
    told = ", ".join(f"{name} {value:.3g}" for name, value in vars(costs).items())
    texts = [
        f"Seconds of one core here (a row's bytes and MB besides): {told}. Assumed and not measured: {', '.join(f'{n} {v:g}' for n, v in vars(cluster).items())}; "
        f"EVA02-L at {REACHED:.0%} of an H100's peak, {BATCH} images a GPU; no time lost at an epoch's end, no GPU slower than another.",
        f"{IMAGES:,} images of {PIXELS / 1e6:.0f} megapixels:",
        table(HEADER, forecast_rows(costs, cluster, IMAGES)),
        "A hundred times as many:",
        table(HEADER, forecast_rows(costs, cluster, 100 * IMAGES)),
        BREAKS,
        f"![images/s by GPUs]({Path(__file__).stem}.svg)",
    ]
    Path(__file__).with_suffix(".svg").write_text(draw(costs, cluster))
    if part != "model":
        texts.append(here(storage))
    write(__file__, *texts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "all")
