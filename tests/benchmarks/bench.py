"""What the benchmarks share: timing side by side, peak memory in a fresh process, a table beside the script."""

import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.manifest import Manifest


def seconds(
    variants: Mapping[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each variant, one after the other in turns, after one turn to warm up.

    `time.process_time` as the clock is for machines that others use too.
    """
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, run in variants.items():
            began = clock()
            run()
            if turn:
                taken[name].append(clock() - began)
    return {name: statistics.median(each) for name, each in taken.items()}


def peak_mb(steps: Callable[..., Iterator[None]], *arguments: str | float) -> float:
    """How far a step raises the peak resident memory of a fresh process (MB).

    `steps` is a function of the script that yields once when everything is prepared, then does the
    step to be measured.
    """
    code = f"import bench, {Path(sys.argv[0]).stem} as script; print(bench.peak(script.{steps.__name__}, *{arguments!r}))"
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def peak(steps: Callable[..., Iterator[None]], *arguments: str | float) -> float:
    """`peak_mb` within the fresh process."""
    work = steps(*arguments)
    next(work)
    # the peak so far is forgotten, so that what preparing needed does not hide the step
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_kb("VmRSS")
    next(work, None)
    return (_resident_kb("VmHWM") - before) / 1024


def _resident_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def local_ray() -> None:
    """A Ray of its own on two cores, that says nothing."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        log_to_driver=False,
        logging_level=logging.ERROR,
        include_dashboard=False,
    )


def write(script: str, *parts: str) -> None:
    """Write text and tables, and where they were measured, beside the script as Markdown."""
    load = f"load average {os.getloadavg()[1]:.0f}"
    machine = f"{os.cpu_count()} cores ({platform.machine()}), no GPU, {load}"
    command = f"python tests/benchmarks/{Path(script).name}"
    last = f"{time.strftime('%Y-%m-%d')}, {machine}; `{command}`."
    text = "\n\n".join([*parts, last]) + "\n"
    Path(script).with_suffix(".md").write_text(text)
    print(text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def dataset(pixels: Pixels, labels: Sequence[str]) -> Dataset:
    """Stored images with a label each, every one a group of its own."""
    ids = pixels.contents
    return Dataset.of(Manifest(pa.table({"id": ids, "label": list(labels), "group": ids})), pixels)


def imread(file: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Pixels of a file, as OpenCV decodes them."""
    pixels = cv2.imread(str(file), flags)
    assert pixels is not None, file
    return pixels


def photo(size: int, seed: int = 0) -> np.ndarray:
    """Something like a photograph of a part: smooth shapes and fine grain (size size 3)."""
    rng = np.random.default_rng(seed)
    sides = (max(size // 200, 2),) * 2
    grey, tint = rng.integers(40, 215, (*sides, 1)), rng.integers(-12, 12, (*sides, 3))
    small = (grey + tint).astype(np.uint8)
    smooth = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 6, (min(size, 1024), min(size, 1024), 3))
    repeat = -(-size // len(grain))
    grain = np.tile(grain, (repeat, repeat, 1))[:size, :size].astype(np.int16)
    return np.clip(smooth.astype(np.int16) + grain, 0, 255).astype(np.uint8)
