"""Does a model see what it was judged on? Its logits of late against those of its test rows.

A bundle ships no embeddings of its training set, so drift is watched where the decision is made.
"""

from collections import deque

import numpy as np
import pyarrow as pa

from assay.predictions import is_classification, logits_of
from assay.shapes import Float

WINDOW = 256
"""Answers of late that are looked at."""
LEAST = 32
"""Answers below which nothing is said."""


class Drift:
    """How far logits have moved.

    Args:
        mean: of each class's logit over the test rows.
        std: their standard deviation.
    """

    def __init__(self, mean: Float[np.ndarray, " c"], std: Float[np.ndarray, " c"]) -> None:
        self.mean, self.std = mean, np.maximum(std, 1e-6)
        self.recent: deque[np.ndarray] = deque(maxlen=WINDOW)

    @classmethod
    def from_rows(cls, judged: pa.Table) -> "Drift | None":
        """From a version's test rows; None where they bear no classes."""
        if not judged.num_rows or not is_classification(judged):
            return None
        logits = logits_of(judged)
        return cls(logits.mean(axis=0), logits.std(axis=0))

    def add(self, logits: Float[np.ndarray, " c"]) -> None:
        """Take note of one answer."""
        self.recent.append(logits)

    @property
    def value(self) -> float | None:
        """The largest move of any class's mean logit, in its standard deviations; None: too early."""
        if len(self.recent) < LEAST:
            return None
        return float((np.abs(np.mean(self.recent, axis=0) - self.mean) / self.std).max())
