"""How well masks are drawn, from counts that are summed over layers (`mask_counts`).

Conventions
    found          a component is found if at least half of its pixels are marked.
    clean layer    its mask of the kind is empty, over all classes.
    nothing        where nothing is marked there is no precision, where nothing is to be found no recall; nor a curve
                   of either.
    both empty     a layer without a pixel in mask and answer has IoU 1 as a layer, and adds nothing to
                   the sums that the micro measures are made of; a set of such layers alone has IoU 1.
    threshold      chosen on val by the masks of kind label (scores.masks.best_thresholds). One per class.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from assay.levels import LEVELS, NEVER, level_probs
from assay.metrics.calibration import estimate_gaps
from assay.metrics.estimate import Estimate, interval, share_of_sums
from assay.metrics.figure import Figure
from assay.metrics.mask_counts import (
    by_level,
    column_of,
    component_counts,
    counts_of,
    judged_kind,
    kinds_of,
)
from assay.metrics.mask_figures import calibration_figure, curve_figure, size_figure
from assay.metrics.measures import Measure
from assay.metrics.predictions import rows_of, sets_of
from assay.metrics.scores.masks import SIZE_NAMES, best_thresholds
from assay.shapes import Float

_OF_SIZE = {name: f"component_recall_{name.replace(' ', '_')}" for name in SIZE_NAMES}

MEASURES: Mapping[str, Measure] = {
    "iou": Measure("IoU", "hits over pixels in mask or answer, all layers together"),
    "pixel_precision": Measure("Pixel precision", "of marked pixels, those inside the mask"),
    "prevalence": Measure(
        "Prevalence", "of all pixels, those in a mask: the precision of marking everything"
    ),
    "pixel_recall": Measure("Pixel recall", "of pixels inside the mask, those marked"),
    "pixel_f1": Measure("Pixel F1", "harmonic mean of the two"),
    "layer_iou": Measure("Layer IoU", "mean over layers; 1 where mask and answer are empty"),
    "iou_with_label": Measure(
        "IoU with what was learnt", "against the masks that training learnt from"
    ),
    "component_recall": Measure("Defects found", "components of which at least half is marked"),
    **{
        key: Measure(f"Defects found, {name} px", "those of this area")
        for name, key in _OF_SIZE.items()
    },
    "false_alarms_per_clean_layer": Measure(
        "False alarms", "marked components on a layer without defect"
    ),
    "pixel_ece": Measure("Pixel ECE", "gap between probability and share inside; lower is better"),
}
"""How the measures of masks are shown; those of one class by their own names."""

MARKS_EVERYTHING = 0.95
"""Share of val's pixels above which a class marks everything."""


def fit_thresholds(predictions: pa.Table, num_classes: int, least_recall: float) -> list[int]:
    """Choose the threshold of each class on val (see `best_thresholds`)."""
    val = rows_of(predictions, "val")
    pixels = column_of(val, "pixels_label", (num_classes, 2, LEVELS)).sum(0)
    return best_thresholds(pixels, least_recall)


def score(predictions: pa.Table, thresholds: Sequence[int]) -> pa.Table:
    """Add score and weight, whose mean is the micro IoU, and name score and thresholds."""
    counts = counts_of(predictions, judged_kind(predictions), thresholds).sum(1)
    return name_scores(predictions, "iou", thresholds, _layer_iou(counts), counts.sum(-1))


def name_scores(
    predictions: pa.Table,
    name: str,
    thresholds: Sequence[int],
    score: Float[np.ndarray, " layers"],
    weight: Float[np.ndarray, " layers"],
) -> pa.Table:
    """Add score and weight, and name the score and the thresholds that it comes from."""
    names = [name for name in predictions.column_names if name not in ("score", "weight")]
    table = predictions.select(names).append_column("score", pa.array(score))
    table = table.append_column("weight", pa.array(weight))
    notes = {b"score": name.encode(), b"thresholds": json.dumps(list(thresholds)).encode()}
    return table.replace_schema_metadata((predictions.schema.metadata or {}) | notes)


def _layer_iou(counts: Float[np.ndarray, "layers 3"]) -> Float[np.ndarray, " layers"]:
    union = counts.sum(-1)
    return np.divide(counts[:, 0], union, out=np.ones_like(union), where=union > 0)


def thresholds_of(predictions: pa.Table) -> list[int]:
    """Return the thresholds that a scored table names."""
    return list(json.loads(predictions.schema.metadata[b"thresholds"]))


def findings(
    predictions: pa.Table, classes: Sequence[str]
) -> tuple[dict[str, dict[str, Estimate]], list[Figure]]:
    """Measure each set of a scored table beyond the micro IoU, and draw the figures of the test sets."""
    thresholds = thresholds_of(predictions)
    metrics: dict[str, dict[str, Estimate]] = {}
    figures: list[Figure] = []
    for name in sets_of(predictions):
        rows = rows_of(predictions, name)
        metrics[name] = _measures(rows, classes, thresholds)
        if name.startswith("test"):
            drawn = (
                curve_figure(rows, name, classes, thresholds),
                size_figure(rows, name, thresholds),
            )
            figures += [figure for figure in drawn if figure]
            figures.append(calibration_figure(rows, name, len(classes)))
    return metrics, figures


