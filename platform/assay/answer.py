"""What a bundle says of one image, and how it comes to it: the ends of an opened bundle's graphs.

    patches, overview   a class: `Answer`; of several views of one part a `Verdict`
    tiles               a mask: `MaskAnswer`

Several images go through the graphs together. Numpy, an image decoder and onnxruntime are all that is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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

Seen: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""An overview, and mean and deviation of the image in it."""
GOLDEN_CELLS = 8
"""A mask's golden output are mean probabilities in so many cells along each side."""


@dataclass(frozen=True)
class Verdict:
    """What a bundle says of one image, or of one part by several views."""

    label: str
    """The class to act on; the likeliest, unless the decision weighs costs or a threshold."""
    probs: dict[str, float]
    """Calibrated."""
    set: tuple[str, ...]
    """The classes it may be at the stated coverage, in the order of the classes; its label
    among them unless the decision weighs costs or a threshold."""
    rejected: bool
    """The set is several classes: a person should look."""


@dataclass(frozen=True)
class Answer(Verdict):
    """What a bundle says of one image, and what it looked at."""

    boxes: Float[np.ndarray, "k 4"]
    """Parts of the image looked at: x0, y0, x1, y1 in its pixels."""
    attn: Float[np.ndarray, "k"]
    """Share of attention that each of them had."""
    logits: Float[np.ndarray, " classes"] = field(repr=False)
    """Before the temperature."""
    embedding: Float[np.ndarray, " d"] | None = field(default=None, repr=False)
    """What the last layer decided from; None where the graph does not say."""

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
    embedding: Float[np.ndarray, " d"] | None = field(default=None, repr=False)
    """Deepest features, averaged over the image; None where the graph does not say."""

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

    def predict(self, entries: Sequence[Entry]) -> list[Answer]:
        """Answer for each image."""
        canvases = [Canvas(entry, self.sizes) for entry in entries]
        look = self._from_patches if self.pipeline["kind"] == "patches" else self._from_overview
        return [
            Answer(
                **vars(self._verdict(logits, None)),
                boxes=boxes,
                attn=attn,
                logits=logits,
                embedding=embedding,
            )
            for logits, embedding, boxes, attn in zip(*look(canvases), strict=True)
        ]

    def together(self, views: Sequence[Answer]) -> Verdict:
        """Answer for a part by its views, from their mean logits, as judging does for a group.

        Its set holds each view's own: what holds the truth of one view with a probability holds
        that of the part with no less.
        """
        held = {name for view in views for name in view.set}
        return self._verdict(np.mean([view.logits for view in views], axis=0), held)

    def _verdict(self, logits: np.ndarray, held: set[str] | None) -> Verdict:
        probs = self.decision.probs(logits[None])
        label = self.classes[self.decision.answers(probs)[0]]
        if held is None:
            inside = self.decision.sets(probs)[0]
            held = {name for name, own in zip(self.classes, inside, strict=True) if own}
        else:
            held = held | {self.classes[probs[0].argmax()]}
        return Verdict(
            label=label,
            probs=dict(zip(self.classes, probs[0].tolist(), strict=True)),
            set=tuple(name for name in self.classes if name in held),
            rejected=len(held) > 1,
        )

    def _from_patches(self, canvases: Sequence[Canvas]) -> tuple[Any, Any, Any, Any]:
        seen = [canvas.overview() for canvas in canvases]
        chosen = self._cells(canvases, seen)
        corners = [cell_corners(cells, self.pipeline["grid"], self.sizes) for cells in chosen]
        patches = np.stack([
            normalise(canvas.patches(own), mean, std)
            for canvas, own, (_, mean, std) in zip(canvases, corners, seen, strict=True)
        ])  # fmt: skip
        feed = {"patches": patches}
        logits, attn, embeddings = _run(self.graphs["classify"], ["logits", "attn"], feed)
        boxes = [canvas.source_boxes(own) for canvas, own in zip(canvases, corners, strict=True)]
        return logits, embeddings, boxes, attn

    def _from_overview(self, canvases: Sequence[Canvas]) -> tuple[Any, Any, Any, Any]:
        feed = {"overview": _overviews([canvas.overview() for canvas in canvases])}
        logits, embeddings = _run(self.graphs["classify"], ["logits"], feed)
        sizes = [canvas.entry.size for canvas in canvases]
        boxes = [np.array([[0.0, 0.0, width, height]]) for height, width in sizes]
        return logits, embeddings, boxes, np.ones((len(canvases), 1))

    def _cells(self, canvases: Sequence[Canvas], seen: Sequence[Seen]) -> list[np.ndarray]:
        """The cells to look at in each image, in ascending order, as the card says."""
        k, grid = self.pipeline["k"], self.pipeline["grid"]
        if self.pipeline["select"] == "random":
            return [self._drawn(overview) for overview, _, _ in seen]
        if self.pipeline["select"] == "dps":
            scores = self.graphs["scorer"].run(["scores"], {"overview": _overviews(seen)})[0]
            return [best_cells(own, k, grid, self.pipeline["apart"]) for own in scores]
        cells = np.array(self.pipeline["cells"])
        if self.pipeline["select"] != "ips":
            return [cells] * len(canvases)
        return [
            self._iterated(canvas, cells, mean, std)
            for canvas, (_, mean, std) in zip(canvases, seen, strict=True)
        ]

    def _drawn(self, overview: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(overview_seed(overview))
        draws, grid = self.pipeline["draws"], self.pipeline["grid"]
        drawn = informative_cells(overview, grid, self.sizes, draws, rng)
        return np.sort(rng.permutation(drawn)[: self.pipeline["k"]])

    def _iterated(
        self, canvas: Canvas, cells: np.ndarray, mean: np.ndarray, std: np.ndarray
    ) -> np.ndarray:
        def embed(chosen: np.ndarray) -> np.ndarray:
            patches = canvas.patches(cell_corners(chosen[0], self.pipeline["grid"], self.sizes))
            feed = {"patches": normalise(patches, mean, std)}
            return np.asarray(self.graphs["embed"].run(["features"], feed)[0])[None]

        def attend(features: np.ndarray) -> np.ndarray:
            return np.asarray(self.graphs["attend"].run(["attn"], {"features": features})[0])

        k, chunk = self.pipeline["k"], self.pipeline["chunk"]
        return iterative_cells(cells, 1, k, chunk, embed, attend)[0]


def _run(graph: Any, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[Any]:
    """Outputs by name, and after them the embedding of each row; None where the graph gives none."""
    if any(end.name == "embedding" for end in graph.get_outputs()):
        found: list[Any] = graph.run([*names, "embedding"], feed)
        return found
    found = graph.run(list(names), feed)
    return [*found, [None] * len(found[0])]


def _overviews(seen: Sequence[Seen]) -> np.ndarray:
    return np.concatenate([normalise(image[None], mean, std) for image, mean, std in seen])


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

    def predict(self, entries: Sequence[Entry]) -> list[MaskAnswer]:
        """Answer for each image."""
        return [self._predict(entry) for entry in entries]

    def together(self, views: Sequence[MaskAnswer]) -> None:
        """Masks of several views stay apart."""

    def _predict(self, entry: Entry) -> MaskAnswer:
        described: list[Any] = []

        def network(normalised: np.ndarray) -> np.ndarray:
            logits, embeddings = _run(self.graph, ["logits"], {"tiles": normalised})
            described.extend(own for own in embeddings if own is not None)
            return np.asarray(logits)

        if self.graph is None:
            levels = rule_levels(entry.pixels, self.masks, len(self.classes))
        else:
            levels = tiles.level_map(entry, network, len(self.classes), self.tiles)
        embedding = np.mean(described, axis=0) if described else None
        mask = tiles.to_mask(levels, self.thresholds)
        return MaskAnswer(self.classes, mask, levels, embedding)


KINDS: dict[str, type[Classifier] | type[Segmenter]] = {
    "patches": Classifier,
    "overview": Classifier,
    "tiles": Segmenter,
}
"""Input pipelines."""
