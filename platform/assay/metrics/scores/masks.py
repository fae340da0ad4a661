"""Counts of masks, summable over layers, and what val says by them: what training and judging both compute."""

from collections.abc import Mapping

import cv2
import numpy as np

from assay.levels import LEVELS, level_probs
from assay.shapes import UInt8

SIZES = (25, 100, 400, 1600)
"""Areas (pixels) at which the sizes of components are cut: up to 24, up to 99, ..."""


SIZE_NAMES = ("under 25", "25-99", "100-399", "400-1599", "1600 and more")


def pixel_columns(
    levels: UInt8[np.ndarray, "classes h w"], mask: UInt8[np.ndarray, "h w"], kind: str
) -> dict[str, np.ndarray]:
    """What every look at a layer counts."""
    counts = np.stack([
        np.stack([np.bincount(own[inside == side].ravel(), minlength=LEVELS) for side in (0, 1)])
        for own, inside in ((own, mask == i + 1) for i, own in enumerate(levels))
    ])  # fmt: skip
    return {f"pixels_{kind}": counts.astype(np.float32).ravel()}


def component_columns(
    levels: UInt8[np.ndarray, "classes h w"], mask: UInt8[np.ndarray, "h w"], kind: str
) -> dict[str, np.ndarray]:
    """What is counted once, by the best weights, since it takes longer."""
    made = [_components(own, (mask == i + 1).astype(np.uint8)) for i, own in enumerate(levels)]
    names = ("components", "found", "alarms")
    return {
        f"{name}_{kind}": np.stack(values).astype(np.float32).ravel()
        for name, values in zip(names, zip(*made, strict=True), strict=True)
    }


def _components(
    levels: UInt8[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Components by size, those found by size and threshold, false alarms by threshold."""
    num = np.zeros(len(SIZE_NAMES))
    found = np.zeros((len(SIZE_NAMES), LEVELS))
    _, labels = cv2.connectedComponents(mask)
    if labels.max():
        inside = labels > 0
        owner, own = labels[inside], levels[inside]
        order = np.lexsort((own, owner))  # by component, its levels rising
        areas = np.bincount(owner)[1:]
        # the level that half of the pixels reach
        middle = own[order][np.cumsum(areas) - areas + areas // 2]
        for size, level in zip(np.digitize(areas, SIZES), middle, strict=True):
            num[size] += 1
            found[size, : level + 1] += 1
    alarms = np.zeros(LEVELS)
    present = np.bincount(levels.ravel(), minlength=LEVELS)
    for threshold in range(LEVELS):
        if threshold and not present[threshold - 1]:
            alarms[threshold] = alarms[threshold - 1]  # the same pixels are marked
            continue
        count, marked = cv2.connectedComponents((levels >= threshold).astype(np.uint8))
        touching = marked[(mask > 0) & (marked > 0)]
        alarms[threshold] = count - 1 - np.unique(touching).size
    return num, found, alarms


def validate_masks(columns: Mapping[str, np.ndarray], num_classes: int) -> dict[str, float]:
    """What one look at val says: micro IoU at the best threshold of each class, and NLL per pixel (nats)."""
    pixels = columns["pixels_label"].reshape(-1, num_classes, 2, LEVELS).astype(np.float64).sum(0)
    marked = pixels[..., ::-1].cumsum(-1)[..., ::-1]
    hits, union = marked[:, 1], pixels[:, 1].sum(-1)[:, None] + marked[:, 0]
    iou = hits / np.maximum(union, 1)
    best = iou[:, 1:].argmax(-1) + 1
    each = np.arange(num_classes)
    chosen, among = hits[each, best].sum(), union[each, best].sum()
    probs = level_probs()
    lost = -(pixels[:, 1] * np.log(probs) + pixels[:, 0] * np.log(1 - probs)).sum()
    return {"iou": float(chosen / max(among, 1)), "nll": float(lost / pixels.sum())}
