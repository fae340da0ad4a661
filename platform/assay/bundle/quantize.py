"""From a float graph to one of 8-bit integers that scores as well, or to a refusal.

Static quantization by ONNX Runtime (`tests/benchmarks/int8.md` says why): the weights of each layer
in 8 bits per output channel, and what a layer reads in 8 bits by the ranges that calibration saw.
Joins, resizes and pools between layers read 8 bits as well: in float they would cost more time than
the layers save. Nothing is quantized for its writer's sake, so that a layer that suffers is mended by
leaving that layer alone in float; the graph's outputs stay float.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import onnx
import onnxruntime
from annotated_types import Interval
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from assay.bundle.latency import time_runs
from assay.bundle.seal import INT8_SHARE, quantized_share
from assay.config import Settings
from assay.errors import QuantizeError

Feed = Mapping[str, np.ndarray]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

BETWEEN = ("Add", "AveragePool", "Concat", "GlobalAveragePool")

UNCHANGED = ("MaxPool", "Resize")
"""Their outputs have the range of their inputs, so they work in 8 bits throughout."""

NUM_PROBES = 2
"""Calibration feeds that sensitivity is measured on."""

EXACT_DB = 120.0
"""Sensitivity of what changes the outputs by less than float32 can tell."""


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(Settings, section="quantize"):
    """Whether a graph of 8-bit integers ships beside the float one, and how it is made."""

    variant: Literal["none", "int8"] = "int8"
    """int8: quantized after training; none: the float graph alone."""
    num_calibration: Annotated[int, Interval(ge=1, le=100_000)] = 64
    """Tiles of the training set that set the ranges."""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How ranges follow from what calibration saw."""
    max_drop: Annotated[float, Interval(ge=0, le=1)] = 0.005
    """Largest fall of the score on val that is accepted."""
    max_kept: Annotated[int, Interval(ge=0, le=1000)] = 8
    """Most layers left in float to win the score back; 0: all in 8 bits or none."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        if self.variant != "none":
            return {}
        names = ("num_calibration", "method", "max_drop", "max_kept")
        return dict.fromkeys(names, "quantize.variant is none")


@dataclass(frozen=True)
class GraphReport:
    """One of the two graphs."""

    score: float
    bytes: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class QuantizeReport:
    """How a graph and its 8-bit form compare, and what was left in float."""

    fp32: GraphReport
    int8: GraphReport
    share: float
    """Of the weights, in 8 bits."""
    float_nodes: tuple[str, ...]
    """Nodes left in float, the most sensitive first."""
    sensitivity: dict[str, float]
    """By node, the most sensitive first: signal to noise (dB) of the graph's first output with this
    node alone in 8 bits; empty where no layer had to be left in float."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as a bundle's card has them."""
        return {
            "fp32": asdict(self.fp32),
            "int8": asdict(self.int8),
            "share": self.share,
            "kept": list(self.float_nodes),
            "sensitivity": dict(self.sensitivity),
        }


def quantize(
    graph: Path,
    target: Path,
    calibration: Sequence[Feed],
    score: Callable[[Path], float],
    config: QuantizeConfig,
) -> QuantizeReport:
    """Write the int8 form of `graph` to `target`, with as few layers in float as the score needs.

    Args:
        graph: the float graph, which stays as it is.
        target: where to write.
        calibration: inputs by name, from the training set; the first ones also probe each layer
            and time the graphs, so tiles are better than whole images.
        score: of a graph on val, higher is better.
        config: method and limits.

    Raises:
        QuantizeError: the score falls by more than allowed with as many layers in float as
            allowed; no target is left behind.
    """
    float_score = score(graph)
    quantizer = GraphQuantizer(graph, calibration, config)
    sensitivity: dict[str, float] = {}
    scores: dict[int, float] = {}

    def holds(num_float: int) -> bool:
        if num_float and not sensitivity:  # takes a while, so only where a layer must be left
            sensitivity.update(quantizer.measure_sensitivity(calibration[:NUM_PROBES]))
        onnx.save(quantizer.quantize(skip=list(sensitivity)[:num_float]), target)
        scores[num_float] = score(target)
        in_8_bits = quantized_share(target) >= INT8_SHARE
        return in_8_bits and float_score - scores[num_float] <= config.max_drop

    num_float = _find_fewest(holds, min(config.max_kept, len(quantizer.nodes)))
    if num_float is None:
        share = quantized_share(target)
        target.unlink()
        raise _refusal(float_score, scores, share, config)
    float_nodes = tuple(sensitivity)[:num_float]
    onnx.save(quantizer.quantize(skip=float_nodes), target)
    times = time_graphs({"fp32": graph, "int8": target}, calibration[0])
    fp32 = GraphReport(float_score, _strip(onnx.load(graph)).ByteSize(), **times["fp32"])
    int8 = GraphReport(scores[num_float], target.stat().st_size, **times["int8"])
    return QuantizeReport(fp32, int8, quantized_share(target), float_nodes, sensitivity)


