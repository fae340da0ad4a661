"""An int8 graph beside the float one, where it holds on val."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.bundle.quantize import QuantizeConfig, quantize
from assay.errors import QuantizeError


def add_int8(
    pipeline: dict[str, Any],
    graph: Path,
    calibration: Callable[[], Sequence[Mapping[str, np.ndarray]]],
    score: Callable[[Path], float],
    config: QuantizeConfig,
) -> dict[str, Any]:
    """Quantize a graph and note it in the pipeline; where it is refused the float graph ships alone.

    Args:
        pipeline: what the bundle's card says of its graphs.
        graph: the float graph; the other is written beside it as `<name>_int8.onnx`.
        calibration: gives the inputs that set the ranges.
        score: the main score on val with the graph of a path.
        config: whether and how.
    """
    if config.variant == "none":
        return pipeline
    target = graph.with_name(f"{graph.stem}_int8.onnx")
    try:
        report = quantize(graph, target, calibration(), score, config)
    except QuantizeError as refused:
        return pipeline | {"refused": str(refused)}
    return pipeline | {"int8": [target.stem], "quantized": report.to_dict()}
