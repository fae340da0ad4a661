"""What trainings of several settings, seeds and shares of train say; computed from their runs alone.

scores     of each row the mean over seeds; its interval is over groups, which seeds are not. The
           spread over seeds stands beside it: an interval over groups does not hold it
order      by val; what test would choose is too good by choice
tests      of each two settings at the largest share, on the same rows, of all pairs and test
           sets corrected together (Holm); and in how many seeds the difference has that sign
fronts     of the error on a test set against each cost; see `pareto`
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from assay.metrics.compare import compare_all
from assay.metrics.comparison import Comparison
from assay.metrics.estimate import Estimate, interval
from assay.metrics.figure import Figure, Series
from assay.metrics.measures import Measure
from assay.metrics.predictions import rows_of, scores_of, sets_of
from assay.metrics.seeds import average_seeds
from assay.report.svg import NUM_STYLES
from assay.sweep.pareto import COSTS, Front, front_of
from assay.sweep.trained_run import TrainedRun

WORDS = (
    "better than",
    "worse than",
    "not significantly different from",
    "not decided (too few or too unequal groups) against",
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A setting's main score on one set."""

    mean: Estimate
    """Over seeds; the interval is over groups."""
    by_seed: dict[int, float]

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest seed."""
        return min(self.by_seed.values()), max(self.by_seed.values())


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A setting at the largest share of train; numbers without an interval are means over seeds."""

    setting: str
    val: Score
    tests: dict[str, Score]
    costs: dict[str, float]
    metrics: dict[str, dict[str, float]]
    """By test set and measure."""
    int8: dict[str, float]
    """The main score of the int8 graph by test set."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two settings on a test set."""

    comparison: Comparison
    num_agree: int
    """Seeds of both in which the difference has the sign of the mean."""
    num_seeds: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        seeds = {"num_agree": self.num_agree, "num_seeds": self.num_seeds}
        return self.comparison.to_dict() | seeds


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What all trainings say together."""

    metric: str
    share: float
    """The largest, which all but the curves are of."""
    tests: list[str]
    standings: list[Standing]
    """The best on val first."""
    pairs: list[Pair]
    curves: dict[str, dict[str, dict[float, Score]]]
    """By set (val too), setting and share of train."""
    fronts: list[Front]
    measures: dict[str, Measure]
    """Of the further metrics."""

    def relations(self, test: str) -> dict[str, dict[str, list[str]]]:
        """Say of each setting, in words, which others it is better or worse than, or not told apart from."""
        relations: dict[str, dict[str, list[str]]] = {s.setting: {} for s in self.standings}
        for comparison in (pair.comparison for pair in self.pairs):
            if comparison.set == test:
                for name, other, sign in (
                    (comparison.first_name, comparison.name, 1),
                    (comparison.name, comparison.first_name, -1),
                ):
                    words = _relation(comparison, sign)
                    relations[name].setdefault(words, []).append(other)
        return {
            name: {words: others[words] for words in WORDS if words in others}
            for name, others in relations.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as sweep.json has them."""
        return {
            "share": self.share,
            "standings": [asdict(standing) for standing in self.standings],
            "pairs": [pair.to_dict() for pair in self.pairs],
            "curves": {
                test: {
                    name: {f"{share:g}": asdict(score) for share, score in shares.items()}
                    for name, shares in settings.items()
                }
                for test, settings in self.curves.items()
            },
            "fronts": [asdict(front) for front in self.fronts],
        }


def _relation(comparison: Comparison, sign: int) -> str:
    if comparison.difference.undecided:
        return WORDS[3]
    if not comparison.side:
        return WORDS[2]
    return WORDS[0] if comparison.difference.value * sign > 0 else WORDS[1]


def summarize(runs: Sequence[TrainedRun]) -> Summary:
    """Compute what the report shows.

    Raises:
        PredictionsError: two runs were judged on other rows, or by another score.
    """
    share = max(run.share for run in runs)
    cells: dict[tuple[str, float], list[TrainedRun]] = {}
    for run in runs:
        cells.setdefault((run.setting, run.share), []).append(run)
    tables = {key: average_seeds([run.predictions for run in cell]) for key, cell in cells.items()}
    scores = {key: _scores(tables[key], cell) for key, cell in cells.items()}
    full = {name: cell for (name, size), cell in cells.items() if size == share}
    standings = [_standing(name, cell, scores[name, share]) for name, cell in full.items()]
    standings.sort(key=lambda standing: standing.val.mean.value, reverse=True)
    tests = list(standings[0].tests)
    ordered = {s.setting: tables[s.setting, share] for s in standings}
    pairs = [_pair(comparison, scores, share) for comparison in compare_all(ordered)]
    measures = {
        key: run.measures for run in runs for values in run.metrics.values() for key in values
    }
    return Summary(
        metric=scores_of(next(iter(tables.values())))[0],
        share=share,
        tests=tests,
        standings=standings,
        pairs=pairs,
        curves=_curves(scores, ["val", *tests], [s.setting for s in standings]),
        fronts=_fronts(standings, tests, [pair.comparison for pair in pairs]),
        measures={key: known.get(key) or Measure.named(key) for key, known in measures.items()},
    )


