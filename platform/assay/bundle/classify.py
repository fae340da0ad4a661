"""Answers with a class, from a whole image or from selected patches of it."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from assay.bundle.answer import run_graph, settings_of
from assay.bundle.card import Card
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.cells import (
    best_cells,
    informative_cells,
    iterative_cells,
    overview_seed,
)
from assay.data.inputs.image import ImageConfig, ImageInput
from assay.data.inputs.normalise import normalise
from assay.data.inputs.patches import Canvas, PatchConfig, cell_corners
from assay.data.masks.overlay import FALSE
from assay.errors import BundleError
from assay.metrics.scores.classes import softmax
from assay.shapes import Float, UInt8

Overview = tuple[np.ndarray, np.ndarray, np.ndarray]
"""An overview, and mean and deviation of the image in it."""
WARMTH = 0.5
"""Most of a pixel's colour that is the map of evidence."""


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

    def verdict(self) -> dict[str, Any]:
        """Return plain values that go over the wire."""
        return {
            "label": self.label,
            "probs": self.probs,
            "set": list(self.set),
            "rejected": self.rejected,
        }


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
    evidence: Float[np.ndarray, "rows columns"] | None = field(default=None, repr=False)
    """What speaks for the label at each place of its box; None where the graph does not say."""
    evidence_label: str | None = None
    """The class that the evidence is for; None where it is the same for all, as of attention."""
    attention: float = field(default=0.0, repr=False)
    """Logarithm, up to a constant, of what this view weighs among several of a part."""

    def golden(self) -> dict[str, float]:
        """Return numbers that every opening of the bundle must repeat."""
        return self.probs

    def form(self, mask: str, explain: bool = False) -> dict[str, Any]:
        """Return plain values that go over the wire."""
        pairs = zip(self.boxes.tolist(), self.attn.tolist(), strict=True)
        patches = [{"box": box, "score": score} for box, score in pairs]
        evidence = self._evidence_form() if explain else None
        return {"answer": self.verdict(), "patches": patches, "evidence": evidence}

    def _evidence_form(self) -> dict[str, Any] | None:
        if self.evidence is None:
            return None
        grey = np.rint(255 * _share_of_most(self.evidence)).astype(np.uint8)
        png = base64.b64encode(cv2.imencode(".png", grey)[1].tobytes()).decode()
        return {"png": png, "box": self.boxes[0].tolist(), "label": self.evidence_label}

    def cells(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return one row of a table."""
        probs = {f"prob.{name}": self.probs[name] for name in classes}
        patches = json.dumps(self.form("none")["patches"])
        verdict = {"label": self.label, "rejected": self.rejected}
        return verdict | probs | {"set": json.dumps(list(self.set)), "patches": patches}

    def pictures(self) -> dict[str, np.ndarray]:
        """Keep no picture besides."""
        return {}

    def draw(self, image: UInt8[np.ndarray, "h w 3"], scale: np.ndarray) -> None:
        """Outline patches, the more attention the thicker; warm what speaks for the label."""
        boxes = np.rint(self.boxes * np.tile(scale, 2)).astype(int).tolist()
        if self.evidence is not None:
            self._warm(image, *boxes[0])
            return
        for (x0, y0, x1, y1), share in zip(boxes, self.attn, strict=True):
            thick = 1 + round(4 * float(share / self.attn.max()))
            cv2.rectangle(image, (x0, y0), (x1, y1), FALSE, thick)

    def _warm(self, image: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> None:
        assert self.evidence is not None
        window = image[y0:y1, x0:x1]
        if not window.size:
            return
        size = (window.shape[1], window.shape[0])
        share = WARMTH * cv2.resize(_share_of_most(self.evidence), size)[..., None]
        window[:] = np.rint((1 - share) * window + share * np.array(FALSE))


class _Classifier:
    """What the classifiers share: from logits to a verdict."""

    decides = True

    def __init__(self, card: Card, graphs: Mapping[str, Any]) -> None:
        self.pipeline, self.classes, self.graphs = card.pipeline, card.classes, graphs
        if card.decision is None:
            raise BundleError(
                f"The bundle of {card.run or 'an unnamed run'} has no decision to answer by; export it again."
            )
        self.decision = card.decision

    def together(self, views: Sequence[Answer]) -> Verdict:
        """Answer for a part by its views, from their mean logits, as judging does for a group; by attention where the graph has one.

        Its set holds each view's own: what holds the truth of one view with a probability holds
        that of the part with no less.
        """
        names = {name for view in views for name in view.set}
        shares = softmax(np.array([[view.attention for view in views]]))[0]
        return self._verdict(shares @ np.array([view.logits for view in views]), names)

    def _verdict(self, logits: np.ndarray, names: set[str] | None = None) -> Verdict:
        """Decide by logits; `names` must be in the set besides the likeliest class."""
        if len(logits) != len(self.classes):
            raise BundleError(
                f"The bundle names {len(self.classes)} classes and its graph answers for {len(logits)}; export it again."
            )
        probs = self.decision.probs(logits[None])
        label = self.classes[self.decision.answers(probs)[0]]
        if names is None:
            inside = self.decision.sets(probs)[0]
            names = {name for name, is_in in zip(self.classes, inside, strict=True) if is_in}
        else:
            names = names | {self.classes[probs[0].argmax()]}
        return Verdict(
            label=label,
            probs=dict(zip(self.classes, probs[0].tolist(), strict=True)),
            set=tuple(name for name in self.classes if name in names),
            rejected=len(names) > 1,
        )


class ImageClassifier(_Classifier):
    """Answers with a class, from the whole image in its frame.

    Args:
        card: the bundle's card.
        graphs: its sessions by name.
    """

    def __init__(self, card: Card, graphs: Mapping[str, Any]) -> None:
        super().__init__(card, graphs)
        self.input = ImageInput(settings_of(ImageConfig, self.pipeline["image"]))

    def predict(self, pyramids: Sequence[ImagePyramid]) -> list[Answer]:
        """Answer for each image."""
        feed = {"image": np.stack([self.input.array(pyramid) for pyramid in pyramids])}
        names = ["logits", "embedding", "evidence", "attention"]
        outputs = run_graph(self.graphs["classify"], names, feed)
        return [
            self._answer(pyramid, *rows) for pyramid, *rows in zip(pyramids, *outputs, strict=True)
        ]

    def _answer(
        self,
        pyramid: ImagePyramid,
        logits: np.ndarray,
        embedding: np.ndarray | None,
        evidence: np.ndarray | None,
        attention: np.ndarray | None,
    ) -> Answer:
        verdict, of_label, label = self._verdict(logits), None, None
        if evidence is not None:
            map_of_label = evidence[self.classes.index(verdict.label)]
            of_label = _cut_map(map_of_label, self.input.frame_box(pyramid))
            label = verdict.label if np.ptp(evidence, axis=0).any() else None
        return Answer(
            **vars(verdict),
            boxes=self.input.source_box(pyramid)[None],
            attn=np.ones(1),
            logits=logits,
            embedding=embedding,
            evidence=of_label,
            evidence_label=label,
            attention=0.0 if attention is None else float(attention),
        )


def _share_of_most(
    places: Float[np.ndarray, "rows columns"],
) -> Float[np.ndarray, "rows columns"]:
    """Return the positive part of a map, over its largest value."""
    share: np.ndarray = np.maximum(places, 0) / max(float(places.max()), 1e-12)
    return share.astype(np.float32)


def _cut_map(
    places: Float[np.ndarray, "rows columns"], box: Float[np.ndarray, "4"]
) -> Float[np.ndarray, "rows columns"]:
    """Stretch a part of a map, x0, y0, x1, y1 as shares of its sides, to the whole map's size."""
    size = np.array(places.shape[::-1])
    low, high = box[:2] * size, box[2:] * size
    steps = (high - low) / size
    matrix = np.column_stack([np.diag(steps), low + steps / 2 - 0.5])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REPLICATE
    return cv2.warpAffine(places, matrix, size.tolist(), flags=flags, borderMode=border)


class PatchClassifier(_Classifier):
    """Answers with a class, from patches that are selected at full resolution.

    Args:
        card: the bundle's card.
        graphs: its sessions by name.
    """

    def __init__(self, card: Card, graphs: Mapping[str, Any]) -> None:
        super().__init__(card, graphs)
        self.sizes = settings_of(PatchConfig, self.pipeline["patches"])
        self.grid, self.k = self.pipeline["grid"], self.pipeline["k"]

    def predict(self, pyramids: Sequence[ImagePyramid]) -> list[Answer]:
        """Answer for each image."""
        canvases = [Canvas(pyramid, self.sizes) for pyramid in pyramids]
        overviews = [canvas.overview() for canvas in canvases]
        corners = [
            cell_corners(cells, self.grid, self.sizes) for cells in self._cells(canvases, overviews)
        ]
        patches = [
            normalise(canvas.patches(at), mean, std)
            for canvas, at, (_, mean, std) in zip(canvases, corners, overviews, strict=True)
        ]
        names = ["logits", "attn", "embedding"]
        outputs = run_graph(self.graphs["classify"], names, {"patches": np.stack(patches)})
        return [
            Answer(
                **vars(self._verdict(logits)),
                boxes=canvas.source_boxes(at),
                attn=attn,
                logits=logits,
                embedding=embedding,
            )
            for canvas, at, logits, attn, embedding in zip(canvases, corners, *outputs, strict=True)
        ]

    def _cells(self, canvases: Sequence[Canvas], overviews: Sequence[Overview]) -> list[np.ndarray]:
        """Choose the cells to look at in each image, in ascending order, as the card says."""
        select = self.pipeline["select"]
        if select == "random":
            return [self._drawn(overview) for overview, _, _ in overviews]
        if select == "dps":
            views = [normalise(image[None], mean, std) for image, mean, std in overviews]
            feed = {"overview": np.concatenate(views)}
            scores = self.graphs["scorer"].run(["scores"], feed)[0]
            return [best_cells(row, self.k, self.grid, self.pipeline["apart"]) for row in scores]
        cells = np.array(self.pipeline["cells"])
        if select != "ips":
            return [cells] * len(canvases)
        return [
            self._iterated(canvas, cells, mean, std)
            for canvas, (_, mean, std) in zip(canvases, overviews, strict=True)
        ]

    def _drawn(self, overview: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(overview_seed(overview))
        cells = informative_cells(overview, self.grid, self.sizes, self.pipeline["draws"], rng)
        return np.sort(rng.permutation(cells)[: self.k])

    def _iterated(
        self, canvas: Canvas, cells: np.ndarray, mean: np.ndarray, std: np.ndarray
    ) -> np.ndarray:
        def embed(chosen: np.ndarray) -> np.ndarray:
            patches = canvas.patches(cell_corners(chosen[0], self.grid, self.sizes))
            feed = {"patches": normalise(patches, mean, std)}
            return np.asarray(self.graphs["embed"].run(["features"], feed)[0])[None]

        def attend(features: np.ndarray) -> np.ndarray:
            return np.asarray(self.graphs["attend"].run(["attn"], {"features": features})[0])

        return iterative_cells(cells, 1, self.k, self.pipeline["chunk"], embed, attend)[0]
