"""What a bundle says of one image, and how it comes to it: the ends of an opened bundle's graphs.

    patches, overview   a class: `Answer`
    tiles               a mask: `MaskAnswer`

Numpy, an image decoder and onnxruntime are all that is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from assay.data import tiles
from assay.data.entry import Entry
from assay.data.heuristic import MaskConfig, rule_levels
from assay.data.patches import (
    Canvas,
    PatchConfig,
    best_cells,
    cell_corners,
    informative_cells,
    iterative_cells,
    overview_seed,
)
from assay.data.photometric import normalise
from assay.decide import Decision
from assay.shapes import Float, Int, UInt8

GOLDEN_CELLS = 8
"""A mask's golden output are mean probabilities in so many cells along each side."""


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

    def golden(self) -> dict[str, float]:
        """Numbers that every opening of the bundle must repeat."""
        return self.probs


@dataclass(frozen=True)
class Defect:
    """One component of a mask."""

    label: str
    """Its class."""
    area_px: int
    """Its pixels."""
    box: Int[np.ndarray, "4"]
    """x0, y0, x1, y1 in the image's pixels."""


@dataclass(frozen=True)
class MaskAnswer:
    """Where the defects of one image are."""

    classes: tuple[str, ...]
    """Names; class i has value i + 1 in the mask."""
    mask: UInt8[np.ndarray, "h w"]
    """The class of each pixel, or 0."""
    levels: UInt8[np.ndarray, "classes h w"] = field(repr=False)
    """Logits in steps (see `data.tiles`)."""

    @property
    def defects(self) -> list[Defect]:
        """Connected parts of the mask, the largest first."""
        return [
            Defect(self.classes[value - 1], area, box)
            for value, area, box in tiles.outlined(self.mask)
        ]

    def golden(self) -> dict[str, float]:
        """Mean probability in the cells of a coarse grid; a pixel at a threshold does not sway it."""
        probs = tiles.level_probs().astype(np.float32)[self.levels]
        size = (GOLDEN_CELLS, GOLDEN_CELLS)
        cells = [cv2.resize(own, size, interpolation=cv2.INTER_AREA).ravel() for own in probs]
        return {
            f"{name} {i}": float(value)
            for name, own in zip(self.classes, cells, strict=True)
            for i, value in enumerate(own)
        }


class Classifier:
    """Answers with a class, from patches or from the overview.

    Args:
        card: the bundle's card.
        graphs: its sessions by name.
    """

    def __init__(self, card: Mapping[str, Any], graphs: Mapping[str, Any]) -> None:
        self.pipeline, self.classes, self.graphs = card["pipeline"], card["classes"], graphs
        self.sizes = PatchConfig(**self.pipeline["patches"])
        self.decision = Decision.from_dict(card["decision"])

    def predict(self, entry: Entry) -> Answer:
        """Answer for one image."""
        canvas = Canvas(entry, self.sizes)
        look = self._from_patches if self.pipeline["kind"] == "patches" else self._from_overview
        logits, boxes, attn = look(canvas)
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
        patches = normalise(canvas.patches(corners), mean, std)
        logits, attn = self.graphs["classify"].run(["logits", "attn"], {"patches": patches[None]})
        return logits[0], canvas.source_boxes(corners), attn[0]

    def _from_overview(self, canvas: Canvas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        overview, mean, std = canvas.overview()
        feed = {"overview": normalise(overview[None], mean, std)}
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
            feed = {"overview": normalise(overview[None], mean, std)}
            scores = self.graphs["scorer"].run(["scores"], feed)[0][0]
            return best_cells(scores, k, grid, self.pipeline["apart"])
        cells = np.array(self.pipeline["cells"])
        if self.pipeline["select"] != "ips":
            return cells

        def embed(chosen: np.ndarray) -> np.ndarray:
            patches = canvas.patches(cell_corners(chosen[0], grid, self.sizes))
            feed = {"patches": normalise(patches, mean, std)}
            return np.asarray(self.graphs["embed"].run(["features"], feed)[0])[None]

        def attend(features: np.ndarray) -> np.ndarray:
            return np.asarray(self.graphs["attend"].run(["attn"], {"features": features})[0])

        return iterative_cells(cells, 1, k, self.pipeline["chunk"], embed, attend)[0]


class Segmenter:
    """Answers with a mask, from overlapping tiles; or by the rule that masks were made by.

    Args:
        card: the bundle's card.
        graphs: its sessions by name; none for the rule.
    """

    def __init__(self, card: Mapping[str, Any], graphs: Mapping[str, Any]) -> None:
        pipeline = card["pipeline"]
        self.classes, self.thresholds = tuple(card["classes"]), card["thresholds"]
        self.graph: Any = next(iter(graphs.values()), None)
        self.tiles = tiles.TileConfig(**pipeline["tiles"])
        self.masks = MaskConfig(**pipeline["masks"] | {"classes": self.classes})

    def predict(self, entry: Entry) -> MaskAnswer:
        """Answer for one image."""
        if self.graph is None:
            levels = rule_levels(entry.levels[0], self.masks, len(self.classes))
        else:
            levels = tiles.level_map(entry, self._run, len(self.classes), self.tiles)
        return MaskAnswer(self.classes, tiles.to_mask(levels, self.thresholds), levels)

    def _run(self, tiles: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self.graph.run(["logits"], {"tiles": tiles})[0]
        return logits


KINDS: dict[str, type[Classifier] | type[Segmenter]] = {
    "patches": Classifier,
    "overview": Classifier,
    "tiles": Segmenter,
}
"""Input pipelines."""
