"""Ray Data: the job that builds the pixel store, and the stream that feeds each worker.

The only file that imports ray.data. `fill_here` and `task.batches` are the same work without Ray.
"""

import logging
import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from assay.config import from_dict, to_dict
from assay.data.entry import entry_bytes
from assay.data.image import probe
from assay.data.manifest import Manifest
from assay.data.order import Step
from assay.data.pixels import Pixels
from assay.data.store import SPARE_DISK, Store, decode
from assay.errors import AssayError, ImageError, StoreError
from assay.task import Batch, Stream, TaskConfig, TaskSource, batches, load_task
from assay.telemetry import progress_bar

IMAGES_PER_BLOCK, BLOCKS_PER_CPU = 32, 8
"""Ray Data waits about .2 s between two blocks, so they hold several images; and each CPU has several
blocks, so that none waits long for the last."""
SAMPLES_PER_BLOCK = 64


@dataclass(frozen=True)
class Quarantined:
    """A row whose image cannot be read, and why."""

    row: int
    reason: str


def fill(manifest: Manifest, store: Store, on_error: str, parallel: bool) -> list[Quarantined]:
    """Decode every image and mask that the store lacks; with Ray Data if `parallel`, else in this process.

    Says how fast it was.

    Raises:
        ImageError: an image cannot be read and `on_error` is "stop"; names the first and the count.
        StoreError: the store cannot be reached, or the disk has too little room, said with figures,
            before anything is decoded.
    """
    path_of = manifest.files
    missing = store.missing(list(path_of))
    if not missing:
        return []
    store.here.mkdir(parents=True, exist_ok=True)
    if store.is_folder:
        _refuse_full_disk([Path(path_of[content]) for content in missing], store.here)
    work: list[dict[str, Any]] = [{"content": c, "path": path_of[c]} for c in missing]
    outcomes = _fill_with_ray(work, store) if parallel else (decode(store, w) for w in work)
    bad = _follow(outcomes, len(work))
    keys = zip(manifest.column("content"), *manifest.masks.values(), strict=True)
    reasons = [[bad[content] for content in own if content in bad] for own in keys]
    found = [Quarantined(row, why[0]) for row, why in enumerate(reasons) if why]
    if found and on_error == "stop":
        raise ImageError(
            f"{found[0].reason} ({len(found)} of {len(manifest)} images cannot be read; "
            "mend or remove them, or pass --data.on-error skip to quarantine them)"
        )
    return found


def _follow(outcomes: Iterable[dict[str, Any]], num: int) -> dict[str, str]:
    """Show progress, then say how fast it was; returns why contents could not be decoded."""
    began, pixels, bad = time.perf_counter(), 0, {}
    bar = progress_bar(num, "decode")
    for outcome in outcomes:
        bar.update()
        pixels += outcome["pixels"]
        if outcome["reason"]:
            bad[outcome["content"]] = str(outcome["reason"])
    bar.close()
    seconds = time.perf_counter() - began
    print(
        f"decoded {num - len(bad)} images of {pixels / 1e6:.0f} megapixels in {seconds:.1f} s: "
        f"{(num - len(bad)) / seconds:.1f} images/s, {pixels / 1e6 / seconds:.0f} megapixels/s",
        file=sys.stderr,
    )
    return bad


def _refuse_full_disk(paths: list[Path], folder: Path) -> None:
    sampled = paths[:: max(1, len(paths) // 256)]
    sizes = []
    for path in sampled:
        try:
            sizes.append(entry_bytes(*probe(path)))
        except ImageError:
            continue  # named when it is decoded
    need = int(np.mean(sizes) * len(paths)) if sizes else 0
    free = shutil.disk_usage(folder).free - SPARE_DISK
    if need > free:
        raise StoreError(
            f"The store needs about {need / 1e9:.1f} GB for {len(paths)} images and {folder} has {max(free, 0) / 1e9:.1f} GB "
            "to spare; free some disk or pass --store on a larger one."
        )


def _fill_with_ray(work: list[dict[str, Any]], store: Store) -> Iterator[dict[str, Any]]:
    _quiet()
    cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    least = max(BLOCKS_PER_CPU * cpus, math.ceil(len(work) / IMAGES_PER_BLOCK))
    blocks = min(len(work), least)
    dataset = ray.data.from_items(work, override_num_blocks=blocks).map(partial(decode, store))
    yield from dataset.iter_rows()


def _quiet() -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True


def ray_stream(source: TaskSource, config: TaskConfig, pixels: Pixels, truth: np.ndarray) -> Stream:
    """A stream whose batches are prepared by Ray Data tasks on CPUs that training left free."""
    shared = ray.put((source, to_dict(config), pixels, truth))

    def stream(steps: Sequence[Step], train: bool) -> Iterator[Batch]:
        if not steps:
            return
        _quiet()
        plan = ray.put(list(steps))
        group = max(1, SAMPLES_PER_BLOCK // max(len(step.rows) for step in steps))

        blocks = math.ceil(len(steps) / group)
        dataset = ray.data.range(len(steps), override_num_blocks=blocks).map_batches(
            partial(_prepare, shared, plan, train), batch_size=None
        )
        arrived = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        yield from _regroup(iter(arrived), [len(step.rows) for step in steps])

    return stream


def _prepare(shared: Any, plan: Any, train: bool, block: Batch) -> Batch:
    """The steps of one block, prepared one after the other, in a Ray Data task."""
    task, config, pixels, truth = _recall(shared)
    mine = [_plan(plan)[int(i)] for i in block["id"]]
    made = list(batches(task, config, pixels, truth, mine, train))
    return {name: np.concatenate([batch[name] for batch in made]) for name in made[0]}


@lru_cache(maxsize=4)
def _recall(shared: Any) -> tuple[Any, TaskConfig, Pixels, np.ndarray]:
    source, values, pixels, truth = ray.get(shared)
    task = load_task(source)
    return task, from_dict(task.Config, values), pixels, truth


@lru_cache(maxsize=4)
def _plan(plan: Any) -> list[Step]:
    steps: list[Step] = ray.get(plan)
    return steps


def _regroup(blocks: Iterator[Batch], sizes: Sequence[int]) -> Iterator[Batch]:
    """Cut blocks of any length into batches of the given sizes, in order."""
    held: Batch = {}
    for size in sizes:
        while not held or len(next(iter(held.values()))) < size:
            try:
                block = next(blocks)
            except StopIteration:
                raise AssayError(
                    "Ray Data ended before all samples were served; see the lines above for the worker that failed."
                ) from None
            held = (
                {k: np.concatenate([held[k], v]) for k, v in block.items()} if held else dict(block)
            )
        # blocks are read-only views of shared memory; a batch is the reader's own
        yield {k: v[:size].copy() for k, v in held.items()}
        held = {k: v[size:] for k, v in held.items()}
