"""Sealing: from exported graphs and a card to a bundle that opens, or to a refusal."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.bundle.bundle import Bundle
from assay.bundle.card import Card, Golden, read_card, write_card
from assay.errors import BundleError
from assay.files import sha256_of

INT8_SHARE = 0.5
"""Least share of 8-bit weight elements in a graph that calls itself int8."""


def seal(
    folder: Path,
    card: Card,
    golden: Path,
    expected: Mapping[str, float] | None = None,
) -> Bundle:
    """Complete exported graphs in `folder` to a bundle and open it.

    Args:
        folder: where the graphs were written.
        card: all but the digests and the golden output; `pipeline["int8"]` may name graphs that
            are quantized.
        golden: an image of the data, copied into the bundle.
        expected: golden output that training computed for it; without, the bundle's own.

    Raises:
        BundleError: the graphs do not repeat what training computed, or one that calls itself
            int8 is not.
    """
    small = card.pipeline.get("int8", ())
    for name in small:
        share = quantized_share(folder / f"{name}.onnx")
        if share < INT8_SHARE:
            raise BundleError(
                f"The graph {name} calls itself int8, but {share:.1%} of the weights of its convolutions and matrix products are 8-bit integers; at least {INT8_SHARE:.0%} must be: quantize it so that its weights are stored in 8 bits, or take it out of the pipeline's int8."
            )
    for graph in folder.glob("*.onnx"):
        _forget_origin(graph)
    name = f"golden{golden.suffix}"
    shutil.copyfile(golden, folder / name)
    files = sorted(p.name for p in folder.iterdir() if p.name != "bundle.json" and p.is_file())
    digests = {file: sha256_of(folder / file) for file in files}
    write_card(folder, replace(card, sha256=digests, golden=Golden(image=name)))
    answer = Bundle(folder, verify=False).predict(golden)
    probs, of_int8 = dict(expected or answer.golden()), None
    if small:
        of_int8 = Bundle(folder, verify=False, variant="int8").predict(golden).golden()
    update(folder, golden=Golden(image=name, probs=probs, int8=of_int8))
    return Bundle(folder)


def update(folder: Path, **fields: Any) -> None:
    """Change fields of a sealed bundle's card that the graphs do not depend on."""
    write_card(folder, replace(read_card(folder), **fields))


def quantized_share(path: Path) -> float:
    """Return the share of a graph's weight elements that are stored as 8-bit integers.

    Weights are the constants of two or more axes that a convolution or a matrix product is
    computed from, directly or through nodes such as DequantizeLinear; biases and scales have fewer
    axes. A graph without weights has share 0, as has a convolution after torch's dynamic
    quantization, which passes over it in silence.
    """
    import onnx  # where graphs are made; a bundle opens without it
    import onnx.inliner

    model = onnx.inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    origins = {name: {name} for name in constants}  # of values that no input of the graph changes
    weights: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = node.attribute[0].t
            origins[node.output[0]] = {node.output[0]}
        sources = [origins[name] for name in node.input if name in origins]
        if any(kind in node.op_type for kind in ("Conv", "Gemm", "MatMul")):
            weights.update(*sources)
        if sources and len(sources) == sum(map(bool, node.input)):
            origins |= dict.fromkeys(node.output, set().union(*sources))
    shapes = {name: constants[name].dims for name in weights}
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) > 1}
    in_8_bits = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    quantized = sum(sizes[name] for name in sizes if constants[name].data_type in in_8_bits)
    return quantized / max(1, sum(sizes.values()))


def _forget_origin(path: Path) -> None:
    """Take the exporter's notes out of a graph: they name folders of the machine it came from."""
    import onnx  # where graphs are made; a bundle opens without it

    model = onnx.load(path, load_external_data=False)
    for graph in (model.graph, *model.functions):
        for element in (graph, *graph.node, *graph.value_info):
            del element.metadata_props[:]
    onnx.save(model, path)
