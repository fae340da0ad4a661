"""The end of a bundle's graphs that answers with a mask."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assay.bundle.answer import MaskAnswer, _run
from assay.bundle.card import Card
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs import tiles
from assay.data.masks.rules import MaskConfig, rule_levels
from assay.levels import to_mask


class Segmenter:
    """Answers with a mask, from overlapping tiles; or by the rule that masks were made by.

    Args:
        card: the bundle's card.
        graphs: its sessions by name; none for the rule.
    """

    def __init__(self, card: Card, graphs: Mapping[str, Any]) -> None:
        pipeline = card.pipeline
        self.classes, self.thresholds = tuple(card.classes), card.thresholds or []
        self.graph: Any = next(iter(graphs.values()), None)
        self.tiles = tiles.TileConfig(**pipeline["tiles"])
        self.masks = MaskConfig(**pipeline["masks"] | {"classes": self.classes})

    def predict(self, entries: Sequence[ImagePyramid]) -> list[MaskAnswer]:
        """Answer for each image."""
        return [self._predict(entry) for entry in entries]

    def together(self, views: Sequence[MaskAnswer]) -> None:
        """Masks of several views stay apart."""

    def _predict(self, entry: ImagePyramid) -> MaskAnswer:
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
        mask = to_mask(levels, self.thresholds)
        return MaskAnswer(self.classes, mask, levels, embedding)