def warnings(predictions: pa.Table, classes: Sequence[str]) -> list[str]:
    """Say which classes val knows nothing of, where nothing or everything is marked, and which test sets have nothing to find."""
    val, thresholds = rows_of(predictions, "val"), thresholds_of(predictions)
    pixels = column_of(val, "pixels_label", (len(classes), 2, LEVELS)).sum(0)
    texts = [
        f"The masks of {name} hold no mark, so its numbers tell what is falsely marked there and nothing of what is found; "
        "draw other sets (--split.seed), or add images that bear marks."
        for name in sets_of(predictions)
        if name.startswith("test") and not _has_marks(rows_of(predictions, name), len(classes))
    ]
    for name, (outside, inside), at in zip(classes, pixels, thresholds, strict=True):
        share = inside.sum() / (inside.sum() + outside.sum())
        marked = (inside[at:].sum() + outside[at:].sum()) / (inside.sum() + outside.sum())
        if not share:
            texts.append(
                f"The masks of val hold no pixel of {name}, so its threshold is a probability of a half and nothing is known of it; "
                "draw another val (--split.seed), or add layers that show it."
            )
        elif at == NEVER:
            texts.append(
                f"{name} was not learnt: on val no threshold is better than marking everything (precision {share:.3f}, the share of its pixels), so nothing of it is marked; "
                "train longer, begin from pretrained weights (--model.weights), or look at the masks."
            )
        elif marked > MARKS_EVERYTHING:
            texts.append(
                f"{marked:.0%} of all pixels of val are marked as {name}, and {share:.1%} are: this marks everything; lower --decide.pixel-recall."
            )
    return texts


def _has_marks(rows: pa.Table, num_classes: int) -> bool:
    pixels = column_of(rows, f"pixels_{judged_kind(rows)}", (num_classes, 2, LEVELS))
    return bool(pixels[:, :, 1].any())


def _measures(
    rows: pa.Table, classes: Sequence[str], thresholds: Sequence[int]
) -> dict[str, Estimate]:
    kind, group = judged_kind(rows), rows["group"].to_numpy()
    counts = counts_of(rows, kind, thresholds)
    hits, alarms, missed = counts.sum(1).T
    marked, inside = hits + alarms, hits + missed
    estimates = {
        **({"pixel_precision": share_of_sums(hits, marked, group)} if marked.any() else {}),
        "prevalence": _prevalence(rows, kind, len(classes), group),
        **({"pixel_recall": share_of_sums(hits, inside, group)} if inside.any() else {}),
        "pixel_f1": share_of_sums(2 * hits, 2 * hits + alarms + missed, group),
        "layer_iou": interval(_layer_iou(counts.sum(1)), group),
    }
    for other in kinds_of(rows):
        if other != kind:
            estimates[f"iou_with_{other}"] = _iou(counts_of(rows, other, thresholds).sum(1), group)
    if len(classes) > 1:
        for i, name in enumerate(classes):
            if counts[:, i].any():
                estimates[f"iou_{name}"] = _iou(counts[:, i], group)
    estimates |= _component_measures(rows, group, kind, thresholds)
    return estimates | {"pixel_ece": _ece(by_level(rows, kind, len(classes)), group)}


def _prevalence(rows: pa.Table, kind: str, num_classes: int, group: np.ndarray) -> Estimate:
    """Measure the share of pixels that lie in a mask of any class."""
    pixels = column_of(rows, f"pixels_{kind}", (num_classes, 2, LEVELS)).sum(-1)
    return share_of_sums(pixels[:, :, 1].sum(1), pixels[:, 0].sum(1), group)


def _component_measures(
    rows: pa.Table, group: np.ndarray, kind: str, thresholds: Sequence[int]
) -> dict[str, Estimate]:
    num, hits, alarms = component_counts(rows, kind, thresholds)
    estimates = {}
    if num.any():
        estimates["component_recall"] = share_of_sums(hits.sum(1), num.sum(1), group)
    for i, name in enumerate(SIZE_NAMES):
        if num[:, i].any():
            estimates[_OF_SIZE[name]] = share_of_sums(hits[:, i], num[:, i], group)
    clean = num.sum(1) == 0
    if clean.any():
        estimates["false_alarms_per_clean_layer"] = interval(
            alarms[clean], group[clean], highest=float(max(alarms[clean].max(), 1))
        )
    return estimates


def _iou(counts: Float[np.ndarray, "layers 3"], group: np.ndarray) -> Estimate:
    return share_of_sums(counts[:, 0], counts.sum(1), group)


def _ece(by_level: Float[np.ndarray, "layers two_levels"], group: np.ndarray) -> Estimate:
    """Estimate the expected calibration error over the levels."""
    codes = np.unique(group, return_inverse=True)[1]
    sums = np.zeros((codes.max() + 1, by_level.shape[1]))
    np.add.at(sums, codes, by_level)
    inside, every = np.split(sums, 2, axis=1)
    return estimate_gaps(inside - every * level_probs(), every.sum(axis=1), len(group))
