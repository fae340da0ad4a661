"""A bundle that was changed, or that this machine cannot repeat, does not open."""

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from assay.bundle import Bundle, seal
from assay.data.patches import Canvas, PatchConfig, cell_corners
from assay.data.pixels import Entry
from assay.errors import BundleError, ImageError

SIZES = PatchConfig(image_px=64, overview_px=16, patch_px=16, clahe_clip=0.0)
GRID, K = 4, 3
CLASSES = ["low", "middle", "high"]
SECRET = "/home/someone/secret"


def write_graphs(folder: Path) -> None:
    """By hand: scores are the first channel's means of a cell, logits the means of each channel.

    The overview is 16 pixels for 4 cells a side, so a 4x4 average pool gives the grid.
    """
    scorer = helper.make_graph(
        [
            helper.make_node("Slice", ["overview", "zero", "one", "axis"], ["first"]),
            helper.make_node("AveragePool", ["first"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
            helper.make_node("Flatten", ["pooled"], ["scores"]),
        ],
        "scorer",
        [helper.make_tensor_value_info("overview", TensorProto.FLOAT, ["b", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", GRID**2])],
        [
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in (("zero", 0), ("one", 1), ("axis", 1))
        ],
    )  # fmt: skip
    classify = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["patches", "all"], ["logits"], keepdims=0),
            helper.make_node("ReduceMean", ["patches", "inner"], ["means"], keepdims=0),
            helper.make_node("Softmax", ["means"], ["attn"], axis=-1),
        ],
        "classify",
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["b", K, 3, 16, 16])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3]),
            helper.make_tensor_value_info("attn", TensorProto.FLOAT, ["b", K]),
        ],
        [
            numpy_helper.from_array(np.array([1, 3, 4], np.int64), "all"),
            numpy_helper.from_array(np.array([2, 3, 4], np.int64), "inner"),
        ],
    )  # fmt: skip
    for name, graph in (("scorer", scorer), ("classify", classify)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        model.graph.node[0].metadata_props.add(key="trace", value=SECRET)
        onnx.save(model, folder / f"{name}.onnx")


def draw(path: Path, seed: int) -> Path:
    """A bright disc on noise, not square."""
    pixels = np.random.default_rng(seed).integers(0, 90, (96, 128, 3), dtype=np.uint8)
    cv2.circle(pixels, (40 + 10 * seed, 50), 25, (30, 60, 250), -1)
    assert cv2.imwrite(str(path), pixels)
    return path


def card_of(select: str = "dps") -> dict:
    graphs = ["classify", "scorer"] if select == "dps" else ["classify"]
    pipeline = {
        "kind": "patches", "select": select, "k": K, "draws": 2 * K, "grid": GRID, "graphs": graphs,
        "patches": {"image_px": 64, "overview_px": 16, "patch_px": 16, "clahe_clip": 0.0},
    }  # fmt: skip
    return {"classes": CLASSES, "pipeline": pipeline, "temperature": 2.0}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [draw(folder / f"{seed}.png", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    write_graphs(folder)
    seal(folder, card_of(), images[0])
    return folder


@pytest.fixture
def folder(sealed, tmp_path) -> Path:
    """A copy to change."""
    shutil.copytree(sealed, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder: Path, **fields: object) -> None:
    card = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(card | fields))


def test_an_answer_is_what_its_parts_say(sealed, images):
    """Normalised by the image's own statistics, the k best cells, softmax at the temperature."""
    opened = Bundle(sealed)
    for image in images:
        answer = opened.predict(image)
        assert opened.predict(image.read_bytes()).probs == answer.probs
        canvas = Canvas(Entry.of(cv2.imread(str(image))[..., ::-1]), SIZES)
        overview, mean, std = canvas.overview()
        cells = overview[..., 0].reshape(GRID, 4, GRID, 4).mean((1, 3)).ravel()
        best = np.sort(np.argsort(-cells, kind="stable")[:K])
        corners = cell_corners(best, GRID, SIZES)
        patches = (canvas.patches(corners) / 255 - mean) / (std + 1e-6)
        logits = patches.mean((0, 1, 2)) / 2
        probs = np.exp(logits) / np.exp(logits).sum()
        assert [answer.probs[name] for name in CLASSES] == pytest.approx(probs, abs=1e-4)
        assert answer.label == CLASSES[int(probs.argmax())]
        assert np.allclose(answer.boxes, canvas.source_boxes(corners))
        weights = np.exp(patches.mean((1, 2, 3)))
        assert np.allclose(answer.attn, weights / weights.sum(), atol=1e-4)


def test_random_patches_are_the_same_for_the_same_image(tmp_path, images):
    write_graphs(tmp_path)
    (tmp_path / "scorer.onnx").unlink()
    opened = seal(tmp_path, card_of("random"), images[0])
    first, second, other = (opened.predict(images[i]) for i in (1, 1, 2))
    assert np.array_equal(first.boxes, second.boxes)
    assert not np.array_equal(first.boxes, other.boxes)
    canvas = Canvas(Entry.of(cv2.imread(str(images[1]))[..., ::-1]), SIZES)
    everywhere = cell_corners(np.arange(GRID**2), GRID, SIZES)
    allowed = {tuple(box) for box in canvas.source_boxes(everywhere)}
    assert {tuple(box) for box in first.boxes} <= allowed


def test_a_card_lists_every_file_and_its_golden_output(sealed, images):
    card = json.loads((sealed / "bundle.json").read_text())
    files = {path.name for path in sealed.iterdir()}
    assert files == set(card["sha256"]) | {"bundle.json"} == {
        "bundle.json", "classify.onnx", "scorer.onnx", "golden.png",
    }  # fmt: skip
    for name, digest in card["sha256"].items():
        assert hashlib.sha256((sealed / name).read_bytes()).hexdigest() == digest
    assert (sealed / "golden.png").read_bytes() == images[0].read_bytes()
    assert card["golden"]["probs"] == pytest.approx(Bundle(sealed).predict(images[0]).probs)


def test_sealed_graphs_keep_their_answers_and_no_trace_of_their_machine(sealed, tmp_path):
    write_graphs(tmp_path)
    feed = {"overview": np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)}
    answers = []
    for place in (tmp_path, sealed):
        assert (SECRET.encode() in (place / "scorer.onnx").read_bytes()) == (place == tmp_path)
        session = onnxruntime.InferenceSession(place / "scorer.onnx")
        answers.append(session.run(["scores"], feed)[0])
    assert np.array_equal(*answers)


@pytest.mark.parametrize("name", ["classify.onnx", "golden.png"])
def test_a_changed_file_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is missing or was changed"):
        Bundle(folder)


def test_a_missing_file_is_refused(folder):
    (folder / "scorer.onnx").unlink()
    with pytest.raises(BundleError, match=r"scorer\.onnx is missing"):
        Bundle(folder)


def test_a_newer_schema_is_refused_before_anything_else(folder):
    edit(folder, schema=2, sha256="unknown to this version")
    with pytest.raises(BundleError, match="has schema 2, this Assay knows 1"):
        Bundle(folder)


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_golden_output_that_is_not_repeated_is_refused(folder, wrong):
    golden = json.loads((folder / "bundle.json").read_text())["golden"]
    golden["probs"]["low"] += wrong
    edit(folder, golden=golden)
    with pytest.raises(BundleError, match="does not repeat its golden output"):
        Bundle(folder)
    Bundle(folder, verify=False)


def test_a_golden_output_within_the_tolerance_is_repeated(folder):
    golden = json.loads((folder / "bundle.json").read_text())["golden"]
    golden["probs"]["low"] += 5e-4
    edit(folder, golden=golden)
    assert Bundle(folder).classes == CLASSES


def test_an_unknown_pipeline_is_refused_by_name(folder):
    edit(folder, pipeline={"kind": "tiles"})
    with pytest.raises(BundleError, match="'tiles'; this Assay has: patches"):
        Bundle(folder)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '"schema"'])
def test_what_is_no_bundle_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match="no bundle"):
        Bundle(tmp_path)


def test_an_unreadable_image_is_an_image_error(sealed):
    with pytest.raises(ImageError):
        Bundle(sealed).predict(b"not an image")
