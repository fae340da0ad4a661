"""Answers with a vector: where an image stands among others."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.bundle.answer import run_graph, settings_of
from assay.bundle.card import Card
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.image import ImageConfig, ImageInput
from assay.shapes import Float, UInt8


@dataclass(frozen=True)
class EmbeddingAnswer:
    """The embedding of one image."""

    embedding: Float[np.ndarray, " d"]

    def golden(self) -> dict[str, float]:
        """Return the entries of the vector at unit length, which every opening of the bundle must repeat."""
        unit = self.embedding / max(float(np.linalg.norm(self.embedding)), 1e-12)
        return {str(axis): float(entry) for axis, entry in enumerate(unit)}

    def form(self, mask: str, explain: bool = False) -> dict[str, Any]:
        """Return plain values that go over the wire."""
        return {"embedding": self.embedding.tolist()}

    def cells(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return one row of a table."""
        return {"embedding": json.dumps(self.embedding.tolist())}

    def pictures(self) -> dict[str, np.ndarray]:
        """Keep no picture besides."""
        return {}

    def draw(self, image: UInt8[np.ndarray, "h w 3"], scale: np.ndarray) -> None:
        """Leave the image as it is: a vector marks no place."""


class Embedder:
    """Answers with a vector, from the whole image in its frame.

    Args:
        card: the bundle's card.
        graphs: its sessions by name.
    """

    decides = False

    def __init__(self, card: Card, graphs: Mapping[str, Any]) -> None:
        self.graph = graphs["embed"]
        self.input = ImageInput(settings_of(ImageConfig, card.pipeline["image"]))

    def predict(self, pyramids: Sequence[ImagePyramid]) -> list[EmbeddingAnswer]:
        """Answer for each image."""
        feed = {"image": np.stack([self.input.array(pyramid) for pyramid in pyramids])}
        (vectors,) = run_graph(self.graph, ["embedding"], feed)
        return [EmbeddingAnswer(vector) for vector in vectors]

    def together(self, views: Sequence[EmbeddingAnswer]) -> None:
        """Leave vectors of several views apart."""
