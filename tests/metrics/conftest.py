"""Logits drawn by chance, which tell their truth a little."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_scores() -> Callable[..., tuple[Any, Any]]:
    """Draws logits of single rows, the truth's a little higher, and the truth."""

    def draw(seed: int, num: int = 300, num_classes: int = 3) -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        truth = rng.integers(num_classes, size=num).astype(np.int32)
        logits = rng.normal(scale=1.5, size=(num, num_classes)).astype(np.float32)
        logits[np.arange(num), truth] += 1.0
        return logits, truth

    return draw
