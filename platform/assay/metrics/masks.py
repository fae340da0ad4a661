"""How well masks are drawn, from counts that are summed over layers: exact however layers are shared out.

Columns of a layer, each a list of numbers (C classes, L levels of `levels`, S sizes):

    pixels_<kind>      C x 2 x L   pixels outside and inside the mask of that kind, by their level
    components_<kind>  C x S       its components, by size
    found_<kind>       C x S x L   of them those found, by the threshold's level
    alarms_<kind>      C x L       marked components that touch no pixel of it, by the threshold's level

`label` is the mask that training learnt from, `truth` a planted or hand-made one where there is one,
which then is what is judged by.

Conventions
    found          a component is found if at least half of its pixels are marked.
    clean layer    its mask of the kind is empty, over all classes.
    both empty     a layer without a pixel in mask and answer has IoU 1 as a layer, and adds nothing to
                   the sums that the micro measures are made of.
    threshold      chosen on val by the masks of kind label: best F1, or the highest that keeps a stated
                   recall. One per class.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.errors import PredictionsError
from assay.levels import LEVELS, level_probs, threshold_prob
from assay.metrics.estimate import Estimate, interval, interval_of
from assay.metrics.figure import Figure, Series
from assay.metrics.measures import Measure
from assay.metrics.scores.masks import SIZE_NAMES
from assay.shapes import Float, Int

MEASURES: Mapping[str, Measure] = {
    "iou": Measure("IoU", "hits over pixels in mask or answer, all layers together"),
    "pixel_precision": Measure("Pixel precision", "of marked pixels, those inside the mask"),
    "pixel_recall": Measure("Pixel recall", "of pixels inside the mask, those marked"),
    "pixel_f1": Measure("Pixel F1", "harmonic mean of the two"),
    "layer_iou": Measure("Layer IoU", "mean over layers; 1 where mask and answer are empty"),
    "iou_with_label": Measure(
        "IoU with what was learnt", "against the masks that training learnt from"
    ),
    "component_recall": Measure("Defects found", "components of which at least half is marked"),
    "false_alarms_per_clean_layer": Measure(
        "False alarms", "marked components on a layer without defect"
    ),
    "pixel_ece": Measure("Pixel ECE", "gap between probability and share inside; lower is better"),
}
"""How the measures of masks are shown; those of one class or size by their own names."""


def judged_kind(predictions: pa.Table) -> str:
    """The kind of mask that is judged by: truth where it is known, else label."""
    return "truth" if "pixels_truth" in predictions.column_names else "label"


def kinds_of(predictions: pa.Table) -> list[str]:
    """The kinds of masks that were counted against."""
    return [kind for kind in ("label", "truth") if f"pixels_{kind}" in predictions.column_names]


def counts_of(
    predictions: pa.Table, kind: str, thresholds: Sequence[int]
) -> Float[np.ndarray, "layers classes 3"]:
    """Pixels by layer and class: marked rightly, marked wrongly, missed."""
    pixels = _column(predictions, f"pixels_{kind}", (len(thresholds), 2, LEVELS))
    reaches = np.arange(LEVELS) >= np.array(thresholds)[:, None]
    outside, inside = pixels[:, :, 0], pixels[:, :, 1]
    hits, alarms = (inside * reaches).sum(-1), (outside * reaches).sum(-1)
    return np.stack([hits, alarms, inside.sum(-1) - hits], axis=-1)


def curve_of(
    predictions: pa.Table, kind: str, num_classes: int
) -> tuple[Float[np.ndarray, "classes levels"], Float[np.ndarray, "classes levels"]]:
    """Precision and recall of each class at every threshold; precision is 1 where nothing is marked."""
    pixels = _column(predictions, f"pixels_{kind}", (num_classes, 2, LEVELS)).sum(0)
    outside, inside = np.moveaxis(pixels[..., ::-1].cumsum(-1)[..., ::-1], 1, 0)
    marked, total = outside + inside, inside[:, :1]
    precision = np.divide(inside, marked, out=np.ones_like(inside), where=marked > 0)
    recall = np.divide(inside, total, out=np.ones_like(inside), where=total > 0)
    return precision, recall


def fit_thresholds(predictions: pa.Table, num_classes: int, least_recall: float) -> list[int]:
    """The threshold of each class by val, from level 1 up; see the module's docstring.

    Raises:
        PredictionsError: the masks of val hold no pixel of a class.
    """
    val = predictions.filter(pc.equal(predictions["split"], "val"))
    pixels = _column(val, "pixels_label", (num_classes, 2, LEVELS)).sum((0, 3))
    empty = np.flatnonzero(pixels[:, 1] == 0)
    if len(empty):
        raise PredictionsError(
            f"The masks of val hold no pixel of class {empty[0] + 1} of {num_classes}, so no threshold can be chosen for it; "
            "draw another val (--split.seed), add layers with such pixels, or leave the class out."
        )
    precision, recall = curve_of(val, "label", num_classes)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    chosen = []
    for i in range(num_classes):
        kept = np.flatnonzero(recall[i, 1:] >= least_recall) + 1
        best = kept[-1] if least_recall and len(kept) else 1 + f1[i, 1:].argmax()
        chosen.append(int(best))
    return chosen


def score(predictions: pa.Table, thresholds: Sequence[int]) -> pa.Table:
    """Add score and weight, whose mean is the micro IoU, and name score and thresholds."""
    counts = counts_of(predictions, judged_kind(predictions), thresholds).sum(1)
    union = counts.sum(-1)
    iou = np.divide(counts[:, 0], union, out=np.ones_like(union), where=union > 0)
    kept = [n for n in predictions.column_names if n not in ("score", "weight")]
    table = predictions.select(kept).append_column("score", pa.array(iou))
    table = table.append_column("weight", pa.array(union))
    notes = {b"score": b"iou", b"thresholds": json.dumps(list(thresholds)).encode()}
    return table.replace_schema_metadata((predictions.schema.metadata or {}) | notes)


def thresholds_of(predictions: pa.Table) -> list[int]:
    """The thresholds that a scored table names."""
    return list(json.loads(predictions.schema.metadata[b"thresholds"]))


def findings(
    predictions: pa.Table, classes: Sequence[str]
) -> tuple[dict[str, dict[str, Estimate]], list[Figure]]:
    """Measures by set beyond the micro IoU, and figures of the test sets, of a scored table."""
    thresholds = thresholds_of(predictions)
    sets = sorted(predictions["split"].unique().to_pylist())
    of = {name: predictions.filter(pc.equal(predictions["split"], name)) for name in sets}
    metrics = {name: _measures(rows, classes, thresholds) for name, rows in of.items()}
    figures = [
        figure
        for name, rows in of.items()
        if name.startswith("test")
        for figure in (
            _curve_figure(rows, name, classes, thresholds), _size_figure(rows, name, thresholds),
            _calibration_figure(rows, name, len(classes)),
        )
        if figure is not None
    ]  # fmt: skip
    return metrics, figures


def _measures(
    rows: pa.Table, classes: Sequence[str], thresholds: Sequence[int]
) -> dict[str, Estimate]:
    kind, group = judged_kind(rows), rows["group"].to_numpy()
    counts = counts_of(rows, kind, thresholds)
    sums = counts.sum(1)
    found = {
        "pixel_precision": interval_of(sums, group, lambda s: _ratio(s[:, 0], s[:, 0] + s[:, 1])),
        "pixel_recall": interval_of(sums, group, lambda s: _ratio(s[:, 0], s[:, 0] + s[:, 2])),
        "pixel_f1": interval_of(sums, group, lambda s: _ratio(2 * s[:, 0], 2 * s[:, 0] + s[:, 1] + s[:, 2])),
        "layer_iou": interval(rows["score"].to_numpy(), group),
    }  # fmt: skip
    for other in kinds_of(rows):
        if other != kind:
            theirs = counts_of(rows, other, thresholds).sum(1)
            found[f"iou_with_{other}"] = interval_of(theirs, group, _iou)
    if len(classes) > 1:
        for i, name in enumerate(classes):
            if counts[:, i].any():
                found[f"iou_{name}"] = interval_of(counts[:, i], group, _iou)
    return found | _component_measures(rows, group, kind, thresholds) | {
        "pixel_ece": interval_of(_by_level(rows, kind, len(classes)), group, _ece)
    }  # fmt: skip


def _component_measures(
    rows: pa.Table, group: np.ndarray, kind: str, thresholds: Sequence[int]
) -> dict[str, Estimate]:
    num, found, alarms = _component_counts(rows, kind, thresholds)
    measures = {}
    for name, own in [
        ("", slice(None)),
        *((f"_{n}", slice(i, i + 1)) for i, n in enumerate(SIZE_NAMES)),
    ]:
        parts = np.stack([found[:, own].sum(1), num[:, own].sum(1)], axis=1)
        if parts[:, 1].any():
            key = f"component_recall{name.replace(' ', '_')}"
            measures[key] = interval_of(parts, group, lambda s: _ratio(s[:, 0], s[:, 1]))
    clean = num.sum(1) == 0
    if clean.any():
        most = float(max(alarms[clean].max(), 1))
        measures["false_alarms_per_clean_layer"] = interval(
            alarms[clean], group[clean], highest=most
        )
    return measures


def _component_counts(
    rows: pa.Table, kind: str, thresholds: Sequence[int]
) -> tuple[
    Float[np.ndarray, "layers sizes"],
    Float[np.ndarray, "layers sizes"],
    Float[np.ndarray, " layers"],
]:
    """Components, those found, and false alarms of each layer, summed over classes."""
    sizes, each = len(SIZE_NAMES), np.arange(len(thresholds))
    num = _column(rows, f"components_{kind}", (len(thresholds), sizes))
    found = _column(rows, f"found_{kind}", (len(thresholds), sizes, LEVELS))
    alarms = _column(rows, f"alarms_{kind}", (len(thresholds), LEVELS))
    at = np.array(thresholds)
    return num.sum(1), found[:, each, :, at].sum(0), alarms[:, each, at].sum(1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Shares of sums; 1 where there is nothing to share, as where nothing was marked or is to be found."""
    return np.divide(part, whole, out=np.ones_like(part, dtype=float), where=whole > 0)


