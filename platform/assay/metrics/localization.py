"""Does the evidence lie where the defect is, and does the answer hang on it? Maps against masks, and curves.

    pointing    the map's largest value lies in the mask (Zhang et al. 2016, without their margin of
                15 pixels); of several places with it, the share that does
    energy      share of the map that lies in the mask (Wang et al. 2020)
    IoU, IoP    of the mask with the part of the map above a share of its largest value: intersection
                over union, and over that part
    chance      what a uniform map has in all of these: the mask's share of the frame
    deletion    mean over shares of pixels of the answer's probability, the most evident pixels gone
                first (Petsiuk et al. 2018); lower is better
    insertion   the same with the most evident pixels shown first; higher is better

Against masks a map counts by its positive part, and as uniform where it has none; rows without a mask
are left out there. Area under a curve, by trapezoids, is that mean.
"""

import numpy as np
import pyarrow as pa

from assay.metrics.estimate import Estimate, interval
from assay.metrics.figure import Figure, Series
from assay.metrics.measures import Measure
from assay.metrics.predictions import rows_of, sets_of
from assay.shapes import Bool, Float

THRESHOLDS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
"""Shares of a map's largest value above which it is compared with a mask."""
MIDDLE = THRESHOLDS.index(0.5)
"""The one whose IoU and IoP stand in the table."""
CURVES = ("deletion", "insertion")

MEASURES = {
    "evidence_pointing": Measure("Pointing", "images whose strongest evidence lies in the mask"),
    "evidence_pointing_centre": Measure("Pointing of the centre", "the same of the frame's centre"),
    "evidence_energy": Measure("Evidence in mask", "share of the evidence that lies in the mask"),
    "evidence_iou": Measure("Evidence IoU", "of the mask and evidence above half of its maximum"),
    "evidence_iop": Measure("Evidence IoP", "evidence above half of its maximum, in the mask"),
    "evidence_chance": Measure("Chance of evidence", "all of these, of a map that says nothing"),
    "deletion": Measure("Deletion", "mean probability, most evident pixels gone first; lower is better"),
    "deletion_random": Measure("Deletion at random", "the same in random order"),
    "deletion_gain": Measure("Deletion gain", "by which random order keeps more"),
    "insertion": Measure("Insertion", "mean probability, most evident pixels shown first"),
    "insertion_random": Measure("Insertion at random", "the same in random order"),
    "insertion_gain": Measure("Insertion gain", "by which random order shows less"),
}  # fmt: skip


