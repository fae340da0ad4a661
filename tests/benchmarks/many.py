"""Many small bundles on one machine: what each costs with a replica to itself, and where tasks share one (`--shared.tasks`), beside one process without a server.

Bundles are of a small convolutional network with random weights; each is the champion of a task of its own. Ray runs
here, with as many replicas as tasks or one that they share, none of which reserves a CPU. `--tasks 4` tries it.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import bench
import cv2
import numpy as np
import onnx
import pyarrow as pa
from asking import cpu_seconds, free_port, serve_processes
from onnx import TensorProto, helper, numpy_helper

from assay.bundle import trial
from assay.bundle.bundle import Bundle
from assay.bundle.card import Card
from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.bundle.seal import seal
from assay.serve import control
from assay.serve.config import ApplicationConfig, ServeConfig, SharedConfig
from assay.serve.deployment import configuration
from assay.typed import from_json

SIDE, CHANNELS = 64, (3, 32, 64, 128)
CLASSES = ["bad", "good"]
REST_S = 20.0
REPLICAS = re.compile(r"ServeReplica:(task_\d+|shared-tasks)")
FEW = 8
"""Tasks that are open in a third way, of all of them by turns: each is opened anew."""

SAYS = (
    "A replica costs a process whatever its bundle is, and all of them start at once; a bundle costs what its graph does. Where tasks share a replica a first "
    "answer has the bundle opened and its golden sample repeated, and so has every answer of a task that was put away since. Until 2026-11-30 bundles were tried "
    "in a process each, 69 s for 30."
)


def write_graph(path: Path, seed: int) -> None:
    """Three strided convolutions, their mean, and a linear head."""
    rng = np.random.default_rng(seed)
    nodes, constants, name = [], {}, "image"
    for layer, (below, above) in enumerate(pairwise(CHANNELS)):
        constants[f"w{layer}"] = rng.normal(0, 0.1, (above, below, 3, 3))
        inputs = [name, f"w{layer}"]
        nodes.append(
            helper.make_node("Conv", inputs, [f"c{layer}"], strides=[2, 2], pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        name = f"r{layer}"
    constants["inner"], constants["head"] = np.array([2, 3]), rng.normal(0, 1, (CHANNELS[-1], 2))
    nodes.append(helper.make_node("ReduceMean", [name, "inner"], ["embedding"], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["embedding", "head"], ["logits"]))
    values = {k: v.astype(np.int64 if k == "inner" else np.float32) for k, v in constants.items()}
    ends = {"logits": 2, "embedding": CHANNELS[-1]}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["n", n]) for k, n in ends.items()],
        [numpy_helper.from_array(value, key) for key, value in values.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def make_bundle(folder: Path, task: str, seed: int) -> Path:
    """A sealed bundle of such a graph."""
    folder.mkdir(parents=True)
    write_graph(folder / "classify.onnx", seed)
    golden = folder.with_suffix(".png")
    cv2.imwrite(str(golden), bench.photo(200, seed))
    sizes = {"height_px": SIDE, "width_px": SIDE}
    decision = {"temperature": 1.0, "coverage": 0.9, "quantile": 0.7, "costs": None}
    decision |= {"positive": None, "threshold": None, "num": 100, "num_groups": 50}
    card = {
        "task": task,
        "run": task,
        "data": "d" * 12,
        "code": {},
        "classes": CLASSES,
        "pipeline": {"kind": "image", "graphs": ["classify"], "image": sizes},
        "decision": decision,
    }
    seal(folder, from_json(Card, card), golden)
    return folder


def fill(folder: Path, num: int) -> tuple[Registry, list[str]]:
    """A registry with so many champions, which nothing was judged on."""
    registry = Registry(str(folder / "registry"))
    rows = pa.table({"split": pa.array([], pa.string())})
    tasks = [f"task_{i:02d}" for i in range(num)]
    for seed, task in enumerate(tasks):
        bundle = make_bundle(folder / task, task, seed)
        promote(registry, bundle, rows, "champion", "a benchmark")
    return registry, tasks


def pss_mb(pid: int | str) -> float:
    """Memory of a process, with its share of what several use (MB)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def together(folders: list[Path], image: bytes, out: Any) -> None:
    """Open bundles in one process, one thread each; puts its memory (MB) and seconds. A process of its own."""
    Bundle(folders[0], threads=1).predict(image)  # what one process needs in any case
    before, opened, seconds = pss_mb("self"), [], []
    for folder in folders:
        began = time.perf_counter()
        opened.append(Bundle(folder, threads=1))
        opened[-1].predict(image)
        seconds.append(time.perf_counter() - began)
    held = pss_mb("self")
    opened.clear()
    out.put((before, held, pss_mb("self"), seconds))


