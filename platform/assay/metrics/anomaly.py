"""How well anomalies are told, beside what is measured of any mask: images ranked, pixels ranked, regions covered.

An image is clean if its mask of the kind judged by is empty; an image is alarmed if any pixel reaches the threshold.
The threshold is set on the clean images of val alone, by the share of them that may be alarmed.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from assay.levels import LEVELS, NEVER
from assay.metrics.estimate import Estimate, interval_of, share_of, share_of_sums
from assay.metrics.mask_counts import column_of, counts_of, judged_kind
from assay.metrics.masks import name_scores, thresholds_of
from assay.metrics.measures import Measure
from assay.metrics.predictions import rows_of, sets_of
from assay.metrics.scores.regions import area_under_pro, area_under_roc
from assay.shapes import Bool, Float, Int

SCORE = "image_accuracy"

MEASURES: Mapping[str, Measure] = {
    SCORE: Measure("Image accuracy", "images rightly alarmed or left alone"),
    "image_auroc": Measure(
        "Image AUROC", "probability that a defective image rises above a clean one"
    ),
    "pixel_auroc": Measure("Pixel AUROC", "the same of pixels inside and outside the masks"),
    "aupro": Measure("AUPRO", "mean share of each region that is covered, up to 30 % false pixels"),
    "images_found": Measure("Defective images found", "those with a marked pixel"),
    "images_alarmed": Measure("Clean images alarmed", "those with a marked pixel; lower is better"),
}
"""How these measures are shown."""


def fit_threshold(predictions: pa.Table, most_alarmed: float) -> list[int]:
    """Choose the lowest threshold that alarms at most a share of val's clean images; a half of all levels without one."""
    val = rows_of(predictions, "val")
    peaks = _peaks(val, "label")[_clean(val, "label")]
    if not len(peaks):
        return [LEVELS // 2]
    allowed = math.floor(most_alarmed * len(peaks))
    # one above the highest peak that must not be alarmed
    return [min(int(np.sort(peaks)[::-1][allowed]) + 1, NEVER) if allowed < len(peaks) else 1]


def score(predictions: pa.Table, thresholds: Sequence[int]) -> pa.Table:
    """Add a score to each image: 1 if it is alarmed and defective, or neither; else 0."""
    kind = judged_kind(predictions)
    is_alarmed = _peaks(predictions, kind) >= thresholds[0]
    right = (is_alarmed != _clean(predictions, kind)).astype(float)
    return name_scores(predictions, SCORE, thresholds, right, np.ones(len(right)))


def findings(predictions: pa.Table) -> dict[str, dict[str, Estimate]]:
    """Measure each set of a scored table, where it has what is measured."""
    threshold = thresholds_of(predictions)[0]
    return {name: _measures(rows_of(predictions, name), threshold) for name in sets_of(predictions)}


def warnings(predictions: pa.Table, most_alarmed: float) -> list[str]:
    """Say where the threshold is not what it is meant to be."""
    val, threshold = rows_of(predictions, "val"), thresholds_of(predictions)[0]
    num = int(_clean(val, "label").sum())
    more = "give val more good images (--split.val, --split.seed)"
    if not num:
        return [
            f"No image of val is free of marks, so no share of false alarms sets the threshold; {more}."
        ]
    texts = []
    if most_alarmed * num < 1:
        texts.append(
            f"Val has {num} clean images, of which a share of {most_alarmed:g} is less than one: the threshold lies above all of them; {more}, or raise --most-alarmed."
        )
    if threshold >= NEVER:
        texts.append(
            f"Nothing is marked: clean images of val reach the highest level, so that they are as unlike those of train as defects are; {more}, or raise --most-alarmed."
        )
    return texts


def _measures(rows: pa.Table, threshold: int) -> dict[str, Estimate]:
    kind, group = judged_kind(rows), rows["group"].to_numpy()
    is_clean, peaks = _clean(rows, kind), _peaks(rows, kind)
    shares = {
        "images_found": share_of(peaks >= threshold, ~is_clean, group),
        "images_alarmed": share_of(peaks >= threshold, is_clean, group),
    }
    estimates = {name: share for name, share in shares.items() if share is not None}
    pixels = column_of(rows, f"pixels_{kind}", (2, LEVELS))
    if is_clean.all():
        return estimates
    if is_clean.any():
        ranks = np.eye(LEVELS)[peaks]
        images = np.stack([ranks * is_clean[:, None], ranks * ~is_clean[:, None]], axis=1)
        estimates["image_auroc"] = _auroc(images, group)
    hits, alarms, missed = counts_of(rows, kind, [threshold]).sum(1).T
    estimates["iou"] = share_of_sums(hits, hits + alarms + missed, group)
    estimates["pixel_auroc"] = _auroc(pixels, group)
    overlap = column_of(rows, f"overlap_{kind}", (LEVELS + 1,))
    parts = np.concatenate([pixels[:, 0], overlap], axis=1)
    mass = np.stack([pixels[:, 0].sum(1), overlap[:, LEVELS]], axis=1)
    estimates["aupro"] = interval_of(parts, group, _aupro, mass=mass, by_scarcest=True)
    return estimates


def _auroc(counts: Float[np.ndarray, "images 2 levels"], group: np.ndarray) -> Estimate:
    return interval_of(
        counts.reshape(len(counts), -1),
        group,
        lambda sums: area_under_roc(*np.split(sums, 2, axis=1)),
        mass=counts.sum(-1),
        by_scarcest=True,
    )


def _aupro(sums: Float[np.ndarray, "draws two_levels_and_one"]) -> Float[np.ndarray, " draws"]:
    return area_under_pro(sums[:, :LEVELS], sums[:, LEVELS:-1], sums[:, -1])


def _clean(rows: pa.Table, kind: str) -> Bool[np.ndarray, " images"]:
    clean: np.ndarray = column_of(rows, f"pixels_{kind}", (2, LEVELS))[:, 1].sum(-1) == 0
    return clean


def _peaks(rows: pa.Table, kind: str) -> Int[np.ndarray, " images"]:
    peaks: np.ndarray = rows[f"peak_{kind}"].to_numpy().astype(int)
    return peaks
