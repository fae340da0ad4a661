"""Checks of a predictions table: by itself, against its run's split, and of two that are compared."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.errors import PredictionsError
from assay.metrics.predictions import (
    answer_column,
    class_names,
    domain_columns,
    is_classification,
    lists_of,
    logits_of,
    scores_of,
)
from assay.shapes import Float

_SUM_TOLERANCE = 1e-3


def check(predictions: pa.Table) -> None:
    """Make sure that a predictions table can be judged.

    Raises:
        PredictionsError: A column is missing, of another type or holds nulls; there is no row; an
            id is doubled; classes are not named; logits are not finite or not one per class; probs
            do not sum to 1; a truth is not a class; a score is outside 0 to 1, or a weight negative.
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
    if is_classification(predictions):
        _check_values(predictions)
    else:
        _check_scores(predictions)


def _check_columns(predictions: pa.Table) -> None:
    names = set(predictions.column_names)
    strings = ["id", "split", "group", *domain_columns(predictions)]
    kinds = dict.fromkeys(strings, "string")
    if is_classification(predictions):
        kinds |= {"truth": "signed integer", answer_column(predictions): "list of floats"}
    else:
        kinds |= {name: "float" for name in ("score", "weight") if name in names}
    missing = sorted(kinds.keys() - names)
    if missing:
        raise PredictionsError(
            f"The predictions table lacks {', '.join(missing)}; it needs id, split, group, and "
            f"truth and logits, or score."
        )
    types = {name: predictions.schema.field(name).type for name in kinds}
    wrong = [
        f"{name} is {type_}" for name, type_ in types.items() if not _KINDS[kinds[name]](type_)
    ]
    if wrong:
        raise PredictionsError(
            f"Columns of the predictions table have other types than allowed: {', '.join(wrong)}; "
            f"truth is int32, logits a list of float32, score a float, the rest string."
        )
    nulls = [name for name in types if predictions[name].null_count]
    if nulls:
        raise PredictionsError(
            f"The predictions table holds nulls in {', '.join(nulls)}; every row needs a value."
        )


def _is_floats(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)


_KINDS = {
    "string": pa.types.is_string,
    "signed integer": pa.types.is_signed_integer,
    "float": pa.types.is_floating,
    "list of floats": _is_floats,
}


def _check_scores(predictions: pa.Table) -> None:
    if b"score" not in (predictions.schema.metadata or {}):
        raise PredictionsError(
            "The predictions table does not name its score; write a name such as IoU to the "
            "schema's metadata under b'score'."
        )
    _, scores, weights = scores_of(predictions)
    num_bad = int((~((scores >= 0) & (scores <= 1))).sum())
    if num_bad:
        raise PredictionsError(
            f"{num_bad} of {len(scores)} rows have a score outside 0 to 1; a score is a share."
        )
    if not (np.isfinite(weights).all() and weights.min() >= 0):
        raise PredictionsError(
            f"Weights run from {weights.min():g} to {weights.max():g}; give finite ones from 0."
        )


def _check_values(predictions: pa.Table) -> None:
    num_classes = len(class_names(predictions))
    truth = predictions["truth"].to_numpy()
    if truth.min() < 0 or truth.max() >= num_classes:
        raise PredictionsError(
            f"The column truth runs from {truth.min()} to {truth.max()}, but {num_classes} classes "
            f"are named: allowed are 0 to {num_classes - 1}."
        )
    answers = answer_column(predictions)
    if not pc.all(pc.equal(pc.list_value_length(predictions[answers]), num_classes)).as_py():
        raise PredictionsError(
            f"Some rows do not have one of the {answers} for each of the {num_classes} classes; "
            f"write them in the order of the metadata b'classes'."
        )
    if answers == "probs":
        _check_probs(lists_of(predictions, "probs"))
    num_bad = int((~np.isfinite(logits_of(predictions)).all(axis=1)).sum())
    if num_bad:
        raise PredictionsError(
            f"{num_bad} of {predictions.num_rows} rows have logits that are NaN or infinite; "
            f"find the step at which the run diverged."
        )


def _check_probs(probs: Float[np.ndarray, "num classes"]) -> None:
    sums = probs.sum(axis=1)
    bad = (probs.min(axis=1) < 0) | ~(np.abs(sums - 1) <= _SUM_TOLERANCE)
    if bad.any():
        raise PredictionsError(
            f"{int(bad.sum())} of {len(probs)} rows have probs that are negative or do not sum to 1 "
            f"(the first sums to {sums[bad][0]:.4g}); give probabilities, or logits in `logits`."
        )


