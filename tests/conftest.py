"""For every test: shape annotations are checked (see shape_checks.py), and hypothesis draws the same examples each time.

Two processes share the files, a file's tests staying together (its fixtures are made once). One takes
those that wait longest for Ray, one after the other; the other does the rest meanwhile, what remains of
Ray, and at last what trains without it.

Also each task on a few images, and bundles and predictions made by hand, for tests of what comes after training.
"""

import io
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

# read as Ray is imported: under `uv run` its workers would each make an environment of their own
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# on a loaded machine a node takes long to start
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import cv2
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

RAY = ("test_ray", "test_readme", "test_jobs", "test_autoscaling", "test_sweep_storage")
LATE = ("test_cluster", "test_sweep")
LAST = ("train", "tasks")

SHAPES = runpy.run_path(str(Path(__file__).with_name("shape_checks.py")))
SHAPES["install"]()
# no deadline: how long an example takes says nothing on a machine that others use too
settings.register_profile("assay", deadline=None, derandomize=True)
settings.load_profile("assay")


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of EfficientNet-Lite0, pretrained on ImageNet, as a file for timm's tf_efficientnet_lite0."""
    script = runpy.run_path(str(Path(__file__).with_name("pretrained.py")))
    return script["lite0"](tmp_path_factory.mktemp("weights") / "lite0.safetensors")


