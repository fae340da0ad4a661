"""Answers with a mask, from overlapping tiles; or by the rule that masks were made by."""

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
from assay.data.inputs import tiles
from assay.data.masks.overlay import FALSE, STRENGTH
from assay.data.masks.rules import MaskConfig, rule_levels
from assay.levels import find_components, level_probs, to_mask
from assay.shapes import Bool, Float, Int, UInt8

GOLDEN_CELLS = 8
"""A mask's golden output are mean probabilities in so many cells along each side."""


def coarse_probs(
    classes: Sequence[str], levels: UInt8[np.ndarray, "classes h w"]
) -> dict[str, float]:
    """Return mean probabilities in the cells of a coarse grid; a pixel at a threshold does not sway them."""
    probs = level_probs().astype(np.float32)[levels]
    size = (GOLDEN_CELLS, GOLDEN_CELLS)
    means: dict[str, float] = {}
    for name, prob in zip(classes, probs, strict=True):
        coarse = cv2.resize(prob, size, interpolation=cv2.INTER_AREA).ravel()
        means |= {f"{name} {i}": float(mean) for i, mean in enumerate(coarse)}
    return means


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
    """Logits in steps (see `levels`)."""
    embedding: Float[np.ndarray, " d"] | None = field(default=None, repr=False)
    """Deepest features, averaged over the image; None where the graph does not say."""

    @property
    def defects(self) -> list[Defect]:
        """Connected parts of the mask, the largest first."""
        return [
            Defect(self.classes[value - 1], area, box)
            for value, area, box in find_components(self.mask)
        ]

    def golden(self) -> dict[str, float]:
        """Return mean probabilities in the cells of a coarse grid."""
        return coarse_probs(self.classes, self.levels)

    def form(self, mask: str, explain: bool = False) -> dict[str, Any]:
        """Return plain values that go over the wire; `mask`: png, rle or none."""
        defects = [
            {"label": defect.label, "area_px": defect.area_px, "box": defect.box.tolist()}
            for defect in self.defects
        ]
        return {"mask": self._mask_form(mask), "defects": defects}

    def _mask_form(self, mask: str) -> dict[str, Any] | None:
        if mask == "none":
            return None
        if mask == "png":
            png = cv2.imencode(".png", self.mask)[1].tobytes()
            return {"png": base64.b64encode(png).decode()}
        rle = {name: runs(self.mask == value) for value, name in enumerate(self.classes, 1)}
        return {"rle": rle}

    def cells(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return one row of a table: areas, number and outlines of defects."""
        defects = self.form("none")["defects"]
        areas = dict.fromkeys(classes, 0)
        for defect in defects:
            areas[defect["label"]] += defect["area_px"]
        columns = {f"area_px.{name}": area for name, area in areas.items()}
        return columns | {"num_defects": len(defects), "defects": json.dumps(defects)}

    def pictures(self) -> dict[str, np.ndarray]:
        """Keep the mask."""
        return {"masks": self.mask}

    def draw(self, image: UInt8[np.ndarray, "h w 3"], scale: np.ndarray) -> None:
        """Colour what is marked; a defect of one pixel stays in sight."""
        marked = (self.mask > 0).astype(np.float32)
        size = (image.shape[1], image.shape[0])
        touched = cv2.resize(marked, size, interpolation=cv2.INTER_AREA) > 0
        image[touched] = (1 - STRENGTH) * image[touched] + STRENGTH * np.array(FALSE)


class Segmenter:
    """Answers with a mask.

    Args:
        card: the bundle's card.
        graphs: its sessions by name; none for the rule.
    """

    decides = False

    def __init__(self, card: Card, graphs: Mapping[str, Any]) -> None:
        pipeline = card.pipeline
        self.classes, self.thresholds = tuple(card.classes), card.thresholds or []
        self.graph: Any = next(iter(graphs.values()), None)
        # bundles from before these were settings were normalised and cut so
        before = {"normalise": "image", "size": "fixed"}
        self.tiles = settings_of(tiles.TileConfig, before | pipeline["tiles"])
        self.rule = settings_of(MaskConfig, pipeline.get("masks", {}) | {"classes": self.classes})

    def predict(self, pyramids: Sequence[ImagePyramid]) -> list[MaskAnswer]:
        """Answer for each image."""
        return [self._predict(pyramid) for pyramid in pyramids]

    def together(self, views: Sequence[MaskAnswer]) -> None:
        """Leave masks of several views apart."""

    def _predict(self, pyramid: ImagePyramid) -> MaskAnswer:
        embeddings: list[Any] = []

        def network(normalised: np.ndarray) -> np.ndarray:
            logits, rows = run_graph(self.graph, ["logits", "embedding"], {"tiles": normalised})
            embeddings.extend(row for row in rows if row is not None)
            return np.asarray(logits)

        num = len(self.classes)
        if self.graph is None:
            levels = rule_levels(pyramid.pixels, self.rule, num)
        else:
            levels = tiles.level_map(pyramid, network, num, self.tiles)
        embedding = np.mean(embeddings, axis=0) if embeddings else None
        return MaskAnswer(self.classes, to_mask(levels, self.thresholds), levels, embedding)


def runs(inside: Bool[np.ndarray, "h w"]) -> list[int]:
    """Return lengths of runs outside and inside in turn, column by column, the first outside (or 0)."""
    flat = inside.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0] if flat[:1].any() else [], [0], edges, [flat.size]])
    lengths: list[int] = np.diff(bounds).astype(int).tolist()
    return lengths
