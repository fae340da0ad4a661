"""Counts of masks, summable over layers, and what val says by them: what training and judging both compute."""

from collections.abc import Mapping

import cv2
import numpy as np

from assay.levels import LEVELS, level_probs
from assay.shapes import Float, UInt8

SIZES = (25, 100, 400, 1600)
"""Areas (pixels) at which the sizes of components are cut: up to 24, up to 99, ..."""


SIZE_NAMES = ("under 25", "25-99", "100-399", "400-1599", "1600 and more")


def pixel_columns(
    levels: UInt8[np.ndarray, "classes h w"], mask: UInt8[np.ndarray, "h w"], kind: str
) -> dict[str, np.ndarray]:
    """Count pixels outside and inside the mask of each class by level, as every validation does."""
    counts = np.zeros((len(levels), 2, LEVELS), dtype=np.float32)
    for i, class_levels in enumerate(levels):
        inside = mask == i + 1
        counts[i, 0] = np.bincount(class_levels[~inside], minlength=LEVELS)
        counts[i, 1] = np.bincount(class_levels[inside], minlength=LEVELS)
    return {f"pixels_{kind}": counts.ravel()}


def component_columns(
    levels: UInt8[np.ndarray, "classes h w"], mask: UInt8[np.ndarray, "h w"], kind: str
) -> dict[str, np.ndarray]:
    """Count components and false alarms; once, by the best weights, since it takes longer."""
    num_classes, num_sizes = len(levels), len(SIZE_NAMES)
    num = np.zeros((num_classes, num_sizes), dtype=np.float32)
    hits = np.zeros((num_classes, num_sizes, LEVELS), dtype=np.float32)
    alarms = np.zeros((num_classes, LEVELS), dtype=np.float32)
    for i, class_levels in enumerate(levels):
        class_mask = (mask == i + 1).astype(np.uint8)
        num[i], hits[i] = _count_components(class_levels, class_mask)
        alarms[i] = _count_alarms(class_levels, class_mask)
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


def validate_masks(columns: Mapping[str, np.ndarray], num_classes: int) -> dict[str, float]:
    """Score val: micro IoU at the best threshold of each class, and NLL per pixel (nats)."""
    pixels = columns["pixels_label"].reshape(-1, num_classes, 2, LEVELS).astype(np.float64).sum(0)
    marked = pixels[..., ::-1].cumsum(-1)[..., ::-1]
    hits, union = marked[:, 1], pixels[:, 1].sum(-1)[:, None] + marked[:, 0]
    iou = hits / np.maximum(union, 1)
    best = iou[:, 1:].argmax(-1) + 1
    each = np.arange(num_classes)
    best_hits, best_union = hits[each, best].sum(), union[each, best].sum()
    probs = level_probs()
    nll = -(pixels[:, 1] * np.log(probs) + pixels[:, 0] * np.log(1 - probs)).sum()
    return {"iou": float(best_hits / max(best_union, 1)), "nll": float(nll / pixels.sum())}