@pytest.fixture
def damages() -> Callable[[Path], Iterator[str]]:
    """A function that puts into a file's place what torn and foreign files hold, one after the other."""

    def spoil(path: Path) -> Iterator[str]:
        path.parent.mkdir(exist_ok=True)
        content = path.read_bytes() if path.is_file() else b'{"schema": 4}'
        table = io.BytesIO()
        pq.write_table(pa.table({"other": [1]}), table)
        for name, damaged in {
            "half": content[: len(content) // 2],
            "nothing": b"",
            "an object": b"{}",
            "a list": b"[]",
            "deep lists": b"[" * 100_000,
            "a huge number": b'{"schema": 1' + b"0" * 5000 + b"}",
            "no UTF-8": b"\xff\xfe\x00",
            "another table": table.getvalue(),
        }.items():
            path.write_bytes(damaged)
            yield name
        path.unlink()
        path.mkdir()
        yield "a folder"
        path.rmdir()
        path.write_bytes(content)

    return spoil


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A function that lets no file of this process grow beyond so many bytes in a block, as a full disk does not."""

    @contextmanager
    def limited(num: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host and port of a real S3 server, moto's, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "server.log"
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as out, subprocess.Popen(words, stdout=out, stderr=out) as server:
        try:
            deadline = time.monotonic() + 120
            while not _answers(port):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A function that makes the address of a folder in a bucket of its own; caches lie below tmp_path."""
    import pyarrow.fs as pafs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    files = pafs.S3FileSystem(
        endpoint_override=s3_server, scheme="http", allow_bucket_creation=True
    )
    bucket = f"bucket-{uuid4().hex}"
    files.create_dir(bucket)
    return lambda name: f"s3://{bucket}/{name}?endpoint_override={s3_server}&scheme=http"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """A function that serves a folder by HTTP until the test ends, and returns its address."""
    monkeypatch.setenv("NO_PROXY", "*")
    with ExitStack() as stack:

        def serve(folder: Path) -> str:
            handler = partial(_Quiet, directory=folder)
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


class ByFile(LoadScopeScheduling):
    """Shares out whole files, and those of `RAY` as one."""

    def _split_scope(self, nodeid: str) -> str:
        stem = Path(nodeid.split("::")[0]).stem
        return "ray" if stem in RAY else stem


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """How tests are shared out."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with those that start Ray, but for a few, and end with many that do not, so that both processes end together."""

    def turn(path: Path) -> int:
        if path.stem in RAY:
            return 0
        return 2 if path.stem in LATE else 3 if path.parent.name in LAST else 1

    items.sort(key=lambda item: turn(item.path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes anew in each test."""
    SHAPES["calls"].clear()


ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tasks").glob("*.py"))
SYSTEMS = sorted((ROOT / "tests" / "systems").glob("*.py"))
"""A toy of each kind of input: with domains, a second label, masks beside labels, alternating phases."""


@pytest.fixture(
    scope="module",
    params=[*(str(path.relative_to(ROOT)) for path in (*FILES, *SYSTEMS)), "README"],
)
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task on a few images of its embedded data, decoded in a store."""
    script = runpy.run_path(str(Path(__file__).with_name("conformance.py")))
    return script["make"](request.param, tmp_path_factory)


@pytest.fixture
def learner(system: Any) -> Any:
    """A system that learns by updates."""
    if not system.config.train.epochs:
        pytest.skip("what it learns, it learns before the first update")
    return system


CLASSES = ["m1", "m2", "m3"]
DECISION = {
    "temperature": 2.0,
    "coverage": 0.9,
    "quantile": 0.66,
    "costs": None,
    "positive": None,
    "threshold": None,
    "num": 100,
    "num_groups": 50,
}
METRIC = {"value": 0.9, "low": 0.8, "high": 0.95, "num": 60, "num_groups": 30}
SIDE = 32


def _save(path: Path, nodes: list, feed: str, ends: dict[str, list], constants: dict) -> None:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(feed, TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", *ends[end]]) for end in ends],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def _write_mask_graph(folder: Path, bias: float) -> dict[str, Any]:
    """Write a graph whose logits are the red channel plus a bias; returns the pipeline around it."""
    nodes = [
        helper.make_node("Conv", ["tiles", "red"], ["seen"]),
        helper.make_node("Add", ["seen", "bias"], ["logits"]),
    ]
    red = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)
    constants = {"red": red, "bias": np.array(bias, np.float32)}
    _save(folder / "segment.onnx", nodes, "tiles", {"logits": [1, SIDE, SIDE]}, constants)
    tiles = {"tile_px": SIDE, "overlap_px": 8}
    return {"kind": "tiles", "graphs": ["segment"], "masks": {}, "tiles": tiles}


def _write_class_graph(folder: Path, bias: float) -> dict[str, Any]:
    """Write a graph whose logits are the largest value of each channel, plus a bias of the first; returns the pipeline around it."""
    nodes = [
        helper.make_node("ReduceMax", ["image", "inner"], ["seen"], keepdims=0),
        helper.make_node("Add", ["seen", "bias"], ["logits"]),
        helper.make_node("Identity", ["seen"], ["embedding"]),
        helper.make_node("MaxPool", ["image"], ["evidence"], kernel_shape=[8, 8], strides=[8, 8]),
    ]
    inner, first = np.array([2, 3], np.int64), np.array([bias, 0, 0], np.float32)
    constants = {"inner": inner, "bias": first}
    ends = {"logits": [3], "embedding": [3], "evidence": [3, SIDE // 8, SIDE // 8]}
    _save(folder / "classify.onnx", nodes, "image", ends, constants)
    sizes = {"height_px": SIDE, "width_px": SIDE}
    return {"kind": "image", "graphs": ["classify"], "image": sizes}


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    """Makes a sealed bundle: of a class, by each channel's largest value (its embedding, and of 8 x 8
    pixels its evidence) plus a bias of the first class, which `alarms` watch; or of a mask, by the red channel plus the
    bias, with no embedding."""
    from assay.bundle.card import Card
    from assay.bundle.seal import seal
    from assay.typed import from_json

    def make(
        folder: Path, task: str = "parts", bias: float = 0.0, alarms: Sequence[Any] = ()
    ) -> Path:
        folder.mkdir(parents=True)
        golden = folder.with_suffix(".golden.png")
        noise = np.random.default_rng(5).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        cv2.imwrite(str(golden), noise)
        classes, thresholds, decision = CLASSES, None, DECISION
        if task == "layers":
            pipeline = _write_mask_graph(folder, bias)
            classes, thresholds, decision = ["pore"], [36], None
        else:
            pipeline = _write_class_graph(folder, bias)
        embedding = {"mean": [0.0] * 3, "scatter": 1.0, "val": 0.5}
        if alarms:
            decision = DECISION | {"positive": 0, "costs": (1 - np.eye(3)).tolist()}
        card = {
            "task": task,
            "alarms": list(alarms),
            "run": f"{task}-{bias:g}",
            "data": "d" * 12,
            "code": {"assay": "0.1.0"},
            "classes": classes,
            "pipeline": pipeline,
            "decision": decision,
            "thresholds": thresholds,
            "metrics": {"test": {"num": 60, "num_groups": 30, "metrics": {"accuracy": METRIC}}},
            "embedding": embedding if task == "parts" else None,
        }
        seal(folder, from_json(Card, card), golden)
        return folder

    return make


@pytest.fixture(scope="session")
def judged_rows() -> Callable[..., pa.Table]:
    """Makes test and val rows of the first two classes, two views a part, a share answered rightly."""

    def make(right: float, num: int = 120, test: str = "test") -> pa.Table:
        truth = np.arange(num) // 2 % 2
        answers = np.where(np.arange(num) // 2 * 7 % 60 < 60 * right, truth, 1 - truth)
        columns = {
            "id": [f"s{i:04d}" for i in range(num)],
            "group": [f"g{i // 2}" for i in range(num)],
            "split": [test if i < num // 2 else "val" for i in range(num)],
            "truth": pa.array(truth, pa.int32()),
            "logits": pa.array(np.eye(3)[answers].tolist()),
        }
        table = pa.table(columns)
        return table.replace_schema_metadata({"classes": json.dumps(CLASSES)})

    return make
