"""Counts of masks, summable over layers, and what val says by them: what training and judging both compute."""

from collections.abc import Mapping

import cv2
import numpy as np

from assay.levels import LEVELS, NEVER, VOID, leading, level_probs
from assay.shapes import Float, UInt8

SIZES = (25, 100, 400, 1600)
"""Areas (pixels) at which the sizes of components are cut: up to 24, up to 99, ..."""


SIZE_NAMES = ("under 25", "25-99", "100-399", "400-1599", "1600 and more")


def pixel_columns(
    levels: UInt8[np.ndarray, "classes h w"], mask: UInt8[np.ndarray, "h w"], kind: str
) -> dict[str, np.ndarray]:
    """Count pixels outside and inside the mask of each class by level, as every validation does; none of VOID.

    `pixels` are of the class that leads at each pixel, which is what a mask is made of; `levels` of all.
    """
    return {
        f"pixels_{kind}": _count_pixels(leading(levels), mask),
        f"levels_{kind}": _count_pixels(levels, mask),
    }


def _count_pixels(
    levels: UInt8[np.ndarray, "classes h w"], mask: UInt8[np.ndarray, "h w"]
) -> Float[np.ndarray, " counts"]:
    counts = np.zeros((len(levels), 2, LEVELS), dtype=np.float32)
    judged = mask != VOID
    for i, class_levels in enumerate(levels):
        inside = mask == i + 1
        counts[i, 0] = np.bincount(class_levels[~inside & judged], minlength=LEVELS)
        counts[i, 1] = np.bincount(class_levels[inside], minlength=LEVELS)
    return counts.ravel()


def component_columns(
    levels: UInt8[np.ndarray, "classes h w"], mask: UInt8[np.ndarray, "h w"], kind: str
) -> dict[str, np.ndarray]:
    """Count components and false alarms; once, by the best weights, since it takes longer."""
    num_classes, num_sizes = len(levels), len(SIZE_NAMES)
    num = np.zeros((num_classes, num_sizes), dtype=np.float32)
    hits = np.zeros((num_classes, num_sizes, LEVELS), dtype=np.float32)
    alarms = np.zeros((num_classes, LEVELS), dtype=np.float32)
    for i, class_levels in enumerate(leading(levels)):
        class_mask = (mask == i + 1).astype(np.uint8)
        num[i], hits[i] = _count_components(class_levels, class_mask)
        # what touches a pixel that nobody judged may be true
        alarms[i] = _count_alarms(class_levels, class_mask | (mask == VOID))
    return {
        f"components_{kind}": num.ravel(),
        f"found_{kind}": hits.ravel(),
        f"alarms_{kind}": alarms.ravel(),
    }


def _count_components(
    levels: UInt8[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, " sizes"], Float[np.ndarray, "sizes levels"]]:
    """Count components by size, and those found by size and threshold."""
    num = np.zeros(len(SIZE_NAMES))
    hits = np.zeros((len(SIZE_NAMES), LEVELS))
    _, labels = cv2.connectedComponents(mask)
    if not labels.max():
        return num, hits
    inside = labels > 0
    component, level = labels[inside], levels[inside]
    order = np.lexsort((level, component))  # by component, its levels rising
    areas = np.bincount(component)[1:]
    # the level that half of the pixels reach
    middles = level[order][np.cumsum(areas) - areas + areas // 2]
    for size, middle in zip(np.digitize(areas, SIZES), middles, strict=True):
        num[size] += 1
        hits[size, : middle + 1] += 1
    return num, hits


def _count_alarms(
    levels: UInt8[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]
) -> Float[np.ndarray, " levels"]:
    """Count marked components that touch no pixel of the mask, by threshold."""
    alarms = np.zeros(LEVELS)
    present = np.bincount(levels.ravel(), minlength=LEVELS)
    for threshold in range(LEVELS):
        if threshold and not present[threshold - 1]:
            alarms[threshold] = alarms[threshold - 1]  # the same pixels are marked
            continue
        count, marked = cv2.connectedComponents((levels >= threshold).astype(np.uint8))
        touching = marked[(mask > 0) & (marked > 0)]
        alarms[threshold] = count - 1 - np.unique(touching).size
    return alarms


def best_thresholds(
    pixels: Float[np.ndarray, "classes 2 levels"], least_recall: float = 0.0
) -> list[int]:
    """Choose the threshold of each class, from level 1 up, by pixels outside and inside its mask.

    That of best F1, and so of best IoU, among those that mark at most half of what is outside; if none
    of them is better than marking everything, the class was not learnt and nothing of it is marked
    (NEVER). With a recall to keep, the highest that keeps it, if one does. Without a pixel of the class
    nothing can be chosen: a probability of a half.
    """
    outside, inside = np.moveaxis(pixels[..., ::-1].cumsum(-1)[..., ::-1], 1, 0)
    chosen = []
    for alarms, hits in zip(outside, inside, strict=True):
        if not hits[0]:
            chosen.append(LEVELS // 2)
            continue
        f1 = 2 * hits / (alarms + hits + hits[0])
        allowed = np.flatnonzero((alarms <= alarms[0] / 2) & (f1 > f1[0]))
        enough = np.flatnonzero(hits >= least_recall * hits[0])
        if least_recall and enough[-1] > 0:
            chosen.append(int(enough[-1]))
        elif len(allowed):
            chosen.append(int(allowed[f1[allowed].argmax()]))
        else:
            chosen.append(NEVER)
    return chosen


def validate_masks(columns: Mapping[str, np.ndarray], num_classes: int) -> dict[str, float]:
    """Score val: micro IoU at the best threshold of each class, and NLL per pixel (nats)."""
    pixels, levels = (
        columns[name].reshape(-1, num_classes, 2, LEVELS).astype(np.float64).sum(0)
        for name in ("pixels_label", "levels_label")
    )
    reached = np.arange(LEVELS) >= np.array(best_thresholds(pixels))[:, None]
    marked = (pixels * reached[:, None]).sum((0, 2))
    union = marked[0] + pixels[:, 1].sum()
    probs = level_probs()
    nll = -(levels[:, 1] * np.log(probs) + levels[:, 0] * np.log(1 - probs)).sum()
    return {"iou": float(marked[1] / max(union, 1)), "nll": float(nll / levels.sum())}
