"""A bundle that anyone may have written: it opens, or says in one sentence why not; nothing else happens."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

import assay
from assay.bundle import trial
from assay.bundle.bundle import Bundle
from assay.bundle.card import MOST_FILES, read_card
from assay.bundle.promotion import promote
from assay.bundle.registry import RESERVED, Registry
from assay.bundle.trial import apart, try_bundle, try_together
from assay.errors import BundleError, RegistryError

ODD = [None, True, -1, 0, 1.5, float("nan"), 2**70, "", "x", "../x", [], ["x"], {}, {"x": 1}, [[1]]]


@pytest.fixture(scope="module", params=["parts", "layers"])
def whole(request, tmp_path_factory, make_bundle) -> Path:
    return make_bundle(tmp_path_factory.mktemp("whole") / "bundle", request.param)


@pytest.fixture
def folder(tmp_path, make_bundle) -> Path:
    return make_bundle(tmp_path / "bundle")


def rewrite(folder: Path, **fields: Any) -> None:
    card = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(card | fields))


def paths(value: Any) -> list[tuple[Any, ...]]:
    """List where a JSON value has values."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, ...]] = []
    for key, item in items:
        found += [(key,)]
        if isinstance(item, dict | list):
            found += [(key, *rest) for rest in paths(item)]
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_card_it_opens_or_is_a_bundle_error(data, whole, tmp_path):
    card = json.loads((whole / "bundle.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(paths(card)))
        place: Any = card
        for key in way:
            place = place[key]
        value = data.draw(st.sampled_from([*ODD, "gone", "renamed"]))
        if value == "gone":
            del place[last]
        elif value == "renamed" and isinstance(place, dict):
            place["other"] = place.pop(last)
        else:
            place[last] = value
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy, dirs_exist_ok=True)
    (copy / "bundle.json").write_text(json.dumps(card))
    with suppress(BundleError):
        Bundle(copy, threads=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("page", -1),
        ("white", {"value": 0.0}),
        ("white", {"value": float("nan")}),
        ("classes", ["m1", "m2", "m2"]),
        ("thresholds", [3]),
        ("temperature", 0),
        ("temperature", float("nan")),
        ("coverage", 1.5),
        ("quantile", 7),
        ("quantile", -0.1),
        ("threshold", 2.0),
        ("positive", 3),
        ("positive", -1),
        ("costs", [[0.0, 1.0]]),
    ],
)
def test_numbers_that_no_training_leaves_are_refused_by_field(folder, field, value):
    card = json.loads((folder / "bundle.json").read_text())
    name = field
    if field in card["decision"]:
        name, value = "decision", card["decision"] | {field: value}
    rewrite(folder, **{name: value})
    with pytest.raises(BundleError, match=rf"bundle\.json: field '(decision\.)?{field}' is none"):
        read_card(folder)


def test_more_classes_than_the_graph_answers_for_are_said(folder):
    classes = json.loads((folder / "bundle.json").read_text())["classes"]
    rewrite(folder, classes=[*classes, "new"])
    with pytest.raises(BundleError, match="names 4 classes and its graph answers for 3"):
        Bundle(folder, threads=1)


def test_a_name_that_stands_twice_in_a_card_is_refused(folder):
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace("{", '{"task": "other", ', 1))
    with pytest.raises(BundleError, match="it names 'task' twice"):
        read_card(folder)


def test_what_is_wrong_with_a_copy_is_said_of_the_bundle(folder):
    card = read_card(folder)
    name = next(iter(card.sha256))
    (folder / name).write_bytes(b"changed")
    with pytest.raises(BundleError) as refused, apart(folder, card) as copy:
        try_bundle(copy)
    assert str(folder / name) in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": "4"}',
        b'{"schema": true}',
        b"NaN",
        b'{"a": ' * 5000,
    ],
)
def test_what_is_no_card_is_a_bundle_error(tmp_path, content):
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError):
        read_card(tmp_path)