def _iou(sums: Float[np.ndarray, "draws 3"]) -> Float[np.ndarray, " draws"]:
    return _ratio(sums[:, 0], sums.sum(1))


def _by_level(
    rows: pa.Table, kind: str, num_classes: int
) -> Float[np.ndarray, "layers two_levels"]:
    """Pixels inside, then all, by level, summed over classes."""
    pixels = _column(rows, f"pixels_{kind}", (num_classes, 2, LEVELS)).sum(1)
    return np.concatenate([pixels[:, 1], pixels.sum(1)], axis=1)


def _ece(sums: Float[np.ndarray, "draws two_levels"]) -> Float[np.ndarray, " draws"]:
    """Expected calibration error over the levels."""
    inside, every = np.split(sums, 2, axis=1)
    gaps = np.abs(inside - every * level_probs())
    error: np.ndarray = gaps.sum(1) / every.sum(1)
    return error


def _column(
    rows: pa.Table, name: str, shape: tuple[int, ...]
) -> Float[np.ndarray, "layers *shape"]:
    flat = pc.list_flatten(rows[name].combine_chunks()).to_numpy(zero_copy_only=False)
    return flat.reshape(rows.num_rows, *shape).astype(np.float64)


def _curve_figure(
    rows: pa.Table, name: str, classes: Sequence[str], thresholds: Sequence[int]
) -> Figure:
    precision, recall = curve_of(rows, judged_kind(rows), len(classes))
    series = {
        own: Series(x=recall[i, ::-1].tolist(), y=precision[i, ::-1].tolist())
        for i, own in enumerate(classes)
    }
    at = thresholds[0]
    probs = ", ".join(f"{threshold_prob(level):.2f}" for level in thresholds)
    return Figure(
        title=f"Precision over recall of pixels, {name}", kind="line", x="recall", y="precision",
        x_range=[0.0, 1.0], y_range=[0.0, 1.0], series=series,
        chosen=[float(recall[0, at]), float(precision[0, at])],
        caption=f"n = {rows.num_rows} layers. Ring: the threshold that val chose{'' if len(classes) == 1 else f' for {classes[0]}'} (probability {probs}).",
    )  # fmt: skip