def refuse_strangers(predictions: pa.Table, split: pa.Table) -> None:
    """Make sure that what is judged is what the run's split holds, each set whole.

    Args:
        predictions: A table that passes `check`.
        split: The manifest with its sets: id, group, split, content.

    Raises:
        PredictionsError: A group stands on two sides of the split (train, val, the test sets), or a
            file's content in two sets; or predictions of a set lack rows, have strangers (rows of
            train, say), or other groups.
    """
    rows = split.select(["id", "group", "split", "content"]).to_pylist()
    _refuse_leaks(rows)
    drawn = {row["id"]: (row["split"], row["group"]) for row in rows}
    predicted = {
        row["id"]: (row["split"], row["group"])
        for row in predictions.select(["id", "split", "group"]).to_pylist()
    }
    strangers = sorted(name for name, pair in predicted.items() if drawn.get(name) != pair)
    if strangers:
        first = strangers[0]
        expected = drawn[first][0] if first in drawn else "no set"
        raise PredictionsError(
            f"{len(strangers)} of {len(predicted)} predicted rows are not those of their set, first "
            f"{first!r}: predicted as {predicted[first][0]}, it is of {expected} in the run's split (or of "
            f"another group); predict the sets as they were drawn."
        )
    sets = {name for name, _ in predicted.values()}
    missing = sorted(id_ for id_, pair in drawn.items() if pair[0] in sets and id_ not in predicted)
    if missing:
        raise PredictionsError(
            f"{len(missing)} rows have no prediction, first {missing[0]!r} of "
            f"{drawn[missing[0]][0]}; a set is judged whole: predict it again."
        )


def refuse_other_truths(predictions: pa.Table, split: pa.Table) -> None:
    """Refuse a truth that is not its image's label, where images bear the classes and masks do not.

    Args:
        predictions: A table that passes `check` and has no strangers.
        split: The manifest with its sets.

    Raises:
        PredictionsError: There is one.
    """
    names = split.column_names
    has_masks = any(name.startswith("mask") for name in names)
    if has_masks or "label" not in names or "truth" not in predictions.column_names:
        return
    classes = class_names(predictions)
    labels = dict(zip(*(split[name].to_pylist() for name in ("id", "label")), strict=True))
    if {*labels.values()} != {*classes}:
        return
    truths = zip(*(predictions[name].to_pylist() for name in ("id", "truth")), strict=True)
    others = sorted(
        (name, classes[truth]) for name, truth in truths if classes[truth] != labels[name]
    )
    if others:
        name, truth = others[0]
        raise PredictionsError(
            f"{len(others)} rows have another truth than the label of their image in the run's split, first {name!r}: {truth!r}, and {labels[name]!r} "
            "there; restore both files, or train again on the labels that are right."
        )


def _refuse_leaks(rows: list[dict[str, str]]) -> None:
    """Refuse a group on two sides of the split, or a file's content in two sets."""
    for key in ("group", "content"):
        sides: dict[str, str] = {}
        for row in rows:
            side = row["split"]
            # a part seen under several values may be in test_seen and test_unseen
            if key == "group" and side.startswith("test"):
                side = "test"
            if side != "dropped" and sides.setdefault(row[key], side) != side:
                raise PredictionsError(
                    f"The {key} {row[key]!r} is in {sides[row[key]]} and in {row['split']}, so no "
                    f"number on them would be true; draw the split again."
                )


def paired(a: pa.Table, b: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return two tables of the same rows, both in the order of their ids.

    Where one run joined near-copies to groups and the other did not, both have the joined ones.

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
    if is_classification(a) != is_classification(b):
        raise PredictionsError(
            "One table bears classes and the other scores; compare runs of one task."
        )
    if is_classification(a) and class_names(a) != class_names(b):
        raise PredictionsError(
            f"The two tables name different classes, {class_names(a)} and {class_names(b)}; "
            f"compare runs of one task on one manifest."
        )
    a, b = _regrouped(a.sort_by("id"), b.sort_by("id"))
    names = ["split", "group", *(["truth"] if is_classification(a) else [])]
    names += ["content"] if "content" in a.column_names and "content" in b.column_names else []
    same = [a[name].to_numpy() == b[name].to_numpy() for name in names]
    changed = int((~np.all(same, axis=0)).sum())
    if changed:
        raise PredictionsError(
            f"The two tables hold different rows: {changed} of {a.num_rows} ids have another "
            f"split, group, truth or file; compare runs of one manifest and one split."
        )
    return a, b


def _regrouped(a: pa.Table, b: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Give both tables the coarser groups, where each group of one lies within one of the other."""
    if not a["id"].equals(b["id"]):
        return a, b
    groups = a["group"].to_pylist(), b["group"].to_pylist()
    for fine, coarse in (groups, groups[::-1]):
        if len(set(zip(fine, coarse, strict=True))) == len(set(fine)):
            column = pa.array(coarse, pa.string())
            place = a.column_names.index("group"), b.column_names.index("group")
            return a.set_column(place[0], "group", column), b.set_column(place[1], "group", column)
    return a, b
