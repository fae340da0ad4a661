"""The bundle: what ships. It opens with numpy, an image decoder and onnxruntime; no torch, no Ray.

    bundle/
        *.onnx        graphs
        golden.*      one image, as the data had it
        bundle.json   input pipeline, classes, decision, metrics with intervals, fingerprints,
                      SHA-256 of every other file, golden output; written last

A bundle checks its files and repeats its golden output before it says that it is ready.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from assay.data import image
from assay.data.entry import Entry
from assay.data.patches import (
    EPS,
    Canvas,
    PatchConfig,
    best_cells,
    cell_corners,
    informative_cells,
    iterative_cells,
    overview_seed,
)
from assay.decide import Decision
from assay.errors import BundleError
from assay.shapes import Float

SCHEMA = 2
TOLERANCE = 1e-3
"""Largest difference of a probability between the golden output and its repetition."""
INT8_SHARE = 0.5
"""Least share of 8-bit weight elements in a graph that calls itself int8."""


@dataclass(frozen=True)
class Answer:
    """What a bundle says of one image."""

    label: str
    """The class to act on; the likeliest, unless the decision weighs costs or a threshold."""
    probs: dict[str, float]
    """Calibrated."""
    set: tuple[str, ...]
    """The classes it may be at the stated coverage, in the order of the classes; its label
    among them unless the decision weighs costs or a threshold."""
    rejected: bool
    """The set is several classes: a person should look."""
    boxes: Float[np.ndarray, "k 4"]
    """Parts of the image looked at: x0, y0, x1, y1 in its pixels."""
    attn: Float[np.ndarray, "k"]
    """Share of attention that each of them had."""


class Bundle:
    """An opened bundle; `predict` answers for one image.

    Args:
        folder: the bundle's directory.
        verify: repeat the golden output before returning.

    Raises:
        BundleError: a file is missing or changed, the schema is another one, or the golden
            output is not repeated.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        try:
            self.card: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{folder} is no bundle ({error}); give a folder that holds bundle.json."
            ) from None
        if not isinstance(self.card, dict) or "schema" not in self.card:
            raise BundleError(f"{folder}/bundle.json is no bundle's card; export the bundle again.")
        if self.card["schema"] != SCHEMA:
            remedy = "update Assay" if self.card["schema"] > SCHEMA else "export the bundle again"
            raise BundleError(
                f"{folder} has schema {self.card['schema']}, this Assay knows {SCHEMA}; {remedy}."
            )
        for name, expected in self.card["sha256"].items():
            if not (folder / name).is_file() or _sha256(folder / name) != expected:
                raise BundleError(
                    f"{folder / name} is missing or was changed after export; export the bundle again."
                )
        self._start(folder, self.card)
        if verify:
            golden = self.card["golden"]
            self._compare(
                self.predict((folder / golden["image"]).read_bytes()), golden["probs"], folder
            )

    def _start(self, folder: Path, card: dict[str, Any]) -> None:
        pipeline = card["pipeline"]
        answers = {"patches": self._from_patches, "overview": self._from_overview}
        if pipeline["kind"] not in answers:
            raise BundleError(
                f"{folder} needs the input pipeline {pipeline['kind']!r}; this Assay has: {', '.join(answers)}."
            )
        self._look = answers[pipeline["kind"]]
        self.pipeline, self.classes = pipeline, card["classes"]
        self.sizes = PatchConfig(**pipeline["patches"])
        self.graphs = {
            name: onnxruntime.InferenceSession(folder / f"{name}.onnx")
            for name in pipeline["graphs"]
        }
        self.decision = Decision.from_dict(card["decision"])

    def _compare(self, answer: Answer, expected: dict[str, float], folder: Path) -> None:
        worst = max(abs(answer.probs[name] - value) for name, value in expected.items())
        if not worst <= TOLERANCE:
            raise BundleError(
                f"{folder} does not repeat its golden output (off by {worst:.2g}, allowed {TOLERANCE}); export it again on this machine's onnxruntime."
            )

    def predict(self, source: Path | bytes) -> Answer:
        """Answer for one image file.

        Raises:
            ImageError: the image cannot be read.
        """
        canvas = Canvas(Entry.of(image.read(source)), self.sizes)
        logits, boxes, attn = self._look(canvas)
        probs = self.decision.probs(logits[None])
        held = self.decision.sets(probs)[0]
        return Answer(
            label=self.classes[self.decision.answers(probs)[0]],
            probs=dict(zip(self.classes, probs[0].tolist(), strict=True)),
            set=tuple(name for name, inside in zip(self.classes, held, strict=True) if inside),
            rejected=bool(self.decision.rejected(probs)[0]),
            boxes=boxes,
            attn=attn,
        )

    def _from_patches(self, canvas: Canvas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        overview, mean, std = canvas.overview()
        cells = self._cells(canvas, overview, mean, std)
        corners = cell_corners(cells, self.pipeline["grid"], self.sizes)
        patches = _normalise(canvas.patches(corners), mean, std)
        logits, attn = self.graphs["classify"].run(["logits", "attn"], {"patches": patches[None]})
        return logits[0], canvas.source_boxes(corners), attn[0]

    def _from_overview(self, canvas: Canvas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        overview, mean, std = canvas.overview()
        feed = {"overview": _normalise(overview[None], mean, std)}
        logits = self.graphs["classify"].run(["logits"], feed)[0]
        height, width = canvas.entry.size
        return logits[0], np.array([[0.0, 0.0, width, height]]), np.ones(1)

    def _cells(
        self, canvas: Canvas, overview: np.ndarray, mean: np.ndarray, std: np.ndarray
    ) -> np.ndarray:
        """The cells to look at, in ascending order, as the card says."""
        k, grid = self.pipeline["k"], self.pipeline["grid"]
        if self.pipeline["select"] == "random":
            rng = np.random.default_rng(overview_seed(overview))
            drawn = informative_cells(overview, grid, self.sizes, self.pipeline["draws"], rng)
            return np.sort(rng.permutation(drawn)[:k])
        if self.pipeline["select"] == "dps":
            feed = {"overview": _normalise(overview[None], mean, std)}
            scores = self.graphs["scorer"].run(["scores"], feed)[0][0]
            return best_cells(scores, k, grid, self.pipeline["apart"])
        cells = np.array(self.pipeline["cells"])
        if self.pipeline["select"] != "ips":
            return cells

        def embed(chosen: np.ndarray) -> np.ndarray:
            patches = canvas.patches(cell_corners(chosen[0], grid, self.sizes))
            feed = {"patches": _normalise(patches, mean, std)}
            return np.asarray(self.graphs["embed"].run(["features"], feed)[0])[None]

        def attend(features: np.ndarray) -> np.ndarray:
            return np.asarray(self.graphs["attend"].run(["attn"], {"features": features})[0])

        return iterative_cells(cells, 1, k, self.pipeline["chunk"], embed, attend)[0]


def _normalise(pixels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """(n h w 3) uint8 to normalised (n 3 h w) float32, by a table of the 256 values."""
    values = (np.arange(256)[:, None] / 255 - mean) / (std + EPS)
    height, width = pixels.shape[1:3]
    scaled = cv2.LUT(pixels.reshape(-1, width, 3), values[None].astype(np.float32))
    return np.ascontiguousarray(scaled.reshape(-1, height, width, 3).transpose(0, 3, 1, 2))


def seal(
    folder: Path,
    card: dict[str, Any],
    golden: Path,
    expected: Mapping[str, float] | None = None,
) -> Bundle:
    """Complete exported graphs in `folder` to a bundle and open it.

    Args:
        folder: where the graphs were written.
        card: pipeline, classes, decision, metrics, fingerprints; `pipeline["int8"]` may name
            graphs that are quantized.
        golden: an image of the data, copied into the bundle.
        expected: probabilities that training computed for it; without, the bundle's own.

    Raises:
        BundleError: the graphs do not repeat what training computed, or one that calls itself
            int8 is not.
    """
    for name in card["pipeline"].get("int8", ()):
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
    sealed = card | {"schema": SCHEMA, "sha256": {file: _sha256(folder / file) for file in files}}
    sealed["golden"] = {"image": name, "probs": {}}
    (folder / "bundle.json").write_text(json.dumps(sealed))
    answer = Bundle(folder, verify=False).predict(golden)
    sealed["golden"]["probs"] = dict(expected or answer.probs)
    hidden = folder / ".bundle.json"
    hidden.write_text(json.dumps(sealed, indent=1))
    hidden.replace(folder / "bundle.json")
    return Bundle(folder)


def update(folder: Path, **fields: Any) -> None:
    """Change fields of a sealed bundle's card that the graphs do not depend on."""
    path = folder / "bundle.json"
    hidden = folder / ".bundle.json"
    hidden.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=1))
    hidden.replace(path)


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
        known = [origins[name] for name in node.input if name in origins]
        if any(kind in node.op_type for kind in ("Conv", "Gemm", "MatMul")):
            weights.update(*known)
        if known and len(known) == sum(map(bool, node.input)):
            origins |= dict.fromkeys(node.output, set().union(*known))
    sizes = {
        name: math.prod(constants[name].dims) for name in weights if len(constants[name].dims) > 1
    }
    in_8_bits = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    quantized = sum(sizes[name] for name in sizes if constants[name].data_type in in_8_bits)
    return quantized / max(1, sum(sizes.values()))


def _forget_origin(path: Path) -> None:
    """Take the exporter's notes out of a graph: they name folders of the machine it came from."""
    import onnx  # where graphs are made; a bundle opens without it

    model = onnx.load(path, load_external_data=False)
    for graph in (model.graph, *model.functions):
        for noted in (graph, *graph.node, *graph.value_info):
            del noted.metadata_props[:]
    onnx.save(model, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
