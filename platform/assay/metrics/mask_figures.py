"""Figures of how well masks are drawn on a test set."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from assay.levels import NEVER, level_probs, threshold_prob
from assay.metrics.estimate import share_of_sums
from assay.metrics.figure import Figure, Series
from assay.metrics.mask_counts import by_level, component_counts, curve_of, judged_kind
from assay.metrics.scores.masks import SIZE_NAMES
from assay.shapes import Int


def curve_figure(
    rows: pa.Table, name: str, classes: Sequence[str], thresholds: Sequence[int]
) -> Figure | None:
    """Draw the curve of each class that is there to be found."""
    precision, recall = curve_of(rows, judged_kind(rows), len(classes))
    series = {
        class_name: Series(x=recall[i, ::-1].tolist(), y=precision[i, ::-1].tolist())
        for i, class_name in enumerate(classes)
        if np.isfinite(recall[i]).all()
    }
    if not series:
        return None
    at = thresholds[0]
    is_ringed = at < NEVER and classes[0] in series
    ring = [float(recall[0, at]), float(precision[0, at])] if is_ringed else None
    probs = ", ".join(
        f"{class_name} {threshold_prob(level):.2f}"
        if level < NEVER
        else f"{class_name} none, so that nothing is marked"
        for class_name, level in zip(classes, thresholds, strict=True)
    )
    ringed = f" Ring: that of {classes[0]}." if is_ringed else ""
    return Figure(
        title=f"Precision over recall of pixels, {name}",
        kind="line",
        x="recall",
        y="precision",
        x_range=[0.0, 1.0],
        y_range=[0.0, 1.0],
        series=series,
        chosen=ring,
        caption=f"n = {rows.num_rows} layers. Threshold that val chose, as a probability: {probs}.{ringed}",
    )


def size_figure(rows: pa.Table, name: str, thresholds: Sequence[int]) -> Figure | None:
    """Draw the share of components found, by their size; None where there is none to find."""
    num, hits, _ = component_counts(rows, judged_kind(rows), thresholds)
    present = np.flatnonzero(num.sum(0))
    if not len(present):
        return None
    group = rows["group"].to_numpy()
    estimates = [share_of_sums(hits[:, i], num[:, i], group) for i in present]
    sizes = ", ".join(f"{int(num[:, i].sum())} of {SIZE_NAMES[i]}" for i in present)
    return Figure(
        title=f"Defects found by size, {name}",
        kind="bar",
        x="share found",
        y="area (pixels)",
        x_range=[0.0, 1.0],
        series={"found": Series.from_estimates([SIZE_NAMES[i] for i in present], estimates)},
        caption=f"Found: at least half of its pixels are marked. n = {sizes}; whiskers: 95 % over groups.",
    )


def calibration_figure(rows: pa.Table, name: str, num_classes: int) -> Figure:
    """Draw the share of pixels inside the mask over the probability of their level."""
    sums = by_level(rows, judged_kind(rows), num_classes).sum(0)
    inside, every = np.split(sums, 2)
    present: Int[np.ndarray, " levels"] = np.flatnonzero(every)
    shares = inside[present] / every[present]
    return Figure(
        title=f"Reliability of pixels, {name}",
        kind="points",
        x="predicted probability",
        y="share inside the mask",
        x_range=[0.0, 1.0],
        y_range=[0.0, 1.0],
        diagonal=True,
        series={"level": Series(x=level_probs()[present].tolist(), y=shares.tolist())},
        caption=f"n = {int(every.sum()):,} pixels of {rows.num_rows} layers, by level of the logit.",
    )
