"""Designs of the stream side by side: rate, first batch, exactly-once, order; and what Ray Data costs.

python tests/benchmarks/stream.py
"""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import cv2
import numpy as np
import ray
import ray.data
import torch
from bench import dataset, local_ray, photo, table, write

from assay.config import to_dict
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.order import Step, entry_keys, steps_of
from assay.experiment.stream import _recall, ray_stream
from assay.train.batches import Stream, batches
from assay.train.source import TaskSource, load_task
from assay.train.task import Batch, BatchRows

SOURCE = TaskSource.read(Path(__file__).parents[2] / "tasks" / "fingerprint.py")
NUM_IMAGES, NUM_EPOCHS, BATCH = 240, 3, 14
Served = tuple[float, int, list[int]]
"""Time, epoch and rows of a batch."""
Consumer = Callable[[], Iterator[Served]]


def problem(folder: str) -> tuple[Any, Any, Dataset]:
    """Task, settings, stored images of 512 px."""
    task = load_task(SOURCE)
    config = replace(task.presets()["demo"])
    contents = [f"{i:04}" for i in range(NUM_IMAGES)]
    for i, content in enumerate(contents):
        path = Path(folder) / "image.png"
        cv2.imwrite(str(path), photo(512, seed=i))
        Store(folder).build(content, path)
    return task, config, dataset(Pixels(Store(folder), contents), ["a"] * NUM_IMAGES)


def plan(task: Any, config: Any, images: Dataset) -> list[Step]:
    """All epochs in batches that do not divide the images."""
    train = replace(config, train=replace(config.train, batch_size=BATCH))
    rows = np.arange(NUM_IMAGES)
    steps: list[Step] = []
    for epoch in range(NUM_EPOCHS):
        steps += steps_of(task.order(train, images, rows, epoch), epoch)
    return steps


def consume(stream: Stream, steps: Sequence[Step], rank: int, world_size: int) -> Iterator[Served]:
    """Each batch of one consumer."""
    shares = [share for step in steps if len((share := step.share(rank, world_size)).rows)]
    for step, batch in zip(shares, stream(shares, train=True), strict=True):
        yield time.perf_counter(), step.epoch, batch["row"].tolist()


