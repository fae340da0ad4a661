"""Latency: in turns, of the graphs that ship, and each variant by its own."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from assay.bundle.card import Card
from assay.bundle.latency import measure_latency, time_runs
from assay.bundle.quantize import GraphQuantizer, QuantizeConfig
from assay.bundle.seal import seal
from assay.metrics.decide import Decision
from assay.nn.export import write_graph
from assay.typed import from_json

SIDE = 64


def net(channels: int) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 2, 3)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def write(folder: Path, name: str, channels: int) -> Path:
    graph, path = net(channels), folder / f"{name}.onnx"
    write_graph(path, graph, graph, ("image", (3, SIDE, SIDE)), ["logits"])
    return path


def sealed(folder: Path, **pipeline: object) -> Path:
    image = folder.parent / f"{folder.name}.png"
    cv2.imwrite(str(image), np.full((80, 90, 3), 130, np.uint8))
    numbers = {"temperature": 1.0, "coverage": 0.9, "quantile": 0.66, "num": 9, "num_groups": 9}
    decision = Decision(**numbers, costs=None, positive=None, threshold=None)
    frame = {"height_px": SIDE, "width_px": SIDE}
    shown = {"kind": "image", "image": frame, "graphs": ["classify"], **pipeline}
    card = {"classes": ["a", "b"], "pipeline": shown, "decision": asdict(decision)}
    seal(folder, from_json(Card, card), image)
    return folder


def test_runs_are_measured_in_turns_after_two_to_warm_up(monkeypatch):
    calls, now = list[str](), 0.0
    spent = {"first": iter([9, 9, *range(1, 21)]), "second": iter([9, 9, *[0.5] * 20])}
    monkeypatch.setattr("assay.bundle.latency.time.perf_counter", lambda: now)

    def run(name: str) -> None:
        nonlocal now
        calls.append(name)
        now += next(spent[name]) / 1000

    times = time_runs({name: partial(run, name) for name in spent}, 20)
    assert calls == ["first", "second"] * 22
    assert times["first"]["p50_ms"] == pytest.approx(10.5)
    assert times["first"]["p95_ms"] == pytest.approx(19.05)  # a twentieth from 19 to 20
    assert times["second"] == pytest.approx({"p50_ms": 0.5, "p95_ms": 0.5})


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """The int8 form of a graph of 4 channels."""
    feeds = [{"image": np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE))}]
    feeds = [{"image": feed["image"].astype(np.float32)} for feed in feeds]
    path = write(tmp_path, "light", 4)
    logging.disable(logging.WARNING)
    try:
        quantizer = GraphQuantizer(path, feeds, QuantizeConfig())
    finally:
        logging.disable(logging.NOTSET)
    path.write_bytes(quantizer.quantize().SerializeToString())
    return path


def test_each_variant_is_measured_by_its_own_graph(tmp_path: Path, light: Path):
    write(tmp_path, "classify", 1024)  # 256 times the work of the light one
    measured = measure_latency(sealed(tmp_path, int8=["light"]))
    assert set(measured) == {"latency_ms", "latency_int8_ms", "latency_threads"}
    assert measured["latency_threads"] == 1
    assert 0 < measured["latency_int8_ms"] < measured["latency_ms"]


def test_without_int8_graphs_float_alone_is_measured(tmp_path: Path):
    write(tmp_path, "classify", 2)
    assert set(measure_latency(sealed(tmp_path))) == {"latency_ms", "latency_threads"}
