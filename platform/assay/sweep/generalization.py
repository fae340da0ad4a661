"""What the folds of a sweep say: does a setting hold on values that it never saw?

Numbers are computed from the predictions tables of the trials and nothing else; see `folds` for
what intervals and tests are drawn over.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.metrics.compare import holm
from assay.metrics.comparison import SIGNIFICANT
from assay.metrics.estimate import Estimate, difference, interval
from assay.metrics.figure import Figure, Series
from assay.metrics.predictions import class_names, is_classification, scores_of
from assay.report.verdict import plural
from assay.runs.results import read_predictions
from assay.shapes import Bool
from assay.sweep.folds import Fold


@dataclass(frozen=True)
class Rows:
    """All test rows of all finished trials, on values that their trial never saw."""

    metric: str
    classes: list[str]
    trial: np.ndarray
    """Number of the trial that the row was tested by."""
    setting: np.ndarray
    size: np.ndarray
    """How many values the trial was trained on."""
    fold: np.ndarray
    """Which values, and which seed: equal for trials that are to be paired."""
    value: np.ndarray
    """The unseen value that the row is of."""
    truth: np.ndarray
    row: np.ndarray
    group: np.ndarray
    score: np.ndarray
    weight: np.ndarray

    def at(self, mask: Bool[np.ndarray, " n"]) -> "Rows":
        """Select some of the rows."""
        columns = {k: v[mask] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return Rows(self.metric, self.classes, **columns)

    def of(self, setting: str) -> "Rows":
        """Select the rows of a setting."""
        return self.at(self.setting == setting)

    def over(self, groups: np.ndarray) -> Estimate:
        """Estimate the mean score, its interval over these groups."""
        return interval(self.score, groups, weights=self.weight)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One setting less another, on the same rows of the same folds."""

    size: int
    first: str
    second: str
    estimate: Estimate
    p: float
    p_holm: float
    num_folds: int

    @property
    def verdict(self) -> str:
        """What can be said, in words."""
        if self.estimate.undecided or self.p_holm >= SIGNIFICANT:
            return self.estimate.undecided or "not significantly different"
        return f"{self.first} is {'better' if self.estimate.value > 0 else 'worse'}"


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A setting trained on the most values."""

    setting: str
    mean: Estimate
    worst: str
    """The unseen value with the lowest score."""
    val: float | None
    """The mean score of val, which ranks; None where it is not known."""
    lowest: Estimate
    """Its score, over its groups; the lowest of several is lower than it would be again."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What all rows say."""

    rows: Rows
    most: Rows
    """Those of trials that were trained on the most values."""
    standings: list[Ranking]
    differences: list[Difference]
    by_size: dict[str, dict[int, Estimate]]
    """The score over unseen values, of each setting and number of values trained on."""
    by_value: dict[str, dict[str, Estimate]]
    """The score on each unseen value, of each setting trained on the most values."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as sweep.json has them."""
        return {
            "standings": [asdict(ranking) for ranking in self.standings],
            "differences": [asdict(d) | {"verdict": d.verdict} for d in self.differences],
            "by_size": _records(self.by_size),
            "by_value": _records(self.by_value),
        }


def _records(estimates: Mapping[str, Mapping[Any, Estimate]]) -> dict[str, dict[str, Any]]:
    return {
        name: {str(key): asdict(estimate) for key, estimate in row.items()}
        for name, row in estimates.items()
    }


def summarize(rows: Rows, vals: Mapping[str, Mapping[int, float]]) -> Summary:
    """Compute what the report shows.

    Args:
        rows: Test rows of all finished trials.
        vals: Mean score of val by setting and number of values trained on, which ranks.
    """
    size = int(rows.size.max())
    most = rows.at(rows.size == size)
    return Summary(
        rows=rows,
        most=most,
        standings=standings(most, {name: sizes.get(size) for name, sizes in vals.items()}),
        differences=differences(rows),
        by_size=by_size(rows),
        by_value=by_value(most),
    )


def gather(trials: Sequence[tuple[Fold, Path]], column: str) -> Rows:
    """Read the rows of finished trials."""
    tables, parts = [], []
    for number, (fold, folder) in enumerate(trials):
        table = read_predictions(folder)
        table = table.filter(pc.equal(table["split"], "test_unseen"))
        metric, scores, weights = scores_of(table)
        tables.append(table)
        num = len(table)
        part = {
            "trial": np.full(num, number),
            "setting": np.full(num, fold.setting),
            "size": np.full(num, fold.num_trained),
            "fold": np.full(num, f"{'/'.join(fold.trained)} {fold.seed}"),
            "value": _text(table, f"domain.{column}"),
            "truth": table["truth"].to_numpy(),
            "row": _text(table, "id"),
            "group": _text(table, "group"),
            "score": scores,
            "weight": weights,
        }
        parts.append(part)
    classes = class_names(tables[0]) if is_classification(tables[0]) else []
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Rows(metric, classes, **columns)