def _size_figure(rows: pa.Table, name: str, thresholds: Sequence[int]) -> Figure | None:
    kind, group = judged_kind(rows), rows["group"].to_numpy()
    num, found, _ = _component_counts(rows, kind, thresholds)
    present = np.flatnonzero(num.sum(0))
    if not len(present):
        return None
    each = [
        interval_of(np.stack([found[:, i], num[:, i]], axis=1), group, lambda s: _ratio(s[:, 0], s[:, 1]))
        for i in present
    ]  # fmt: skip
    shown = ", ".join(f"{int(num[:, i].sum())} of {SIZE_NAMES[i]}" for i in present)
    return Figure(
        title=f"Defects found by size, {name}", kind="bar", x="share found", y="area (pixels)", x_range=[0.0, 1.0],
        series={"found": Series(
            x=[SIZE_NAMES[i] for i in present], y=[e.value for e in each], low=[e.low for e in each], high=[e.high for e in each],
        )},
        caption=f"Found: at least half of its pixels are marked. n = {shown}; whiskers: 95 % over groups.",
    )  # fmt: skip


def _calibration_figure(rows: pa.Table, name: str, num_classes: int) -> Figure:
    sums = _by_level(rows, judged_kind(rows), num_classes).sum(0)
    inside, every = np.split(sums, 2)
    kept: Int[np.ndarray, " levels"] = np.flatnonzero(every)
    return Figure(
        title=f"Reliability of pixels, {name}", kind="points", x="predicted probability", y="share inside the mask",
        x_range=[0.0, 1.0], y_range=[0.0, 1.0], diagonal=True,
        series={"level": Series(x=level_probs()[kept].tolist(), y=(inside[kept] / every[kept]).tolist())},
        caption=f"n = {int(every.sum())} pixels of {rows.num_rows} layers, by level of the logit.",
    )  # fmt: skip
