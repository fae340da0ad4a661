"""Does a model still see what it learnt from? Its embeddings of late against those of training images.

An embedding is what a model decides from: the tokens before the last layer where it names a class,
the encoder's deepest features, averaged over the image, where it draws a mask.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from assay.shapes import Float

IMAGES = 64
"""Images of a set that a bundle's card describes it by, at most."""


WINDOW = 256
"""Answers of late that are looked at."""


LEAST = 32
"""Answers below which nothing is said."""


class Drift:
    """How far the mean embedding has moved, in units of how far embeddings of training images scatter.

    The distance of the two means by the root of the summed variances of all features; of n images
    like those of training it is about 1 / sqrt(n).

    Args:
        mean: embedding of training images.
        scatter: root of the summed variances of their embeddings' features.
        val: the drift of val's images, which are unseen but no different; nan where unknown.
    """

    def __init__(
        self, mean: Float[np.ndarray, " d"], scatter: float, val: float = float("nan")
    ) -> None:
        self.mean, self.scatter, self.val = mean, max(scatter, 1e-12), val
        self.recent: deque[np.ndarray] = deque()
        self.num, self.total = 0, np.zeros_like(mean, dtype=np.float64)
        """Of all answers, and sum of those of late, so that a value costs no pass over them."""

    @classmethod
    def from_card(cls, fields: Mapping[str, Any] | None) -> "Drift | None":
        """Take the embeddings as a bundle's card describes them; None where its graphs give none."""
        return cls(np.array(fields["mean"]), fields["scatter"], fields["val"]) if fields else None

    def add(self, embedding: Float[np.ndarray, " d"]) -> None:
        """Take note of one answer."""
        self.recent.append(embedding)
        self.num += 1
        self.total += embedding
        if len(self.recent) > WINDOW:
            self.total -= self.recent.popleft()
        if self.num % WINDOW == 0:  # what no number, or a huge one, left in it ends here
            self.total = np.sum(self.recent, axis=0, dtype=np.float64)

    @property
    def value(self) -> float | None:
        """The drift of the answers of late; None: too few."""
        num = len(self.recent)
        return self._of_mean(self.total / num) if num >= LEAST else None

    def of(self, embeddings: Float[np.ndarray, "n d"]) -> float:
        """Return the drift of some embeddings."""
        return self._of_mean(np.mean(embeddings, axis=0))

    def _of_mean(self, mean: Float[np.ndarray, " d"]) -> float:
        return float(np.linalg.norm(mean - self.mean)) / self.scatter


def describe(train: Float[np.ndarray, "n d"], val: Float[np.ndarray, "m d"]) -> dict[str, Any]:
    """Describe, for a card, the embeddings of some training images, and val's beside them."""
    mean, scatter = np.mean(train, axis=0), float(np.sqrt(np.var(train, axis=0).sum()))
    drift = Drift(mean, scatter).of(val)
    return {"mean": mean.tolist(), "scatter": scatter, "num": len(train), "val": drift}
