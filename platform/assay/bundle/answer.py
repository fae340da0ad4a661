"""What a bundle says of one image, and how it comes to it: the ends of an opened bundle's graphs.

    patches, overview   a class: `Answer`; of several views of one part a `Verdict`
    tiles               a mask: `MaskAnswer`

Several images go through the graphs together. Numpy, an image decoder and onnxruntime are all that is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from assay.levels import find_components, level_probs
from assay.shapes import Float, Int, UInt8

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
        """Mean probability in the cells of a coarse grid; a pixel at a threshold does not sway it."""
        probs = level_probs().astype(np.float32)[self.levels]
        size = (GOLDEN_CELLS, GOLDEN_CELLS)
        cells = [cv2.resize(own, size, interpolation=cv2.INTER_AREA).ravel() for own in probs]
        return {
            f"{name} {i}": float(value)
            for name, own in zip(self.classes, cells, strict=True)
            for i, value in enumerate(own)
        }


def _run(graph: Any, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[Any]:
    """Outputs by name, and after them the embedding of each row; None where the graph gives none."""
    if any(end.name == "embedding" for end in graph.get_outputs()):
        found: list[Any] = graph.run([*names, "embedding"], feed)
        return found
    found = graph.run(list(names), feed)
    return [*found, [None] * len(found[0])]
