"""Latency of what ships: one image through a bundle's float and int8 graphs."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assay.bundle.bundle import Bundle, Variant
from assay.bundle.card import read_card


def measure_latency(folder: Path) -> dict[str, float]:
    """Time the bundle's golden image, from its decoded pixels to its answer, by each variant on the CPU.

    Returns:
        Medians in ms: latency_ms of the float graphs, and latency_int8_ms where there are int8
        ones; and latency_threads, which the graphs may use.

    Raises:
        BundleError: the bundle does not open.
    """
    card = read_card(folder)
    variants: dict[str, Variant] = {"latency_ms": "fp32"}
    if card.pipeline.get("int8"):
        variants["latency_int8_ms"] = "int8"
    runs = {}
    for name, variant in variants.items():
        bundle = Bundle(folder, variant=variant, threads=1, provider="cpu")
        pyramid = bundle.read(folder / card.golden.image)
        runs[name] = lambda b=bundle, p=pyramid: b.predict_each([p])
    times = time_runs(runs, 20)
    return {name: times[name]["p50_ms"] for name in variants} | {"latency_threads": 1.0}


def time_runs(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Time each run, in turns, after two turns to warm up: median and 95th percentile."""
    times_ms: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn >= 2:
                times_ms[name].append(1000 * (time.perf_counter() - began))
    return {
        name: {"p50_ms": float(np.median(times)), "p95_ms": float(np.quantile(times, 0.95))}
        for name, times in times_ms.items()
    }
