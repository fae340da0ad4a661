"""Levels: a pixel's logit as one small integer, which is how masks are stored, compared and cut at a threshold."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from assay.shapes import Float, Int, UInt8

LEVELS = 64
"""Levels of a pixel, 0..63."""


STEPS_PER_LOGIT = 4


REACH = LEVELS / STEPS_PER_LOGIT / 2
"""Logits are told apart within plus and minus this."""


def to_levels(logits: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round each logit down to its level; what is out of reach gets the first level or the last."""
    steps = np.floor((logits + REACH) * STEPS_PER_LOGIT)
    levels: np.ndarray = steps.clip(0, LEVELS - 1).astype(np.uint8)
    return levels


def level_probs() -> Float[np.ndarray, " levels"]:
    """Return the probability that each level stands for, that of its middle."""
    logits = (np.arange(LEVELS) + 0.5) / STEPS_PER_LOGIT - REACH
    return 1 / (1 + np.exp(-logits))


def threshold_prob(level: int) -> float:
    """Return the least probability that reaches a level."""
    return 1 / (1 + math.exp(REACH - level / STEPS_PER_LOGIT))


def to_mask(
    levels: UInt8[np.ndarray, "classes h w"], thresholds: Sequence[int]
) -> UInt8[np.ndarray, "h w"]:
    """Choose each pixel's class, numbered from 1: of those that reach their threshold the one furthest above it; else 0."""
    above = levels.astype(np.int16) - np.array(thresholds, dtype=np.int16)[:, None, None]
    best = above.argmax(0)
    reached = np.take_along_axis(above, best[None], axis=0)[0] >= 0
    return np.where(reached, best + 1, 0).astype(np.uint8)


def find_components(
    mask: UInt8[np.ndarray, "h w"],
) -> list[tuple[int, int, Int[np.ndarray, "4"]]]:
    """Find the 8-connected components: class, area (pixels), and box x0, y0, x1, y1 of each; the largest first."""
    components = []
    for value in np.unique(mask[mask > 0]).tolist():
        _, _, stats, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8))
        for x, y, w, h, area in stats[1:].tolist():
            components.append((value, area, np.array([x, y, x + w, y + h])))
    return sorted(components, key=lambda component: -component[1])