def relative(evidence: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Return the positive part of a map, over its largest value."""
    positive = np.maximum(evidence, 0.0)
    largest = positive.max()
    return positive / largest if largest > 0 else np.ones_like(positive)


def columns(
    evidence: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
) -> dict[str, np.ndarray]:
    """Compare a map with a mask of the same frame: the columns of one row; of no mask all are 0."""
    height, width = mask.shape
    share = relative(evidence)
    parts = share >= np.reshape(THRESHOLDS, (-1, 1, 1))
    both = (parts & mask).sum((1, 2))
    # of a side of even length the centre is a corner of pixels
    centre = mask[(height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1]
    values = {
        "evidence_pointing": mask[share == 1].mean(),
        "evidence_pointing_centre": centre.mean(),
        "evidence_energy": share[mask].sum() / share.sum(),
        "evidence_iou": both / (parts | mask).sum((1, 2)),
        "evidence_iop": both / parts.sum((1, 2)),
        "evidence_chance": mask.mean(),
    }
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def removals(evidence: Float[np.ndarray, "h w"], num_steps: int) -> Bool[np.ndarray, "points h w"]:
    """Mark the most evident pixels, from none of them to all in equal steps."""
    order = np.argsort(-evidence, axis=None, kind="stable")
    rank = np.empty(evidence.size, np.int64)
    rank[order] = np.arange(evidence.size)
    counts = np.rint(np.linspace(0, evidence.size, num_steps + 1)).reshape(-1, 1, 1)
    marked: np.ndarray = rank.reshape(evidence.shape) < counts
    return marked


def measure(rows: pa.Table) -> dict[str, Estimate]:
    """Estimate what the columns of one set tell; nothing of those that are absent."""
    return _measure_masks(rows) | _measure_curves(rows)


def _measure_masks(rows: pa.Table) -> dict[str, Estimate]:
    estimates = {}
    marked, group = _marked(rows)
    for name in MEASURES if len(group) else ():
        if name.startswith("evidence"):
            values = _array(marked, name)
            estimates[name] = interval(values[:, MIDDLE] if values.ndim > 1 else values, group)
    return estimates


def _measure_curves(rows: pa.Table) -> dict[str, Estimate]:
    estimates: dict[str, Estimate] = {}
    group = np.array(rows["group"].to_pylist())
    for name in CURVES if "deletion" in rows.column_names else ():
        areas = {key: _areas(_array(rows, key)) for key in (name, f"{name}_random")}
        estimates |= {key: interval(values, group) for key, values in areas.items()}
        gain = areas[name] - areas[f"{name}_random"]
        gain = -gain if name == "deletion" else gain
        estimates[f"{name}_gain"] = interval(gain, group, lowest=-1.0)
    return estimates


def figures(predictions: pa.Table) -> list[Figure]:
    """Draw IoU and IoP by threshold and the curves of each test set, or of val where there is none."""
    names = sets_of(predictions)
    chosen = [name for name in names if name.startswith("test")] or names
    drawn: list[Figure] = []
    for name in chosen:
        rows = rows_of(predictions, name)
        drawn += _overlap_figure(rows, name) + _curve_figures(rows, name)
    return drawn


def _overlap_figure(rows: pa.Table, name: str) -> list[Figure]:
    marked, group = _marked(rows)
    if not len(group):
        return []
    chance = interval(_array(marked, "evidence_chance"), group)
    x = list(THRESHOLDS)
    lines = {
        "IoU": _line(x, _array(marked, "evidence_iou"), group),
        "IoP": _line(x, _array(marked, "evidence_iop"), group),
        "chance": Series.from_estimates(x, [chance] * len(x)),
    }
    caption = f"Means over {len(group)} images with a mask, 95 % intervals over groups; set {name}."
    figure = Figure(
        title="Evidence against masks",
        kind="line",
        series=lines,
        caption=caption,
        x="threshold (share of the map's maximum)",
        y="IoU, IoP",
        y_range=[0.0, 1.0],
    )
    return [figure]


def _curve_figures(rows: pa.Table, name: str) -> list[Figure]:
    group = np.array(rows["group"].to_pylist())
    drawn = []
    for curve in CURVES if "deletion" in rows.column_names else ():
        arrays = {"by evidence": _array(rows, curve), "at random": _array(rows, f"{curve}_random")}
        shares = np.linspace(0, 1, arrays["by evidence"].shape[1]).tolist()
        what = "removed" if curve == "deletion" else "shown"
        drawn.append(
            Figure(
                title=f"{curve.capitalize()} of evidence",
                kind="line",
                series={key: _line(shares, array, group) for key, array in arrays.items()},
                caption=f"Means over {len(group)} images, 95 % intervals over groups; set {name}.",
                x=f"share of pixels {what}",
                y="probability of the answer",
                y_range=[0.0, 1.0],
            )
        )
    return drawn


def _line(x: list[float], values: Float[np.ndarray, "num points"], group: np.ndarray) -> Series:
    return Series.from_estimates(x, [interval(column, group) for column in values.T])


def _marked(rows: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Return the rows with a mask, and their groups."""
    if "evidence_chance" in rows.column_names:
        rows = rows.filter(pa.array(rows["evidence_chance"].to_numpy() > 0))
    else:
        rows = rows.slice(0, 0)
    return rows, np.array(rows["group"].to_pylist())


def _areas(curves: Float[np.ndarray, "num points"]) -> Float[np.ndarray, " num"]:
    """Return the area under each curve over shares from 0 to 1 (trapezoids)."""
    areas: np.ndarray = ((curves[:, 1:] + curves[:, :-1]) / 2).mean(axis=1)
    return areas


def _array(rows: pa.Table, name: str) -> np.ndarray:
    """Return a column of numbers, or of lists of them, in double precision within 0 and 1."""
    return np.array(rows[name].to_pylist(), np.float64).clip(0, 1)
