"""Comparisons: is one run better than another on the same test rows, or can it not be told?

The difference of the main score has a 95 % interval over whole groups, with the rows of both runs
side by side (paired). Several comparisons are corrected together (Holm), and the verdict is what is
left of significance then; there is none of too few or too unequal groups. McNemar's test is shown
beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from assay.errors import PredictionsError
from assay.metrics.checks import paired
from assay.metrics.comparison import Comparison, McNemar
from assay.metrics.estimate import difference, interval
from assay.metrics.evaluate import by_group, is_mixed
from assay.metrics.predictions import (
    is_classification,
    logits_of,
    rows_of,
    scores_of,
    sets_of,
    view_scores_of,
)
from assay.shapes import Bool


def compare(tables: Mapping[str, pa.Table], sets: Sequence[str] | None = None) -> list[Comparison]:
    """Compare the first of several predictions tables with each other one, on each test set.

    Args:
        tables: Predictions by the names of their runs, at least two.
        sets: Sets to compare on; None: the test sets.

    Raises:
        PredictionsError: There are fewer than two tables, no set in common, or the rows of a set
            are not the same in both.
    """
    if len(tables) < 2:
        raise PredictionsError(f"{len(tables)} run was given; compare at least two.")
    first, *others = tables
    return _compare_each(tables, [(first, name) for name in others], sets)


def compare_all(tables: Mapping[str, pa.Table]) -> list[Comparison]:
    """Compare each two of several predictions tables on each test set; see `compare`.

    Raises:
        PredictionsError: two have no test set in common, or other rows in one.
    """
    return _compare_each(tables, combinations(tables, 2))


def _compare_each(
    tables: Mapping[str, pa.Table],
    pairs: Iterable[tuple[str, str]],
    sets: Sequence[str] | None = None,
) -> list[Comparison]:
    """Compare pairs of tables, corrected for all of them together."""
    differences = []
    for first_name, name in pairs:
        first, second = tables[first_name], tables[name]
        ours, theirs = sets_of(first), sets_of(second)
        common = [
            test
            for test in ours
            if test in theirs and (test.startswith("test") if sets is None else test in sets)
        ]
        if not common:
            raise PredictionsError(
                f"{first_name} and {name} have no test set in common ({', '.join(theirs)} and "
                f"{', '.join(ours)}); compare runs judged on the same sets."
            )
        for test in common:
            try:
                pair = paired(rows_of(first, test), rows_of(second, test))
                differences.append(_compare(first_name, name, test, *pair))
            except PredictionsError as error:
                raise PredictionsError(f"{first_name} and {name} on {test}: {error}") from None
    corrected = holm([fields["p"] for fields in differences])
    return [
        Comparison(**fields, p_holm=p_holm)
        for fields, p_holm in zip(differences, corrected, strict=True)
    ]


def _compare(first_name: str, name: str, test: str, a: pa.Table, b: pa.Table) -> dict[str, Any]:
    """Return the fields of a comparison of paired rows, less the p that is corrected later."""
    metric, values_a, weights_a = scores_of(a)
    other, values_b, weights_b = scores_of(b)
    if other != metric:
        raise PredictionsError(
            f"{first_name} is scored by {metric} and {name} by {other}; compare runs of one task."
        )
    group = a["group"].to_numpy()
    estimate, p = difference((values_a, weights_a), (values_b, weights_b), group)
    return {
        "set": test,
        "metric": metric,
        "first_name": first_name,
        "name": name,
        "first": interval(values_a, group, weights=weights_a),
        "second": interval(values_b, group, weights=weights_b),
        "difference": estimate,
        "p": p,
        "mcnemar": _mcnemar(a, b) if is_classification(a) else None,
    }


def _mcnemar(a: pa.Table, b: pa.Table) -> McNemar:
    unit = "images" if is_mixed(a["truth"].to_numpy(), a["group"].to_numpy()) else "groups"
    first, second = _right(a, unit), _right(b, unit)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    p = binomial_p(only_first, only_first + only_second)
    return McNemar(unit=unit, only_first=only_first, only_second=only_second, p=p)


def _right(table: pa.Table, unit: str) -> Bool[np.ndarray, " units"]:
    """Return which images, or which groups by their mean logits, are answered rightly."""
    logits, truth = logits_of(table), table["truth"].to_numpy()
    if unit == "groups":
        weights = view_scores_of(table)
        logits, _, truth = by_group(logits, truth, table["group"].to_numpy(), weights)
    right: np.ndarray = logits.argmax(axis=1) == truth
    return right


def binomial_p(hits: int, num: int) -> float:
    """Return the two-sided p of `hits` of `num` fair coins; 1 for no coin."""
    from scipy.special import bdtr  # a bundle opens without it

    return float(min(1.0, 2 * bdtr(min(hits, num - hits), num, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being read together.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
