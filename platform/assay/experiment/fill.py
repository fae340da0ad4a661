"""The work that builds the pixel store, in this process or on all CPUs that Ray has."""

import math
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import ray

from assay.cluster.heap import IMAGE_BYTES, keep_freed_memory
from assay.data.images.decode import probe
from assay.data.images.entry import page_of
from assay.data.images.pyramid import pyramid_bytes
from assay.data.images.store import SPARE_DISK, Store, decode_into
from assay.data.manifest import Manifest
from assay.data.spread import one_by_one
from assay.errors import ImageError, StoreError
from assay.experiment.spread import over_cluster
from assay.progress import progress_bar

IMAGES_PER_TASK, TASKS_PER_CPU = 32, 8
"""A task holds several images, for it takes a millisecond to hand over; and each CPU has several tasks, so that none waits long for the last."""


@dataclass(frozen=True)
class UnreadableImage:
    """A row whose image cannot be read, and why."""

    row: int
    reason: str


def fill(manifest: Manifest, store: Store, on_error: str, parallel: bool) -> list[UnreadableImage]:
    """Decode every image and mask that the store lacks; in Ray's tasks if `parallel`, else in this process.

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
        _refuse_full_disk({content: path_of[content] for content in missing}, store.here)
    work: list[dict[str, Any]] = [{"content": c, "path": path_of[c]} for c in missing]
    # plain tasks: Ray Data takes a second to begin and waits .2 s between two blocks
    size = _images_per_task(len(work)) if parallel else 1
    pieces = [work[i : i + size] for i in range(0, len(work), size)]
    spread = over_cluster if parallel else one_by_one
    bad = _follow(chain.from_iterable(spread(_decode, store, pieces, "")), len(work))
    if parallel:
        _refuse_unshared(store, [content for content in missing if content not in bad])
    keys = zip(manifest.column("content"), *manifest.masks.values(), strict=True)
    reasons = [[bad[content] for content in row_keys if content in bad] for row_keys in keys]
    unreadable = [UnreadableImage(row, why[0]) for row, why in enumerate(reasons) if why]
    if unreadable and on_error == "stop":
        raise ImageError(
            f"{unreadable[0].reason} ({len(unreadable)} of {len(manifest)} images cannot be read; "
            "mend or remove them, or pass --data.on-error skip to quarantine them)"
        )
    return unreadable


def _follow(outcomes: Iterable[dict[str, Any]], num: int) -> dict[str, str]:
    """Show progress, then say how fast it was; return why contents could not be decoded."""
    began, pixels, bad = time.perf_counter(), 0, {}
    bar = progress_bar(num, "decode")
    for outcome in outcomes:
        bar.update()
        pixels += outcome["pixels"]
        if outcome["reason"]:
            bad[outcome["content"]] = str(outcome["reason"])
    bar.close()
    seconds = time.perf_counter() - began
    megapixels, per_second = (
        f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
        for value in (pixels / 1e6, pixels / 1e6 / seconds)
    )
    print(
        f"decoded {num - len(bad)} images, {megapixels} megapixels in all, in {seconds:.1f} s: "
        f"{(num - len(bad)) / seconds:.1f} images/s, {per_second} megapixels/s",
        file=sys.stderr,
    )
    return bad


def _refuse_full_disk(paths: dict[str, str], folder: Path) -> None:
    sampled = [*paths.items()][:: max(1, len(paths) // 256)]
    sizes = []
    for content, path in sampled:
        try:
            sizes.append(pyramid_bytes(*probe(path, page=page_of(content))))
        except ImageError:
            continue  # named when it is decoded
    need = int(np.mean(sizes) * len(paths)) if sizes else 0
    free = shutil.disk_usage(folder).free
    if need > free - SPARE_DISK:
        raise StoreError(
            f"The store needs about {need / 1e6:,.0f} MB for {len(paths)} images, and the disk of {folder} has {free / 1e6:,.0f} MB free, "
            f"of which {SPARE_DISK / 1e6:,.0f} are spared; free some, or pass --store on a larger one."
        )


def _refuse_unshared(store: Store, decoded: Sequence[str]) -> None:
    """Refuse a folder that the nodes which decoded do not share with this one."""
    absent = [] if "://" in store.address else store.missing(decoded)
    if absent:
        raise StoreError(
            f"{len(absent)} of {len(decoded)} images that were decoded are not in {store.address} as this node sees it, so that not all nodes share this folder; "
            "give a --storage that they share, or a --store, or an URI such as s3://bucket/runs."
        )


def _images_per_task(num: int) -> int:
    cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return min(IMAGES_PER_TASK, math.ceil(num / (TASKS_PER_CPU * cpus)))


def _decode(store: Store, work: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keep_freed_memory(IMAGE_BYTES)
    return [decode_into(store, one) for one in work]