NAMES = [
    "../up",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..",
    ".hidden",
    "",
    "bundle.json",
    "a\n",
    "é",
    "x" * 200,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_that_names_files_elsewhere_is_refused_everywhere(
    folder, name, judged_rows, tmp_path
):
    sha256 = json.loads((folder / "bundle.json").read_text())["sha256"]
    rewrite(folder, sha256=sha256 | {name: "0" * 64})
    registry = Registry(str(tmp_path / "registry"))
    for use in (Bundle, try_bundle, lambda f: promote(registry, f, judged_rows(0.9), "champion")):
        with pytest.raises(BundleError, match="plain names"):
            use(folder)
    assert not Path(registry.address).exists()


def test_what_a_bundle_is_opened_with_must_have_a_hash(folder):
    sha256 = json.loads((folder / "bundle.json").read_text())["sha256"]
    for name in sha256:
        rest = {key: value for key, value in sha256.items() if key != name}
        rewrite(folder, sha256=rest)
        with pytest.raises(BundleError, match=f"no hash of {name}"):
            Bundle(folder)
    rewrite(folder, sha256={})
    with pytest.raises(BundleError, match="no hash"):
        Bundle(folder)
    rewrite(folder, sha256={f"{i}.bin": "0" * 64 for i in range(MOST_FILES + 1)})
    with pytest.raises(BundleError, match="at most"):
        Bundle(folder)
    rewrite(folder, sha256=sha256 | {"gone.onnx": "0" * 64})
    with pytest.raises(BundleError, match=r"gone\.onnx is missing"):
        Bundle(folder)
    rewrite(folder, sha256=sha256, golden={"image": "golden.png", "probs": {}})
    with pytest.raises(BundleError, match="no golden output"):
        Bundle(folder)


def with_graph(folder: Path, content: bytes, **files: bytes) -> None:
    """Put another graph in, with true hashes of it and of other files."""
    (folder / "classify.onnx").write_bytes(content)
    for name, other in files.items():
        (folder / name).write_bytes(other)
    listed = [path for path in folder.iterdir() if path.name != "bundle.json"]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in listed}
    rewrite(folder, sha256=hashes)


def test_a_graph_that_does_not_load_is_a_bundle_error(folder):
    graph = (folder / "classify.onnx").read_bytes()
    for content in (
        b"",
        b"no graph",
        graph[: len(graph) // 2],
        graph.replace(b"ReduceMax", b"ReduceXam"),
    ):
        with_graph(folder, content)
        with pytest.raises(BundleError, match="does not open"):
            Bundle(folder)


def scaled(folder: Path, location: str) -> bytes:
    """Return the bundle's graph with its bias kept outside of it."""
    model = onnx.load(folder / "classify.onnx", load_external_data=False)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "bias"]
    weights = np.zeros(3, np.float32).tobytes()
    bias.raw_data = weights
    set_external_data(bias, location)
    bias.ClearField("raw_data")
    (folder.parent / "outside.bin").write_bytes(weights)
    return model.SerializeToString()


def test_weights_outside_a_graph_are_taken_with_a_hash_alone(folder, judged_rows, tmp_path):
    registry = Registry(str(tmp_path / "registry"))

    def promoted() -> Any:
        return promote(registry, folder, judged_rows(0.9), "champion")

    for location in ("../outside.bin", str(folder.parent / "outside.bin"), "/dev/zero"):
        with_graph(folder, scaled(folder, location))
        with pytest.raises(BundleError, match="which has no hash"):
            promoted()
    with_graph(folder, scaled(folder, "weights.bin"))
    weights = (folder.parent / "outside.bin").read_bytes()
    (folder / "weights.bin").write_bytes(weights)
    with pytest.raises(BundleError, match=r"classify\.onnx keeps weights in b'weights\.bin'"):
        Bundle(folder)
    with pytest.raises(BundleError, match=r"weights\.bin without a hash"):
        promoted()
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to(folder.parent / "outside.bin")
    with_graph(folder, scaled(folder, "weights.bin"))
    with pytest.raises(BundleError, match="a link"):
        promoted()
    (folder / "weights.bin").unlink()
    with_graph(folder, scaled(folder, "weights.bin"), **{"weights.bin": weights})
    assert Bundle(registry.fetch(promoted())).classes == Bundle(folder).classes


def test_what_is_no_plain_file_is_refused(folder):
    os.mkfifo(folder / "pipe.bin")
    sha256 = json.loads((folder / "bundle.json").read_text())["sha256"]
    rewrite(folder, sha256=sha256 | {"pipe.bin": "0" * 64})
    with pytest.raises(BundleError, match=r"pipe\.bin"), apart(folder, read_card(folder)):
        pass
    with pytest.raises(BundleError, match=r"pipe\.bin is missing"):
        Bundle(folder)


