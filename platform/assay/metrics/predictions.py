"""The predictions table: what it holds, and its readers; `checks` refuses one that cannot be judged.

One row per sample: `id`, `split`, `group` and any `domain.<name>` (strings); and either

    truth, logits   class index, and one logit per class (or `probs`, which sum to 1); the schema's
                    metadata holds the class names as a JSON list under b"classes"
    view_score      what a row weighs in the mean logits of its group, as a logarithm up to a constant; absent: all alike
    score, weight   from 0 to 1, how well the sample was done, and what it weighs in the mean (1
                    where absent); b"score" names the mean: IoU, with score = hits / union and
                    weight = union, say

Other columns are let through unread.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.errors import PredictionsError
from assay.shapes import Float


def is_classification(predictions: pa.Table) -> bool:
    """Return whether rows bear classes; else they bear scores."""
    return "score" not in predictions.column_names


def answer_column(predictions: pa.Table) -> str:
    """Return the column that answers stand in."""
    names = predictions.column_names
    return "probs" if "probs" in names and "logits" not in names else "logits"


def sets_of(predictions: pa.Table) -> list[str]:
    """Return the names of the sets that have rows, sorted."""
    return sorted(predictions["split"].unique().to_pylist())


def rows_of(predictions: pa.Table, name: str) -> pa.Table:
    """Return the rows of one set."""
    return predictions.filter(pc.equal(predictions["split"], name))


def class_names(predictions: pa.Table) -> list[str]:
    """Return the names of the classes, in the order of the logits.

    Raises:
        PredictionsError: The metadata does not name them.
    """
    metadata = predictions.schema.metadata or {}
    if b"classes" not in metadata:
        raise PredictionsError(
            "The predictions table does not name its classes; write them as a JSON list to the "
            "schema's metadata under b'classes'."
        )
    return list(json.loads(metadata[b"classes"]))


def domain_columns(predictions: pa.Table) -> list[str]:
    """Return the names of the domain columns, with their prefix."""
    return [name for name in predictions.column_names if name.startswith("domain.")]


def logits_of(predictions: pa.Table) -> Float[np.ndarray, "num classes"]:
    """Return the logits of all rows, or the logarithms of their probs (at least 1e-12)."""
    if answer_column(predictions) == "probs":
        log_probs: np.ndarray = np.log(np.maximum(lists_of(predictions, "probs"), 1e-12))
        return log_probs
    return lists_of(predictions, "logits")


def view_scores_of(predictions: pa.Table) -> Float[np.ndarray, " num"] | None:
    """Return what rows weigh in their groups, as logarithms; None where all weigh alike."""
    if "view_score" not in predictions.column_names:
        return None
    scores: np.ndarray = predictions["view_score"].to_numpy()
    return scores


def scores_of(
    predictions: pa.Table,
) -> tuple[str, Float[np.ndarray, " num"], Float[np.ndarray, " num"]]:
    """Return the main score: its name, each row's, and each row's weight; hits for classes.

    Rows weigh alike where none bears a weight, as layers without a pixel in mask and answer, each of which is right.
    """
    if is_classification(predictions):
        truth: np.ndarray = predictions["truth"].to_numpy()
        hits = (logits_of(predictions).argmax(axis=1) == truth).astype(np.float64)
        return "accuracy", hits, np.ones(len(hits))
    scores = predictions["score"].to_numpy().astype(np.float64)
    has_weights = "weight" in predictions.column_names
    weights = predictions["weight"].to_numpy() if has_weights else np.ones(len(scores))
    weights = weights if weights.any() else np.ones(len(scores))
    return predictions.schema.metadata[b"score"].decode(), scores, weights.astype(np.float64)


def lists_of(predictions: pa.Table, column: str) -> Float[np.ndarray, "num classes"]:
    """Return a column of lists of one length as a matrix."""
    flat: np.ndarray = pc.list_flatten(predictions[column]).to_numpy()
    return flat.reshape(predictions.num_rows, -1)