def _scores(table: pa.Table, cell: Sequence[TrainedRun]) -> dict[str, Score]:
    """Score a setting at one share on each set."""
    scores = {}
    for name in sets_of(table):
        rows = rows_of(table, name)
        _, values, weights = scores_of(rows)
        by_seed = {run.seed: _mean(run.predictions, name) for run in cell}
        mean = interval(values, rows["group"].to_numpy(), weights=weights)
        scores[name] = Score(mean=mean, by_seed=by_seed)
    return scores


def _mean(predictions: pa.Table, name: str) -> float:
    _, values, weights = scores_of(rows_of(predictions, name))
    return float(np.average(values, weights=weights))


def _standing(name: str, cell: Sequence[TrainedRun], scores: Mapping[str, Score]) -> Standing:
    tests = {key: score for key, score in scores.items() if key.startswith("test")}
    return Standing(
        setting=name,
        val=scores["val"],
        tests=tests,
        costs=_means([run.costs for run in cell]),
        metrics={test: _means([run.metrics.get(test, {}) for run in cell]) for test in tests},
        int8=_means([run.int8 for run in cell]),
    )


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average over the seeds what all of them have."""
    return {
        key: statistics.fmean(each[key] for each in values)
        for key in values[0]
        if all(key in each for each in values)
    }


def _pair(
    comparison: Comparison, scores: Mapping[tuple[str, float], Mapping[str, Score]], share: float
) -> Pair:
    first, second = (
        scores[name, share][comparison.set].by_seed
        for name in (comparison.first_name, comparison.name)
    )
    both = first.keys() & second.keys()
    sign = comparison.difference.value
    num_agree = sum((first[seed] - second[seed]) * sign > 0 for seed in both)
    return Pair(comparison=comparison, num_agree=num_agree, num_seeds=len(both))


def _curves(
    scores: Mapping[tuple[str, float], Mapping[str, Score]],
    sets: Sequence[str],
    settings: Sequence[str],
) -> dict[str, dict[str, dict[float, Score]]]:
    def curve(name: str, setting: str) -> dict[float, Score]:
        known = sorted((share, each) for (of, share), each in scores.items() if of == setting)
        return {share: each[name] for share, each in known if name in each}

    return {name: {setting: curve(name, setting) for setting in settings} for name in sets}


def _fronts(
    standings: Sequence[Standing], tests: Sequence[str], pairs: Sequence[Comparison]
) -> list[Front]:
    """Find the fronts of all costs that at least two settings have."""
    fronts = []
    for test in tests:
        among = [pair for pair in pairs if pair.set == test]
        for cost in COSTS:
            points = {s.setting: _point(s, test, cost) for s in standings if cost in s.costs}
            if len(points) > 1:
                fronts.append(front_of(test, cost, points, among))
    return fronts


def _point(standing: Standing, test: str, cost: str) -> tuple[float, float]:
    """Return cost and error; the int8 graph has an error of its own."""
    score = standing.tests[test].mean.value
    if cost == "latency_int8_ms":
        score = standing.int8.get(test, score)
    return standing.costs[cost], 1 - score


def curve_figures(summary: Summary) -> list[Figure]:
    """Draw the score over the share of train on each test set, a few settings in each drawing."""
    figures = []
    for test in summary.tests:
        curves = [*summary.curves[test].items()]
        lows = [score.mean.low for _, curve in curves for score in curve.values()]
        parts = [curves[i : i + NUM_STYLES] for i in range(0, len(curves), NUM_STYLES)]
        for number, part in enumerate(parts, 1):
            which = f", {number} of {len(parts)}" if len(parts) > 1 else ""
            figure = Figure(
                title=f"On {test.replace('_', ' ')}{which}",
                kind="line",
                series={setting: _series(curve) for setting, curve in part},
                x="% of train",
                y=summary.metric,
                x_log=True,
                y_range=[math.floor(10 * min(lows)) / 10, 1.0],
            )
            figures.append(figure)
    return figures


def _series(curve: Mapping[float, Score]) -> Series:
    estimates = [score.mean for score in curve.values()]
    return Series.from_estimates([100 * share for share in curve], estimates)