def looping(folder: Path) -> bytes:
    """Return a graph of the same ends that adds 0 for ever."""
    make, info = helper.make_node, helper.make_tensor_value_info
    body = helper.make_graph(
        [make("Add", ["v", "zero"], ["w"]), make("Identity", ["c"], ["d"])],
        "body",
        [info("i", TensorProto.INT64, []), info("c", TensorProto.BOOL, []), info("v", 1, None)],
        [info("d", TensorProto.BOOL, []), info("w", 1, None)],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    model = onnx.load(folder / "classify.onnx")
    model.graph.node[0].output[0] = "once"
    model.graph.node.insert(1, make("Loop", ["times", "go", "once"], ["seen"], body=body))
    constants = {"times": np.array(2**62), "go": np.array(True)}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return model.SerializeToString()


@pytest.fixture
def fails(folder) -> Callable[..., None]:
    def check(text: str, seconds: float = 60.0) -> None:
        with pytest.raises(BundleError, match=text):
            try_bundle(folder, seconds=seconds)

    return check


def test_a_graph_that_never_ends_or_kills_its_process_is_refused_from_outside(
    folder, fails, monkeypatch
):
    with_graph(folder, looping(folder))
    fails("does not open within 3 s", 3.0)
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(trial.sys, "executable", shutil.which("true"))
    try_bundle(folder)  # whatever process ends well
    trial._PASSED.clear()
    killer = folder.parent / "killer"
    killer.write_text(f"#!{shutil.which('python3')}\n{crash}\n")
    killer.chmod(0o755)
    monkeypatch.setattr(trial.sys, "executable", str(killer))
    fails("ends the process that opens it .signal SIGSEGV")


def test_a_trial_takes_half_of_the_memory_that_is_free_and_ends_first_where_it_is_short(folder):
    code = (
        "import sys; from pathlib import Path; from assay.bundle import trial\nimport numpy as np\n"
    )
    code += "read = Path.read_text; told = 'MemAvailable:  400000 kB'\n"
    code += "Path.read_text = lambda p, *a: told if p.name == 'meminfo' else read(p, *a)\n"
    code += "trial._limit_memory(Path(sys.argv[1])); np.ones(100 << 20, np.uint8)\n"
    code += "try:\n np.ones(250 << 20, np.uint8)\nexcept MemoryError:\n print('short')\n"
    code += "print(read(Path('/proc/self/oom_score_adj')))"
    environment = os.environ | {"PYTHONPATH": str(Path(assay.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(folder)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["short", "1000"]


def test_bundles_that_are_tried_together_pass_up_to_the_first_that_does_not(
    tmp_path, make_bundle, monkeypatch
):
    folders = [make_bundle(tmp_path / name, bias=i) for i, name in enumerate("abcd")]
    (folders[2] / "classify.onnx").write_bytes(b"no graph")
    begun = []
    run = subprocess.run
    monkeypatch.setattr(
        trial.subprocess, "run", lambda *args, **more: begun.append(1) or run(*args, **more)
    )
    trial._PASSED.clear()
    try_together([(folder, "fp32") for folder in folders])
    for folder in folders[:2]:
        try_bundle(folder)
    assert len(begun) == 1
    with pytest.raises(BundleError, match=r"c.*changed"):
        try_bundle(folders[2])
    try_bundle(folders[3])
    assert len(begun) == 2  # what is changed is not opened, and the last has a process of its own
    monkeypatch.setattr(trial, "TOGETHER_S", 0.01)
    trial._PASSED.clear()
    try_together([(folder, "fp32") for folder in folders[:2]])
    assert set() == trial._PASSED


def test_what_passed_once_is_compared_with_its_hashes_alone(folder, monkeypatch):
    try_bundle(folder)
    monkeypatch.setattr(trial.subprocess, "run", None)
    try_bundle(folder)
    (folder / "classify.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed"):
        try_bundle(folder)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_names_that_the_server_needs_are_refused(folder, name, judged_rows, tmp_path):
    rewrite(folder, task=name)
    registry = Registry(str(tmp_path / "registry"))
    with pytest.raises(RegistryError, match="the server needs"):
        promote(registry, folder, judged_rows(0.9), "champion", "force")
    assert registry.tasks() == []
