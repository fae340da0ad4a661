"""What the folds of a sweep say: does a setting hold on values that it never saw?

Numbers are computed from the predictions tables of the trials and nothing else; see `folds` for
what intervals and tests are drawn over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.metrics.compare import holm, influences
from assay.metrics.comparison import SIGNIFICANT
from assay.metrics.estimate import Estimate, interval, p_value
from assay.metrics.figure import Figure, Series
from assay.metrics.predictions import class_names, is_classification, scores_of
from assay.runs.results import read_predictions
from assay.shapes import Bool
from assay.sweep.folds import Fold


@dataclass(frozen=True)
class Rows:
    """All test rows of all finished trials, on values that their trial never saw."""

    metric: str
    classes: list[str]
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

    def at(self, chosen: Bool[np.ndarray, " n"]) -> "Rows":
        """Some of the rows."""
        columns = {k: v[chosen] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return Rows(self.metric, self.classes, **columns)

    def over(self, groups: np.ndarray) -> Estimate:
        """The mean score, its interval over these groups."""
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
        if self.p_holm >= SIGNIFICANT:
            return "not significantly different"
        return f"{self.first} is {'better' if self.estimate.value > 0 else 'worse'}"


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A setting trained on the most values."""

    setting: str
    mean: Estimate
    worst: str
    """The unseen value with the lowest score."""
    lowest: Estimate
    """Its score, over its groups; the lowest of several is lower than it would be again."""


def gather(trials: Sequence[tuple[Fold, Path]], column: str) -> Rows:
    """Read the rows of finished trials."""
    tables, parts = [], []
    for fold, folder in trials:
        table = read_predictions(folder)
        table = table.filter(pc.equal(table["split"], "test_unseen"))
        metric, scores, weights = scores_of(table)
        tables.append(table)
        num = len(table)
        parts.append({
            "setting": np.full(num, fold.setting), "size": np.full(num, fold.num_trained),
            "fold": np.full(num, f"{'/'.join(fold.trained)} {fold.seed}"),
            "value": _text(table, f"domain.{column}"), "truth": table["truth"].to_numpy(),
            "row": _text(table, "id"), "group": _text(table, "group"), "score": scores, "weight": weights,
        })  # fmt: skip
    classes = class_names(tables[0]) if is_classification(tables[0]) else []
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Rows(metric, classes, **columns)


def _text(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist())


def by_size(rows: Rows) -> dict[str, dict[int, Estimate]]:
    """The score over unseen values, of each setting and number of values trained on."""
    return {
        str(name): {
            int(size): own.over(own.value)
            for size in np.unique(rows.size)
            if len((own := rows.at((rows.setting == name) & (rows.size == size))).score)
        }
        for name in _settings(rows)
    }


def by_value(rows: Rows) -> dict[str, dict[str, Estimate]]:
    """The score on each unseen value over its groups, of each setting."""
    return {
        str(name): {
            str(value): (own := rows.at((rows.setting == name) & (rows.value == value))).over(own.group)
            for value in np.unique(rows.value[rows.setting == name])
        }
        for name in _settings(rows)
    }  # fmt: skip


def _settings(rows: Rows) -> list[str]:
    """Names of the settings, as they were first met."""
    return list(dict.fromkeys(rows.setting.tolist()))


def largest(rows: Rows) -> Rows:
    """The rows of trials that were trained on the most values."""
    return rows.at(rows.size == rows.size.max())


def standings(rows: Rows) -> list[Ranking]:
    """The settings by their worst unseen value, the best first."""
    found = []
    for name, values in by_value(rows).items():
        worst = min(values, key=lambda value: values[value].value)
        own = rows.at(rows.setting == name)
        found.append(
            Ranking(setting=name, mean=own.over(own.value), worst=worst, lowest=values[worst])
        )
    return sorted(found, key=lambda s: (-s.lowest.value, -s.mean.value))


def differences(rows: Rows) -> list[Difference]:
    """Each two settings at each size, corrected for all of them together."""
    found: list[dict[str, Any]] = []
    for size in np.unique(rows.size):
        for first, second in combinations(_settings(rows), 2):
            sides = [
                rows.at((rows.size == size) & (rows.setting == name)) for name in (first, second)
            ]
            places = [
                {key: i for i, key in enumerate(zip(side.fold, side.row, strict=True))}
                for side in sides
            ]
            common = sorted(places[0].keys() & places[1].keys())
            if not common:
                continue
            gains = [
                influences(side.score, side.weight)[[place[key] for key in common]]
                for side, place in zip(sides, places, strict=True)
            ]
            gain, value = gains[0] - gains[1], sides[0].value[[places[0][key] for key in common]]
            found.append({
                "size": int(size), "first": first, "second": second, "num_folds": len({k[0] for k in common}),
                "estimate": interval(gain, value, lowest=-1.0), "p": p_value(gain, value),
            })  # fmt: skip
    corrected = holm([one["p"] for one in found])
    return [Difference(**one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


def curve(rows: Rows, column: str) -> Figure:
    """The score over the number of values trained on."""
    series = {}
    for name, sizes in by_size(rows).items():
        found = list(sizes.values())
        series[name] = Series(
            x=[float(size) for size in sizes], y=[e.value for e in found],
            low=[e.low for e in found], high=[e.high for e in found],
        )  # fmt: skip
    return Figure(
        title=f"{rows.metric.capitalize()} on {column}s never seen", kind="line", series=series, x=f"{column}s trained on",
        y_range=[0.0, 1.0], caption=f"Bands: 95 % intervals over the {column}s tested at each number.",
    )  # fmt: skip


def matrices(rows: Rows, column: str) -> list[Figure]:
    """Of each setting the score by class and unseen value, at the most values trained on."""
    found = []
    for name in _settings(rows):
        own = rows.at(rows.setting == name)
        values = [str(value) for value in np.unique(own.value)]
        kinds: Mapping[str, np.ndarray] = {
            label: own.truth == i for i, label in enumerate(own.classes)
        } or {"all": np.ones(len(own.score), bool)}
        series = {
            label: Series(x=values, y=[_mean(own.at(chosen & (own.value == v))) for v in values])
            for label, chosen in kinds.items()
            if chosen.any()
        }
        found.append(Figure(
            title=name, kind="matrix", series=series, x=f"{column} never seen", y="class",
            caption=f"{rows.metric}; {len(own.score)} rows of {len(np.unique(own.fold))} trainings. No number: 0, or none tested.",
        ))  # fmt: skip
    return found


def _mean(rows: Rows) -> float:
    whole = float(rows.weight.sum())
    return float((rows.score * rows.weight).sum() / whole) if whole else 0.0