def split_shards(task: Any, config: Any, images: Dataset, world_size: int) -> list[Consumer]:
    """The other design: one shuffled dataset, `streaming_split` into equal shards, an epoch at a time."""
    shared = ray.put((SOURCE, to_dict(config), images))

    def prepare(block: Batch) -> Batch:
        task, config, images = _recall(shared)
        rows = block["id"]
        return task.prepare(config, images, BatchRows(rows, entry_keys(0, 0, rows), train=True))

    shuffled = ray.data.range(NUM_IMAGES, override_num_blocks=30).randomize_block_order(seed=1)
    shards = shuffled.map_batches(prepare, batch_size=8).streaming_split(world_size, equal=True)

    def served(shard: Any) -> Iterator[Served]:
        for epoch in range(NUM_EPOCHS):
            for batch in shard.iter_batches(
                batch_size=max(1, BATCH // world_size), batch_format="numpy"
            ):
                yield time.perf_counter(), epoch, batch["row"].tolist()

    return [partial(served, shard) for shard in shards]


def race(consumers: Sequence[Consumer]) -> dict[str, Any]:
    """All consumers at once, each in a thread: rate, first batches, what was served."""
    batches_of: list[list[Served]] = [[] for _ in consumers]

    def take(consumer: Consumer, served: list[Served]) -> None:
        served.extend(consumer())

    threads = [
        threading.Thread(target=take, args=(consumer, served))
        for consumer, served in zip(consumers, batches_of, strict=True)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=180)
        assert not thread.is_alive(), "a consumer hangs"
    events = sorted(event for served in batches_of for event in served)
    firsts = []
    for epoch in range(NUM_EPOCHS):
        end = max([began, *(time for time, other, _ in events if other < epoch)])
        firsts.append(min(time for time, other, _ in events if other == epoch) - end)
    pairs = [(epoch, row) for _, epoch, rows in events for row in rows]
    wanted = {(epoch, row) for epoch in range(NUM_EPOCHS) for row in range(NUM_IMAGES)}
    return {
        "rate": len(pairs) / (events[-1][0] - began),
        "first": firsts[0],
        "later": float(np.median(firsts[1:])),
        "missing": len(wanted - set(pairs)),
        "repeated": len(pairs) - len(set(pairs)),
        "order": [[rows for _, _, rows in served] for served in batches_of],
    }


def designs(
    task: Any, config: Any, images: Dataset, world_size: int
) -> dict[str, Callable[[], list[Consumer]]]:
    """Consumers of each design."""
    steps = plan(task, config, images)
    ranks = range(world_size)
    fed, here = ray_stream(SOURCE, config, images), partial(batches, task, config, images)
    return {
        "a pipeline per worker (Assay's)": lambda: [
            partial(consume, fed, steps, r, world_size) for r in ranks
        ],
        "streaming_split": lambda: split_shards(task, config, images, world_size),
        "no Ray, in the consumer": lambda: [
            partial(consume, here, steps, r, world_size) for r in ranks
        ],
    }


def compare(task: Any, config: Any, images: Dataset) -> str:
    """Each design at 1, 2 and 3 workers, twice for its order; Assay's also at 8."""
    rows = []
    for world_size in (1, 2, 3, 8):
        for name, consumers in designs(task, config, images, world_size).items():
            if world_size == 8 and "Assay" not in name:
                continue
            first, second = race(consumers()), race(consumers())
            cells = [
                name,
                str(world_size),
                f"{max(first['rate'], second['rate']):.0f}",
                f"{second['first']:.2f} s",
                f"{1000 * second['later']:.0f} ms",
                str(first["missing"]),
                str(first["repeated"]),
                "yes" if first["order"] == second["order"] else "no",
            ]
            rows.append(cells)
    header = [
        "design",
        "workers",
        "images/s",
        "first batch",
        "first batch of later epochs",
        "missing",
        "repeated",
        "same order again",
    ]
    return table(header, rows)


def cost(task: Any, config: Any, images: Dataset) -> str:
    """A loop whose step is a matrix product of about 30 ms, fed by Ray Data and by memory."""
    steps = plan(task, config, images)
    prepared = list(batches(task, config, images, steps, True))
    weight = torch.randn(1024, 1024)
    fed = ray_stream(SOURCE, config, images)
    sources: dict[str, Callable[[], Iterator[Batch]]] = {
        "Ray Data": lambda: fed(steps, True),
        "memory": lambda: iter(prepared),
    }
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for _ in range(2):
        for name, source in sources.items():
            costs[name].append(_loop(source(), weight))
    rows = []
    for name, turns in costs.items():
        taken, waited = (min(column) for column in zip(*turns, strict=True))
        rows.append([name, f"{taken:.2f} s", f"{waited:.1%}"])
    return table(["fed by", f"{len(steps)} steps", "of it waiting for data"], rows)


def _loop(source: Iterator[Batch], weight: torch.Tensor) -> tuple[float, float]:
    """Seconds after the first batch, and the share of them spent waiting."""
    next(source)
    began, waited = time.perf_counter(), 0.0
    while True:
        asked = time.perf_counter()
        batch = next(source, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        until = time.perf_counter() + 0.03
        while time.perf_counter() < until:
            weight @ weight
    taken = time.perf_counter() - began
    return taken, waited / taken


def main() -> None:
    """Compare on one local cluster."""
    torch.set_num_threads(1)
    local_ray()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as folder:
        inputs = problem(folder)
        race(designs(*inputs, 1)["a pipeline per worker (Assay's)"]())  # starts Ray's own workers
        parts = compare(*inputs), cost(*inputs)
    write(
        __file__,
        f"{NUM_IMAGES} stored images of 512 px, {NUM_EPOCHS} epochs in batches of {BATCH}, prepared as `tasks/fingerprint.py` has them (overviews of 128 px, random cells); consumers are threads that only count. A negative time: one consumer was in the next epoch before another had ended this one.",
        parts[0],
        "What Ray Data costs a training loop whose step keeps one of the two cores busy for 30 ms:",
        parts[1],
    )


if __name__ == "__main__":
    main()
