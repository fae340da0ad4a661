"""Levels: a pixel's logit as one small integer, which is how masks are stored, compared and cut at a threshold."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from assay.shapes import Float, Int, UInt8

LEVELS = 64
"""Levels of a pixel, 0..63."""


NEVER = LEVELS
"""A threshold that no level reaches: of a class that was not learnt nothing is marked."""


VOID = 254
"""In a mask: nobody judged this pixel, so it neither teaches nor is judged."""


STEPS_PER_LOGIT = 4


REACH = LEVELS / STEPS_PER_LOGIT / 2
"""Logits are told apart within plus and minus this."""


def to_levels(logits: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round each logit down to its level; what is out of reach gets the first level or the last."""
    steps = logits + REACH
    steps *= STEPS_PER_LOGIT
    # in place, since fetching fresh memory costs more than the sums; what is not negative is cut down to its level
    levels: np.ndarray = np.clip(steps, 0, LEVELS - 1, out=steps).astype(np.uint8)
    return levels


def level_probs() -> Float[np.ndarray, " levels"]:
    """Return the probability that each level stands for, that of its middle."""
    logits = (np.arange(LEVELS) + 0.5) / STEPS_PER_LOGIT - REACH
    return 1 / (1 + np.exp(-logits))


def threshold_prob(level: int) -> float:
    """Return the least probability that reaches a level; 1 of a threshold that none reaches."""
    if level >= NEVER:
        return 1.0
    return 1 / (1 + math.exp(REACH - level / STEPS_PER_LOGIT))


def leading(levels: UInt8[np.ndarray, "classes h w"]) -> UInt8[np.ndarray, "classes h w"]:
    """Keep the level of each pixel's likeliest class, the first of several, and set the others to 0.

    No threshold is below 1, so a pixel then reaches that of one class at most: what is counted class by
    class is the mask that ships.
    """
    if len(levels) == 1:
        return levels
    first = levels.argmax(0) == np.arange(len(levels))[:, None, None]
    return np.where(first, levels, 0).astype(np.uint8)


def to_mask(
    levels: UInt8[np.ndarray, "classes h w"], thresholds: Sequence[int]
) -> UInt8[np.ndarray, "h w"]:
    """Give each pixel its likeliest class, numbered from 1, where that reaches its threshold; else 0."""
    highest, mask = levels[0], (levels[0] >= thresholds[0]).astype(np.uint8)
    # class by class, which takes a tenth of the time of an argmax over the first axis
    for value, (level, threshold) in enumerate(zip(levels[1:], thresholds[1:], strict=True), 2):
        reached = np.where(level >= threshold, np.uint8(value), np.uint8(0))
        mask = np.where(level > highest, reached, mask)
        highest = np.maximum(highest, level)
    return mask


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
