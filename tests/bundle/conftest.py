"""A sealed bundle of two graphs made by hand, its images, and a copy of it to change."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from assay.bundle.card import Card
from assay.bundle.seal import seal
from assay.metrics.decide import Decision
from assay.typed import from_json

GRID, K = 4, 3
CLASSES = ["low", "middle", "high"]
SECRET = "/home/someone/secret"


@pytest.fixture(scope="session")
def deciding() -> Decision:
    """How the bundles decide."""
    return Decision(
        temperature=2.0,
        coverage=0.9,
        quantile=0.66,
        costs=None,
        positive=None,
        threshold=None,
        num=100,
        num_groups=50,
    )


@pytest.fixture(scope="session")
def write_graphs() -> Callable[[Path], None]:
    """Writes graphs by hand: scores are the first channel's means of a cell, logits the means of each channel.

    The overview is 16 pixels for 4 cells a side, so a 4x4 average pool gives the grid.
    """

    def write(folder: Path) -> None:
        cells = {"kernel_shape": [4, 4], "strides": [4, 4]}
        scorer = helper.make_graph(
            [
                helper.make_node("Slice", ["overview", "zero", "one", "axis"], ["first"]),
                helper.make_node("AveragePool", ["first"], ["pooled"], **cells),
                helper.make_node("Flatten", ["pooled"], ["scores"]),
            ],
            "scorer",
            [helper.make_tensor_value_info("overview", TensorProto.FLOAT, ["b", 3, 16, 16])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", GRID**2])],
            [
                numpy_helper.from_array(np.array([value], np.int64), name)
                for name, value in (("zero", 0), ("one", 1), ("axis", 1))
            ],
        )
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
        )
        for name, graph in (("scorer", scorer), ("classify", classify)):
            model = helper.make_model(
                graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
            )
            model.graph.node[0].metadata_props.add(key="trace", value=SECRET)
            onnx.save(model, folder / f"{name}.onnx")

    return write


def draw(path: Path, seed: int) -> Path:
    """A bright disc on noise, not square."""
    pixels = np.random.default_rng(seed).integers(0, 90, (96, 128, 3), dtype=np.uint8)
    cv2.circle(pixels, (40 + 10 * seed, 50), 25, (30, 60, 250), -1)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(scope="session")
def card_of(deciding: Decision) -> Callable[..., dict]:
    """Makes the card of these graphs."""

    def make(select: str = "dps") -> dict:
        graphs = ["classify", "scorer"] if select == "dps" else ["classify"]
        pipeline = {
            "kind": "patches",
            "select": select,
            "k": K,
            "draws": 2 * K,
            "apart": 1,
            "grid": GRID,
            "graphs": graphs,
            "patches": {"image_px": 64, "overview_px": 16, "patch_px": 16, "clahe_clip": 0.0},
        }
        return {"classes": CLASSES, "pipeline": pipeline, "decision": asdict(deciding)}

    return make


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [draw(folder / f"{seed}.png", seed) for seed in range(3)]


@pytest.fixture(scope="session")
def sealed(
    tmp_path_factory: pytest.TempPathFactory,
    images: list[Path],
    write_graphs: Callable[[Path], None],
    card_of: Callable[..., dict],
) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    write_graphs(folder)
    seal(folder, from_json(Card, card_of()), images[0])
    return folder


@pytest.fixture
def folder(sealed: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(sealed, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="session")
def edit() -> Callable[..., None]:
    """Changes fields of a bundle's card."""

    def change(folder: Path, **fields: object) -> None:
        card = json.loads((folder / "bundle.json").read_text())
        (folder / "bundle.json").write_text(json.dumps(card | fields))

    return change
