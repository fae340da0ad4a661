"""Masks over an image, in colours that say what was hit, falsely marked and missed."""

from collections.abc import Mapping

import cv2
import numpy as np

from assay.levels import VOID
from assay.shapes import UInt8

SIDE_PX = 320
"""Longer side of a panel; smaller images are shown as they are (pixels)."""


GAP_PX = 6


HIT, FALSE, MISSED = (38, 166, 154), (255, 152, 0), (216, 27, 96)
"""Teal, orange and crimson: told apart by colour-blind eyes, and by their brightness."""


STRENGTH = 0.65
"""Share of a colour in a marked pixel."""


def panels(
    image: UInt8[np.ndarray, "h w 3"],
    truth: UInt8[np.ndarray, "h w"],
    answers: Mapping[str, UInt8[np.ndarray, "h w"]],
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Draw the image, then each answer over it against the truth, side by side.

    A pixel of a panel is coloured if any pixel of the image that it stands for is, so that small
    defects stay in sight; of several colours a miss goes before a false mark before a hit.
    """
    height, width = image.shape[:2]
    scale = min(1.0, SIDE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    gap = np.full((size[1], GAP_PX, 3), 255, np.uint8)
    strips = [small]
    for mask in answers.values():
        known = truth != VOID
        hit, marked, inside = (mask == truth) & (mask > 0), (mask > 0) & known, (truth > 0) & known
        panel = small.astype(np.float32)
        for where, colour in ((hit, HIT), (marked & ~hit, FALSE), (inside & ~hit, MISSED)):
            touched = cv2.resize(where.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
            panel[touched] = (1 - STRENGTH) * small[touched] + STRENGTH * np.array(colour)
        strips += [gap, np.rint(panel).astype(np.uint8)]
    return np.concatenate(strips, axis=1)


def beside(
    image: UInt8[np.ndarray, "h w 3"],
    drawn: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "rows columns"] | None = None,
) -> UInt8[np.ndarray, "h wide 3"]:
    """Put an image beside what was drawn over it, on which a mask is outlined in teal."""
    if mask is not None:
        size = (drawn.shape[1], drawn.shape[0])
        marked = (mask > 0).astype(np.float32)
        touched = cv2.resize(marked, size, interpolation=cv2.INTER_AREA) > 0
        edges = cv2.dilate(touched.astype(np.uint8), np.ones((3, 3), np.uint8)) > touched
        drawn = np.where(edges[..., None], np.array(HIT, np.uint8), drawn)
    gap = np.full((len(image), GAP_PX, 3), 255, np.uint8)
    return np.concatenate([image, gap, drawn], axis=1)
