"""Graphs that call themselves int8: of half of the weights at least that is true, or they are refused."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import nn

from assay.bundle.card import Card
from assay.bundle.seal import quantized_share, seal
from assay.errors import BundleError
from assay.nn.export import write_graph
from assay.typed import from_json


@pytest.fixture(scope="module")
def image_card(card_of) -> Callable[..., dict]:
    """Makes the card of a graph that looks at the whole image in its frame."""

    def make(**pipeline: object) -> dict:
        frame = {"height_px": 16, "width_px": 16}
        shown = {"kind": "image", "image": frame, "graphs": ["classify"], **pipeline}
        return card_of() | {"pipeline": shown}

    return make


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten()).eval()


def write_classify(folder: Path, net: nn.Module) -> Path:
    write_graph(folder / "classify.onnx", net, net, ("image", (3, 16, 16)), ["logits"])
    return folder / "classify.onnx"


class Noise(CalibrationDataReader):
    """A few inputs to set the ranges of a quantizer by."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.feeds = iter([{"image": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)}] * 3)

    def get_next(self) -> dict | None:
        return next(self.feeds, None)


def quantize(path: Path, **options: object) -> Path:
    made = path.with_name("quantized.onnx")
    logging.disable(logging.WARNING)  # it recommends a step that this small graph has no use for
    try:
        quantize_static(path, made, Noise(), **options)
    finally:
        logging.disable(logging.NOTSET)
    return made.replace(path)


def test_a_float_graph_that_calls_itself_int8_is_refused(tmp_path, images, image_card):
    write_classify(tmp_path, convolutions())
    refused = r"classify calls itself int8, but 0\.0% of the weights .* at least 50% must be"
    with pytest.raises(BundleError, match=refused):
        seal(tmp_path, from_json(Card, image_card(int8=["classify"])), images[0])
    assert not (tmp_path / "bundle.json").exists()
    seal(tmp_path, from_json(Card, image_card()), images[0])  # it does not call itself int8


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_a_quantizer_that_quantizes_nothing_is_found_out(tmp_path, images, image_card):
    """Torch's dynamic quantization knows linear layers, and says nothing of the others."""
    told = {nn.Conv2d, nn.Linear}
    net = torch.ao.quantization.quantize_dynamic(convolutions(), told, dtype=torch.qint8)
    assert quantized_share(write_classify(tmp_path, net)) == 0
    with pytest.raises(BundleError, match="calls itself int8"):
        seal(tmp_path, from_json(Card, image_card(int8=["classify"])), images[0])


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_quantized_graph_is_sealed(tmp_path, images, form, image_card):
    path = quantize(write_classify(tmp_path, convolutions()), quant_format=form)
    assert quantized_share(path) == 1
    opened = seal(tmp_path, from_json(Card, image_card(int8=["classify"])), images[0])
    assert sum(opened.predict(images[1]).probs.values()) == pytest.approx(1)


def test_half_of_the_weights_is_the_least(tmp_path, images, image_card):
    """Only the matrix product is quantized: 48 of 48 + 216 elements; biases do not count."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(16, 3)
    )
    path = quantize(write_classify(tmp_path, net), op_types_to_quantize=["Gemm", "MatMul"])
    assert quantized_share(path) == pytest.approx(48 / (48 + 216))
    with pytest.raises(BundleError, match=r"but 18\.2% of the weights"):
        seal(tmp_path, from_json(Card, image_card(int8=["classify"])), images[0])


def test_weights_are_found_behind_other_nodes_and_in_functions(tmp_path):
    """60 int8 elements in a Constant node and 20 float ones in a function of the model."""
    stored = numpy_helper.from_array(np.ones((6, 10), np.int8), "stored")
    weight = numpy_helper.from_array(np.ones((10, 2), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    opset = helper.make_opsetid("", 18)
    inner = helper.make_function("here", "Last", ["x"], ["y"], nodes, [opset])
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["stored"], value=stored),
            helper.make_node("DequantizeLinear", ["stored", "scale"], ["float"]),
            helper.make_node("Reshape", ["float", "shape"], ["weight"]),
            helper.make_node("Add", ["x", "shift"], ["moved"]),  # not a weight
            helper.make_node("MatMul", ["moved", "weight"], ["middle"]),
            helper.make_node("Last", ["middle"], ["y"], domain="here"),
        ],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 2])],
        [
            numpy_helper.from_array(np.float32(0.1), "scale"),
            numpy_helper.from_array(np.array([6, 10], np.int64), "shape"),
            numpy_helper.from_array(np.ones((1, 6), np.float32), "shift"),
        ],
    )
    opsets = [opset, helper.make_opsetid("here", 1)]
    model = helper.make_model(graph, functions=[inner], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "products.onnx")
    assert quantized_share(tmp_path / "products.onnx") == 60 / 80


def test_weights_that_are_rounded_only_on_the_way_are_no_8_bit_weights(tmp_path):
    options = {"AddQDQPairToWeight": True}
    path = quantize(write_classify(tmp_path, convolutions()), extra_options=options)
    assert quantized_share(path) == 0
