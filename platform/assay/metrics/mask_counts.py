"""Counts of pixels and components, as a table of masks holds them; they are summed over layers, so it does not matter how layers are shared out.

Columns of a layer, each a list of numbers (C classes, L levels of `levels`, S sizes):

    pixels_<kind>      C x 2 x L   pixels outside and inside the mask of that kind, by the level of the
                                   class that leads there (levels.leading); the others count as level 0
    levels_<kind>      C x 2 x L   the same by the level of each class, which is what is calibrated
    components_<kind>  C x S       its components, by size
    found_<kind>       C x S x L   of them those found, by the threshold's level
    alarms_<kind>      C x L       marked components that touch no pixel of it, by the threshold's level

`label` is the mask that training learnt from, `truth` a planted or hand-made one where there is one,
which then is what is judged by.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.levels import LEVELS
from assay.metrics.scores.masks import SIZE_NAMES
from assay.shapes import Float


def judged_kind(predictions: pa.Table) -> str:
    """Return the kind of mask that is judged by: truth where there is one, else label."""
    return "truth" if "pixels_truth" in predictions.column_names else "label"


def kinds_of(predictions: pa.Table) -> list[str]:
    """Return the kinds of masks that were counted against."""
    return [kind for kind in ("label", "truth") if f"pixels_{kind}" in predictions.column_names]


def counts_of(
    predictions: pa.Table, kind: str, thresholds: Sequence[int]
) -> Float[np.ndarray, "layers classes 3"]:
    """Count pixels by layer and class: marked rightly, marked wrongly, missed."""
    pixels = column_of(predictions, f"pixels_{kind}", (len(thresholds), 2, LEVELS))
    reaches = np.arange(LEVELS) >= np.array(thresholds)[:, None]
    outside, inside = pixels[:, :, 0], pixels[:, :, 1]
    hits, alarms = (inside * reaches).sum(-1), (outside * reaches).sum(-1)
    return np.stack([hits, alarms, inside.sum(-1) - hits], axis=-1)


def curve_of(
    predictions: pa.Table, kind: str, num_classes: int
) -> tuple[Float[np.ndarray, "classes levels"], Float[np.ndarray, "classes levels"]]:
    """Return precision (1 where nothing is marked) and recall (NaN of an absent class) of each class at every threshold."""
    pixels = column_of(predictions, f"pixels_{kind}", (num_classes, 2, LEVELS)).sum(0)
    outside, inside = np.moveaxis(pixels[..., ::-1].cumsum(-1)[..., ::-1], 1, 0)
    marked, total = outside + inside, inside[:, :1]
    precision = np.divide(inside, marked, out=np.ones_like(inside), where=marked > 0)
    recall = np.divide(inside, total, out=np.full_like(inside, np.nan), where=total > 0)
    return precision, recall


def component_counts(
    rows: pa.Table, kind: str, thresholds: Sequence[int]
) -> tuple[
    Float[np.ndarray, "layers sizes"],
    Float[np.ndarray, "layers sizes"],
    Float[np.ndarray, " layers"],
]:
    """Count components, those found, and false alarms of each layer, summed over classes."""
    num_sizes, each, at = len(SIZE_NAMES), np.arange(len(thresholds)), np.array(thresholds)
    num = column_of(rows, f"components_{kind}", (len(thresholds), num_sizes))
    hits = column_of(rows, f"found_{kind}", (len(thresholds), num_sizes, LEVELS))
    alarms = column_of(rows, f"alarms_{kind}", (len(thresholds), LEVELS))
    hits, alarms = (
        np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, 1)])  # none at NEVER
        for counts in (hits, alarms)
    )
    return num.sum(1), hits[:, each, :, at].sum(0), alarms[:, each, at].sum(1)


def by_level(rows: pa.Table, kind: str, num_classes: int) -> Float[np.ndarray, "layers two_levels"]:
    """Count pixels inside the masks, then all, by level, summed over classes."""
    pixels = column_of(rows, f"levels_{kind}", (num_classes, 2, LEVELS)).sum(1)
    return np.concatenate([pixels[:, 1], pixels.sum(1)], axis=1)


def column_of(
    rows: pa.Table, name: str, shape: tuple[int, ...]
) -> Float[np.ndarray, "layers *shape"]:
    """Return a column of counts as an array."""
    flat = pc.list_flatten(rows[name].combine_chunks()).to_numpy(zero_copy_only=False)
    return flat.reshape(rows.num_rows, *shape).astype(np.float64)
