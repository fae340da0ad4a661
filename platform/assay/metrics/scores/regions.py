"""How far an anomaly's map covers the regions of a mask, and how high it rises in an image: sums over images."""

import cv2
import numpy as np

from assay.levels import LEVELS, VOID
from assay.shapes import Float, UInt8


def region_columns(
    levels: UInt8[np.ndarray, "1 h w"], mask: UInt8[np.ndarray, "h w"], kind: str
) -> dict[str, np.ndarray]:
    """Sum, over the mask's components, the share of each that reaches each level; and name the image's highest level.

    `overlap` has the sum for each level, then the number of components; `peak` the highest level that is judged.
    """
    overlap = np.zeros(LEVELS + 1, np.float32)
    num, labels = cv2.connectedComponents(((mask > 0) & (mask != VOID)).astype(np.uint8))
    for region in range(1, num):
        counts = np.bincount(levels[0][labels == region], minlength=LEVELS)
        overlap[:LEVELS] += counts[::-1].cumsum()[::-1] / counts.sum()
    overlap[LEVELS] = num - 1
    judged = levels[0][mask != VOID]
    peak = np.array(judged.max() if len(judged) else 0, np.float32)
    return {f"overlap_{kind}": overlap, f"peak_{kind}": peak}


def area_under_roc(
    negatives: Float[np.ndarray, "*draws levels"], positives: Float[np.ndarray, "*draws levels"]
) -> Float[np.ndarray, "*draws"]:
    """Return the probability that a positive reaches a higher level than a negative, half of it where both have one level.

    Args:
        negatives: Their number at each level.
        positives: The same.
    """
    below = negatives.cumsum(-1) - negatives
    wins = (positives * (below + negatives / 2)).sum(-1)
    pairs = negatives.sum(-1) * positives.sum(-1)
    return np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs > 0)


def area_under_pro(
    outside: Float[np.ndarray, "*draws levels"],
    overlap: Float[np.ndarray, "*draws levels"],
    num_regions: Float[np.ndarray, "*draws"],
    most: float = 0.3,
) -> Float[np.ndarray, "*draws"]:
    """Return the mean overlap of regions over shares of false pixels up to `most` (Bergmann et al. 2021, MVTec AD).

    Between levels the overlap is drawn straight, from nothing marked to everything.

    Args:
        outside: Pixels outside the masks at each level.
        overlap: Sum over regions of the share that reaches each level.
        num_regions: Their number.
        most: Share of false pixels at which the area ends.
    """
    reached = outside[..., ::-1].cumsum(-1)[..., ::-1]
    shape = outside.shape[:-1]
    areas = np.full(shape, np.nan)
    for at in np.ndindex(shape):
        if not (num_regions[at] and reached[at][0]):
            continue
        false = np.concatenate([[0.0], reached[at][::-1] / reached[at][0]])
        covered = np.concatenate([[0.0], overlap[at][::-1] / num_regions[at]])
        inside = false < most
        xs = np.concatenate([false[inside], [most]])
        ys = np.concatenate([covered[inside], [np.interp(most, false, covered)]])
        areas[at] = np.trapezoid(ys, xs) / most
    return areas
