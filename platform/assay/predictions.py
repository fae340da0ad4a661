"""The predictions table: what it holds, its checks and its readers.

One row per sample: `id`, `split`, `group` and any `domain.<name>` (strings), `truth` (class index)
and `logits` (one per class); the schema's metadata holds the class names as a JSON list under
b"classes". Other columns are let through unread.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.errors import PredictionsError
from assay.shapes import Float


def check(predictions: pa.Table) -> None:
    """Makes sure that a predictions table can be judged.

    Raises:
        PredictionsError: A column is missing, of another type or holds nulls; there is no row; an
            id is doubled; classes are not named; logits are not finite or not one per class; a
            truth is not a class.
    """
    _check_columns(predictions)
    if not predictions.num_rows:
        raise PredictionsError("The predictions table is empty; at least one row is needed.")
    counts = predictions["id"].value_counts()
    doubled = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(doubled):
        raise PredictionsError(
            f"{len(doubled)} ids stand more than once in the predictions table (the first is "
            f"{doubled[0]['values'].as_py()!r}); each sample is predicted once."
        )
    _check_values(predictions)


def _check_columns(predictions: pa.Table) -> None:
    strings = ["id", "split", "group", *domain_columns(predictions)]
    missing = {*strings, "truth", "logits"} - set(predictions.column_names)
    if missing:
        raise PredictionsError(
            f"The predictions table lacks {', '.join(sorted(missing))}; it needs id, split, group, "
            f"truth and logits."
        )
    types = {name: predictions.schema.field(name).type for name in [*strings, "truth", "logits"]}
    is_list = pa.types.is_list(types["logits"]) or pa.types.is_fixed_size_list(types["logits"])
    wrong = [f"{name} is {types[name]}" for name in strings if types[name] != pa.string()]
    if not pa.types.is_signed_integer(types["truth"]):
        wrong.append(f"truth is {types['truth']}")
    if not is_list or not pa.types.is_floating(types["logits"].value_type):
        wrong.append(f"logits is {types['logits']}")
    if wrong:
        raise PredictionsError(
            f"Columns of the predictions table have other types than allowed: {', '.join(wrong)}; "
            f"truth is int32, logits a list of float32, the rest string."
        )
    nulls = [name for name in types if predictions[name].null_count]
    if nulls:
        raise PredictionsError(
            f"The predictions table holds nulls in {', '.join(nulls)}; every row needs a value."
        )


def _check_values(predictions: pa.Table) -> None:
    num_classes = len(class_names(predictions))
    truth = predictions["truth"].to_numpy()
    if truth.min() < 0 or truth.max() >= num_classes:
        raise PredictionsError(
            f"The column truth runs from {truth.min()} to {truth.max()}, but {num_classes} classes "
            f"are named: allowed are 0 to {num_classes - 1}."
        )
    if not pc.all(pc.equal(pc.list_value_length(predictions["logits"]), num_classes)).as_py():
        raise PredictionsError(
            f"Some rows do not have one logit for each of the {num_classes} classes; write logits "
            f"in the order of the metadata b'classes'."
        )
    num_bad = int((~np.isfinite(logits_of(predictions)).all(axis=1)).sum())
    if num_bad:
        raise PredictionsError(
            f"{num_bad} of {predictions.num_rows} rows have logits that are NaN or infinite; "
            f"find the step at which the run diverged."
        )


def paired(a: pa.Table, b: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Returns two tables of the same rows, both in the order of their ids.

    Raises:
        PredictionsError: Either table fails `check`, or their rows or classes are not the same.
    """
    check(a)
    check(b)
    ids_a, ids_b = set(a["id"].to_pylist()), set(b["id"].to_pylist())
    num_a, num_b = len(ids_a - ids_b), len(ids_b - ids_a)
    if num_a or num_b:
        raise PredictionsError(
            f"The two tables hold different rows: {num_a} ids are only in the first and {num_b} "
            f"only in the second; compare runs judged on the same set."
        )
    if class_names(a) != class_names(b):
        raise PredictionsError(
            f"The two tables name different classes, {class_names(a)} and {class_names(b)}; "
            f"compare runs of one task on one manifest."
        )
    a, b = a.sort_by("id"), b.sort_by("id")
    same = [a[name].to_numpy() == b[name].to_numpy() for name in ("split", "group", "truth")]
    changed = int((~np.all(same, axis=0)).sum())
    if changed:
        raise PredictionsError(
            f"The two tables hold different rows: {changed} of {a.num_rows} ids have another "
            f"split, group or truth; compare runs of one manifest and one split."
        )
    return a, b


def class_names(predictions: pa.Table) -> list[str]:
    """Returns the names of the classes, in the order of the logits.

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
    """Returns the names of the domain columns, with their prefix."""
    return [name for name in predictions.column_names if name.startswith("domain.")]


def logits_of(predictions: pa.Table) -> Float[np.ndarray, "num classes"]:
    """Returns the logits of all rows; every row must have equally many."""
    flat: np.ndarray = pc.list_flatten(predictions["logits"]).to_numpy()
    return flat.reshape(predictions.num_rows, -1)
