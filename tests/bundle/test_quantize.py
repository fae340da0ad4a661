"""A graph in 8 bits answers as its float form, keeps in float what it must, or is refused."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from assay.bundle.quantize import (
    NUM_PROBES,
    GraphQuantizer,
    QuantizeConfig,
    QuantizeReport,
    quantize,
    time_graphs,
)
from assay.bundle.seal import quantized_share
from assay.errors import ConfigError, QuantizeError
from assay.nn.export import write_graph


class Net(nn.Module):
    """A small U-Net: half the size, three convolutions there, and back beside what it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.inner = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)])
        self.up = nn.Conv2d(32, 48, 3, padding=1)
        self.head = nn.Conv2d(48, 1, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, image: Tensor) -> Tensor:
        wide = self.stem(image).relu()
        deep = self.down(wide).relu()
        for layer in self.inner:
            deep = layer(deep).relu()
        back = nn.functional.interpolate(deep, size=wide.shape[-2:])
        return self.head(self.up(torch.cat([back, wide], 1)).relu())


def images(num: int, size: int = 32, seed: int = 0) -> list[np.ndarray]:
    """Draw smooth shapes."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(size=(num, 3, 4, 4)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return [image[None] for image in smooth.numpy()]


FEEDS = [{"image": image} for image in images(6)]
VAL = images(4, seed=1)
STEM, DOWN, INNER, UP = 0, 1, (2, 3, 4), 5  # convolutions in the order of the graph


@pytest.fixture(scope="module")
def net() -> Net:
    """Half of its logits are positive."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.head.bias -= net(torch.from_numpy(np.concatenate(VAL))).median()
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def graph(net, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "net.onnx"
    write_graph(path, net, net, ("image", (3, None, None)), ["logits"])
    return path


def convolutions(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]


def plant(graph: Path, folder: Path, *readers: int) -> Path:
    """Write the same function, but of what a reader reads, one channel has a huge range and a tiny weight."""
    model = onnx.load(graph)
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def scale(name: str, where: tuple, factor: float) -> None:
        values = numpy_helper.to_array(constants[name]).copy()
        values[where] *= factor
        constants[name].CopyFrom(numpy_helper.from_array(values, name))

    for reader in readers:
        _, weight, bias = nodes[reader - 1].input
        scale(weight, (reader,), 1e4)
        scale(bias, (reader,), 1e4)
        scale(nodes[reader].input[1], (slice(None), reader), 1e-4)
    onnx.save(model, folder / "planted.onnx")
    return folder / "planted.onnx"


def masks(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    return np.concatenate([session.run(None, {"image": image})[0] for image in VAL]) > 0


@pytest.fixture(scope="module")
def score(net) -> Callable[[Path], float]:
    """Score a graph by its overlap with what the module answers."""
    truth = net(torch.from_numpy(np.concatenate(VAL))).numpy() > 0

    def iou(path: Path) -> float:
        marked = masks(path)
        return float((marked & truth).sum() / (marked | truth).sum())

    return iou


CONFIG = QuantizeConfig(num_calibration=len(FEEDS), max_drop=0.05)


@pytest.fixture(scope="module")
def quantized(graph, score, tmp_path_factory) -> tuple[QuantizeReport, Path]:
    target = tmp_path_factory.mktemp("quantized") / "int8.onnx"
    return quantize(graph, target, FEEDS, score, CONFIG), target


def test_every_weight_is_in_8_bits_and_masks_agree(quantized, graph):
    report, target = quantized
    assert report.float_nodes == ()
    assert report.share == quantized_share(target) == 1
    assert report.fp32.score == pytest.approx(1, abs=1e-3)
    assert report.int8.score > 0.95
    assert (masks(graph) == masks(target)).mean() > 0.97
    assert report.int8.bytes == target.stat().st_size < report.fp32.bytes / 2
    assert report.sensitivity == {}  # nothing had to be left in float, so nobody asked
    card = json.loads(json.dumps(report.to_dict()))
    assert list(card) == ["fp32", "int8", "share", "kept", "sensitivity"]
    assert card["int8"]["p95_ms"] >= card["int8"]["p50_ms"] > 0
    assert card["kept"] == []


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_ranges_hold_as_well(graph, score, tmp_path, method):
    config = dataclasses.replace(CONFIG, method=method)
    assert quantize(graph, tmp_path / "int8.onnx", FEEDS, score, config).float_nodes == ()


def test_other_sizes_and_batches_are_answered(quantized, net):
    image = np.concatenate(images(3, size=48, seed=2))[:, :, :40]
    answer = onnxruntime.InferenceSession(quantized[1]).run(None, {"image": image})[0]
    expected = net(torch.from_numpy(image)).numpy()
    assert answer.shape == expected.shape == (3, 1, 40, 48)
    assert np.corrcoef(answer.ravel(), expected.ravel())[0, 1] > 0.99


def test_weights_fit_sums_in_16_bits_and_each_channel_fills_its_range(quantized):
    weights = [
        numpy_helper.to_array(tensor).astype(int)
        for tensor in onnx.load(quantized[1]).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(weights) == 7
    for weight in weights:
        largest = np.abs(weight).max((1, 2, 3))
        assert 2 * 255 * largest.max() < 2**15
        assert (largest >= 63).all()


def test_sensitivity_is_what_one_layer_alone_in_8_bits_costs(net, graph):
    """Derived again by torch's fake quantization of one layer's input and weights."""
    alone = copy.deepcopy(net)
    layer = alone.inner[1]
    probes = [torch.from_numpy(feed["image"]) for feed in FEEDS]
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    clean = [alone(probe) for probe in probes][:2]
    hook.remove()
    scale = float(torch.cat(inputs).max()) / 255  # after a ReLU: from 0
    layer.register_forward_pre_hook(
        lambda _, args: torch.fake_quantize_per_tensor_affine(args[0], scale, 0, 0, 255)
    )
    steps = layer.weight.abs().amax((1, 2, 3)) / 63.5
    steps = steps[:, None, None, None]
    layer.weight.copy_((layer.weight / steps).round() * steps)
    noise = sum(
        (a - alone(probe)).square().sum() for a, probe in zip(clean, probes[:2], strict=True)
    )
    power = sum(a.square().sum() for a in clean)
    sensitivity = GraphQuantizer(graph, FEEDS, CONFIG).measure_sensitivity(FEEDS[:NUM_PROBES])
    assert set(convolutions(graph)) <= set(sensitivity)
    assert list(sensitivity.values()) == sorted(sensitivity.values())
    decibels = sensitivity[convolutions(graph)[INNER[1]]]
    assert decibels == pytest.approx(float(10 * torch.log10(power / noise)), abs=0.5)


@pytest.mark.parametrize("readers", [(3,), (2, 4), INNER])
def test_the_layers_that_8_bits_destroy_stay_in_float_and_no_other(graph, score, tmp_path, readers):
    path = plant(graph, tmp_path, *readers)
    assert score(path) == pytest.approx(1, abs=1e-3)
    report = quantize(path, tmp_path / "int8.onnx", FEEDS, score, CONFIG)
    assert set(report.float_nodes) == {convolutions(path)[reader] for reader in readers}
    assert list(report.float_nodes) == list(report.sensitivity)[: len(readers)]
    assert report.int8.score == score(tmp_path / "int8.onnx") > 0.95
    total = 16 * 9 * (3 + 16 + 3 * 16 + 2 * 48 + 3)
    assert report.share == pytest.approx(1 - len(readers) * 16 * 16 * 9 / total)


@pytest.mark.parametrize(("readers", "max_kept"), [((3,), 0), (INNER, 2)])
def test_too_few_layers_in_float_are_refused(graph, score, tmp_path, readers, max_kept):
    path = plant(graph, tmp_path, *readers)
    config = dataclasses.replace(CONFIG, max_kept=max_kept)
    with pytest.raises(QuantizeError, match=rf"with {max_kept} layers in float.* fall of 0\.05 "):
        quantize(path, tmp_path / "int8.onnx", FEEDS, score, config)
    assert not (tmp_path / "int8.onnx").exists()


def test_a_graph_left_mostly_in_float_is_refused_though_its_score_holds(graph, score, tmp_path):
    """The layer after the join reads most of the weights: it, the join and the resize are kept."""
    path = plant(graph, tmp_path, UP)
    config = dataclasses.replace(CONFIG, max_kept=4)
    text = r"0\.9\d+ with 4 layers in float, the last with [1-4]\d% .* with at least 50%"
    with pytest.raises(QuantizeError, match=text):
        quantize(path, tmp_path / "int8.onnx", FEEDS, score, config)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("worth", [0.5, float("nan")])
def test_where_nothing_helps_the_float_graph_stays(graph, tmp_path, worth):
    content = graph.read_bytes()

    def score(path: Path) -> float:
        return 1.0 if path == graph else worth

    with pytest.raises(QuantizeError, match=f"from 1.0000 to {worth:.4f} with 0, "):
        quantize(graph, tmp_path / "int8.onnx", FEEDS, score, CONFIG)
    assert not (tmp_path / "int8.onnx").exists()
    assert graph.read_bytes() == content


class Explained(nn.Module):
    """Two linear layers, and the second's answer carried back through the same weights, as evidence is."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(24, 40), nn.Linear(40, 6)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.wide(image.flatten(1)).relu()
        logits = self.head(hidden)
        passed = (logits @ self.head.weight) * (hidden > 0)
        return logits, passed @ self.wide.weight


def test_weights_that_are_read_both_ways_have_scales_of_one(tmp_path) -> None:
    torch.manual_seed(0)
    net, path = Explained().eval().requires_grad_(False), tmp_path / "explained.onnx"
    write_graph(path, net, net, ("image", (24,)), ["logits", "map"])
    feeds = [{"image": torch.randn(1, 24).numpy()} for _ in range(8)]
    quantizer = GraphQuantizer(path, feeds, QuantizeConfig())
    onnx.save(quantizer.quantize(), tmp_path / "int8.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    for feed in feeds:
        with torch.no_grad():
            expected = net(torch.from_numpy(feed["image"]))
        for found, wanted in zip(session.run(None, feed), expected, strict=True):
            gap = np.abs(found - wanted.numpy()).max()
            assert gap < 0.05 * max(np.abs(wanted.numpy()).max(), 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_calibration", 0), ("max_drop", -0.1), ("max_kept", -1), ("max_drop", float("nan"))],
)
def test_settings_outside_their_ranges_are_refused(field, value):
    with pytest.raises(ConfigError, match=field.replace("_", "-")):
        QuantizeConfig(**{field: value})


def test_graphs_are_timed_side_by_side(graph):
    times = time_graphs({"a": graph, "b": graph}, FEEDS[0], repeats=3)
    assert set(times) == {"a", "b"}
    assert all(0 < graph_times["p50_ms"] <= graph_times["p95_ms"] for graph_times in times.values())