@contextmanager
def served(
    registry: Registry, shared: SharedConfig
) -> Iterator[tuple[ServeConfig, dict[str, str]]]:
    """Serve a registry; yield the settings, and seconds until each bundle was tried, and from there until all were ready."""
    config = ServeConfig(
        registry=registry.address,
        port=free_port(),
        open=True,
        app=ApplicationConfig(cpus=0, max_replicas=1),
        shared=shared,
    )
    trial._PASSED.clear()  # a server that begins has tried none
    began = time.perf_counter()
    wanted = configuration(config)
    tried = time.perf_counter()
    with control.cluster(config):
        control.deploy(wanted)
        control.wait(config, 900.0)
        told = {
            "all tried before, in a process beside": f"{tried - began:.0f} s",
            "from there until all are ready": f"{time.perf_counter() - tried:.0f} s",
        }
        yield config, told


def ask(config: ServeConfig, task: str, image: bytes) -> float:
    """Milliseconds until an answer."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"{config.address}/v1/{task}", image, timeout=60) as reply:
        assert json.load(reply)["model"]["task"] == task
    return (time.perf_counter() - began) * 1000


def behind(
    registry: Registry, tasks: list[str], image: bytes, shared: SharedConfig
) -> dict[str, str]:
    """What a server of all tasks costs, by name."""
    with served(registry, shared) as (config, told):
        first = [ask(config, task, image) for task in tasks]
        again = [ask(config, task, image) for task in tasks]
        named = serve_processes()
        holding = [pid for pid, name in named.items() if REPLICAS.search(name)]
        assert len(holding) == (1 if shared.tasks else len(tasks))
        replicas = [pss_mb(pid) for pid in holding]
        rest = [pss_mb(pid) for pid in named if pid not in holding]
        before = {pid: cpu_seconds(pid) for pid in named}
        time.sleep(REST_S)
        left = serve_processes()  # an earlier HAProxy may have ended meanwhile
        gone = {name for pid, name in named.items() if pid not in left}
        assert gone <= {"haproxy"}, gone
        spent = [cpu_seconds(pid) - before[pid] for pid in named if pid in left]
    return told | {
        "memory of a replica (PSS), median": f"{statistics.median(replicas):.0f} MB",
        "of all replicas": f"{sum(replicas):.0f} MB",
        "of front, controller and proxies beside them": f"{sum(rest):.0f} MB",
        "first answer of a task, median and longest": span(first),
        "second answer, median and longest": span(again),
        f"cores at rest, over {REST_S:.0f} s": f"{sum(spent) / REST_S:.2f}",
    }


def span(milliseconds: list[float]) -> str:
    """Median and largest."""
    return f"{statistics.median(milliseconds):.0f} ms, {max(milliseconds):.0f} ms"


def in_one(folders: list[Path], image: bytes) -> list[list[str]]:
    """Rows of bundles together in one process."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=together, args=(folders, image, out))
    process.start()
    before, held, after, seconds = out.get()
    process.join()
    opening = [1000 * each for each in seconds]
    return [
        ["memory of the process with one bundle", f"{before:.0f} MB"],
        ["of each further bundle", f"{(held - before) / len(folders):.1f} MB"],
        ["when they are put away again", f"{after:.0f} MB"],
        ["opening with its golden sample and a first answer, median and longest", span(opening)],
    ]


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=30)
    num = parser.parse_args().tasks
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registry, tasks = fill(folder, num)
        image = cv2.imencode(".png", bench.photo(512))[1].tobytes()
        one = in_one([folder / task for task in tasks], image)
        size = sum(path.stat().st_size for path in (folder / tasks[0]).iterdir()) / 1000
        ways = {
            "one shared": SharedConfig(tasks=("*",), most_open=num),
            f"one shared, {FEW} open": SharedConfig(tasks=("*",), most_open=FEW),
            "a replica to each task": SharedConfig(),
        }
        told = {way: behind(registry, tasks, image, shared) for way, shared in ways.items()}
    text = f"{num} tasks, each with a champion of its own: a graph of three convolutions ({size:.0f} kB with its golden sample), asked with a PNG of 512x512 by turns."
    names = next(iter(told.values()))
    rows = [[name, *[costs[name] for costs in told.values()]] for name in names]
    other = [f"all {num} in one process, without a server", ""]
    bench.write(__file__, text, bench.table(["", *ways], rows), bench.table(other, one), SAYS)


if __name__ == "__main__":
    main()