def _refusal(
    float_score: float, scores: Mapping[int, float], share: float, config: QuantizeConfig
) -> QuantizeError:
    attempts = ", ".join(f"{score:.4f} with {num}" for num, score in scores.items())
    return QuantizeError(
        f"The score on val falls from {float_score:.4f} to {attempts} layers in float, the last with {share:.0%} of the weights in 8 bits; allowed is a fall of {config.max_drop} with at least {INT8_SHARE:.0%}: raise quantize.max-drop or quantize.max-kept, try another quantize.method, or ship float by quantize.variant none."
    )


def _find_fewest(holds: Callable[[int], bool], most: int) -> int | None:
    """Find the smallest number up to `most` that holds, by doubling and then halving; None: none does."""
    low, high = -1, 0
    while not holds(high):
        if high == most:
            return None
        low, high = high, min(max(1, 2 * high), most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class GraphQuantizer:
    """Quantizes one graph, all of it or some of its nodes, by one calibration.

    Args:
        graph: the float graph.
        calibration: inputs by name that set the ranges.
        config: `method` says how they do.
    """

    def __init__(self, graph: Path, calibration: Sequence[Feed], config: QuantizeConfig) -> None:
        with TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            # symbolic inference fails where an image may have any size, and is not needed here
            quant_pre_process(graph, prepared, skip_symbolic_shape=True)
            self.model = onnx.load(prepared)
            self.ranges = _calibrate(prepared, calibration, config.method)
        kinds, weights = (*LAYERS, *BETWEEN, *UNCHANGED), set[str]()
        constants = {each.name for each in self.model.graph.initializer}
        self.nodes: list[str] = []
        for node in self.model.graph.node:
            held = constants & {*node.input}
            # a weight has its scales along one axis, and evidence reads a layer's the other way round
            is_first = node.op_type not in LAYERS or not held & weights
            if node.op_type in kinds and any(name in self.ranges for name in node.input):
                self.nodes += [node.name] if is_first else []
            weights |= held

    def quantize(self, only: Sequence[str] = (), skip: Sequence[str] = ()) -> onnx.ModelProto:
        """Return the graph with its nodes in 8 bits: `only` these, or all but those to `skip`."""
        quantizer = QDQQuantizer(
            copy.deepcopy(self.model),
            per_channel=True,
            # 7 bits of weights: without VNNI, a processor adds two products in 16 bits, and
            # cuts off what is more; so the answers do not depend on the processor
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=list(only) or self.nodes,
            nodes_to_exclude=list(skip),
            op_types_to_quantize=[*LAYERS, *BETWEEN, *UNCHANGED],
            extra_options={
                "OpTypesToExcludeOutputQuantization": [*LAYERS, *BETWEEN],
                "ForceQuantizeNoInputCheck": True,
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return _strip(quantizer.model.model)

    def measure_sensitivity(self, probes: Sequence[Feed]) -> dict[str, float]:
        """Compare the first output with each node alone in 8 bits; signal to noise (dB), ascending."""
        clean = list(_first_outputs(self.model, probes))
        power = sum(float(np.square(values).sum()) for values in clean)
        sensitivity = {}
        for node in self.nodes:
            noisy = _first_outputs(self.quantize(only=[node]), probes)
            noise = sum(float(np.square(a - b).sum()) for a, b in zip(clean, noisy, strict=True))
            ratio = noise / max(power, np.finfo(np.float32).tiny)
            sensitivity[node] = -10 * float(np.log10(max(ratio, 10 ** (-EXACT_DB / 10))))
        return dict(sorted(sensitivity.items(), key=lambda pair: pair[1]))


def _calibrate(graph: Path, calibration: Sequence[Feed], method: str) -> TensorsData:
    """Collect the range of each value that may be quantized, over the calibration feeds."""
    calibrator = create_calibrator(
        graph,
        [*LAYERS, *BETWEEN, *UNCHANGED],
        augmented_model_path=graph.with_name("augmented.onnx"),
        calibrate_method={
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }[method],
        extra_options={"symmetric": False},
    )
    for feed in calibration:  # one by one, since all values of what is collected are held in memory
        calibrator.collect_data(SimpleNamespace(get_next=iter([dict(feed), None]).__next__))
    return calibrator.compute_data()


def _first_outputs(model: onnx.ModelProto, feeds: Sequence[Feed]) -> Iterator[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for feed in feeds:
        yield session.run(None, feed)[0]  # what the score follows; the others describe


def _strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out the exporter's notes, and all but one of equal constants (zero points, most of them)."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        content = copy.copy(tensor)
        content.ClearField("name")
        same[tensor.name] = first.setdefault(content.SerializeToString(), tensor.name)
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
    distinct = [tensor for tensor in graph.initializer if same[tensor.name] == tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(distinct)
    return model


def time_graphs(
    graphs: Mapping[str, Path], feed: Feed, repeats: int = 20
) -> dict[str, dict[str, float]]:
    """Time each graph in onnxruntime with one thread, by `time_runs`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {name: onnxruntime.InferenceSession(graphs[name], options) for name in graphs}
    runs = {name: lambda s=session: s.run(None, feed) for name, session in sessions.items()}
    return time_runs(runs, repeats)
