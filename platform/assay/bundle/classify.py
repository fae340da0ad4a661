"""The end of a bundle's graphs that answers with a class."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from assay.bundle.answer import Answer, Verdict, _run
from assay.bundle.card import Card
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.cells import best_cells, informative_cells, iterative_cells, overview_seed
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners
from assay.data.inputs.photometric import normalise
from assay.errors import BundleError

Seen: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""An overview, and mean and deviation of the image in it."""


class Classifier:
    """Answers with a class, from patches or from the overview.

    Args:
        card: the bundle's card.
        graphs: its sessions by name.
    """

    def __init__(self, card: Card, graphs: Mapping[str, Any]) -> None:
        self.pipeline, self.classes, self.graphs = card.pipeline, card.classes, graphs
        self.sizes = PatchConfig(**self.pipeline["patches"])
        if card.decision is None:
            raise BundleError(
                f"The bundle of {card.run or 'an unnamed run'} has no decision to answer by; export it again."
            )
        self.decision = card.decision

    def predict(self, entries: Sequence[ImagePyramid]) -> list[Answer]:
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


def _overviews(seen: Sequence[Seen]) -> np.ndarray:
    return np.concatenate([normalise(image[None], mean, std) for image, mean, std in seen])