def _text(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist())


def by_size(rows: Rows) -> dict[str, dict[int, Estimate]]:
    """Estimate the score over unseen values, of each setting and number of values trained on."""
    return _estimates(rows, "size", "value")


def by_value(rows: Rows) -> dict[str, dict[str, Estimate]]:
    """Estimate the score on each unseen value over its groups, of each setting."""
    return _estimates(rows, "value", "group")


def _estimates(rows: Rows, column: str, groups: str) -> dict[str, dict[Any, Estimate]]:
    """Estimate the score of each setting for each value of a column, over the groups of another."""
    scores: dict[str, dict[Any, Estimate]] = {}
    for name in _settings(rows):
        subset = rows.of(name)
        keys, scores[name] = getattr(subset, column), {}
        for key in np.unique(keys).tolist():
            cell = subset.at(keys == key)
            scores[name][key] = cell.over(getattr(cell, groups))
    return scores


def _settings(rows: Rows) -> list[str]:
    """Name the settings, as they were first met."""
    return list(dict.fromkeys(rows.setting.tolist()))


def standings(rows: Rows, vals: Mapping[str, float | None]) -> list[Ranking]:
    """Rank the settings by val, the best first: what test would choose is too good by choice.

    Args:
        rows: Test rows.
        vals: Mean score of val by setting; those without one come last, as they were first met.
    """
    rankings = []
    for name, values in by_value(rows).items():
        worst = min(values, key=lambda value: values[value].value)
        mean = rows.of(name).over(rows.of(name).value)
        ranking = Ranking(
            setting=name, val=vals.get(name), mean=mean, worst=worst, lowest=values[worst]
        )
        rankings.append(ranking)
    return sorted(rankings, key=lambda r: -math.inf if r.val is None else r.val, reverse=True)


def differences(rows: Rows) -> list[Difference]:
    """Compare each two settings at each size, corrected for all of them together."""
    records: list[dict[str, Any]] = []
    for size in np.unique(rows.size):
        trained = rows.at(rows.size == size)
        for first, second in combinations(_settings(rows), 2):
            record = _difference(trained.of(first), trained.of(second))
            if record:
                records.append({"size": int(size), "first": first, "second": second} | record)
    corrected = holm([record["p"] for record in records])
    return [Difference(**record, p_holm=p) for record, p in zip(records, corrected, strict=True)]


def _difference(first: Rows, second: Rows) -> dict[str, Any]:
    """Compare two settings where both tested the same rows; nothing where there are none."""
    index, other = _index(first), _index(second)
    common = sorted(index.keys() & other.keys())
    if not common:
        return {}
    rows, others = [index[key] for key in common], [other[key] for key in common]
    scores = first.score[rows], first.weight[rows]
    estimate, p = difference(
        scores, (second.score[others], second.weight[others]), first.value[rows]
    )
    return {
        "estimate": estimate,
        "p": p,
        "num_folds": len({fold for fold, _ in common}),
    }


def _index(rows: Rows) -> dict[tuple[str, str], int]:
    """Return the place of each row by its fold and name."""
    return {key: i for i, key in enumerate(zip(rows.fold, rows.row, strict=True))}


def curve(summary: Summary, column: str) -> Figure:
    """Draw the score over the number of values trained on."""
    series = {}
    for name, sizes in summary.by_size.items():
        x = [float(size) for size in sizes]
        series[name] = Series.from_estimates(x, list(sizes.values()))
    return Figure(
        title=f"{summary.rows.metric.capitalize()} on {plural(column)} never seen",
        kind="line",
        series=series,
        x=f"{plural(column)} trained on",
        y_range=[0.0, 1.0],
        caption=f"With 95 % intervals over the {plural(column)} tested at each number.",
    )


def matrices(rows: Rows, column: str) -> list[Figure]:
    """Draw of each setting the score by class and unseen value."""
    figures = []
    for name in _settings(rows):
        subset = rows.of(name)
        masks = {label: subset.truth == i for i, label in enumerate(subset.classes)}
        masks = masks or {"all": np.ones(len(subset.score), bool)}
        values = [str(value) for value in np.unique(subset.value)]
        series = {
            label: Series(x=values, y=_means(subset.at(mask), values))
            for label, mask in masks.items()
            if mask.any()
        }
        figure = Figure(
            title=name,
            kind="matrix",
            series=series,
            x=f"{column} never seen",
            y="class",
            caption=f"{rows.metric}; {len(subset.score)} rows of {len(np.unique(subset.fold))} trainings. No number: 0, or none tested.",
        )
        figures.append(figure)
    return figures


def _means(rows: Rows, values: Sequence[str]) -> list[float]:
    """Average the score on each value; 0 where none was tested."""
    means = []
    for value in values:
        cell = rows.at(rows.value == value)
        whole = float(cell.weight.sum())
        means.append(float((cell.score * cell.weight).sum() / whole) if whole else 0.0)
    return means
