"""What a sweep over folds says: sweep.json, report.html, and what the command prints."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assay.data.split_config import RULES
from assay.files import write_json
from assay.metrics.estimate import signed
from assay.report.page import fill_page, write_page
from assay.report.verdict import plural
from assay.sweep.folds import Fold
from assay.sweep.generalization import Summary, curve, gather, matrices, summarize
from assay.sweep.rules import ORACLE, RuleScore, candidates_of, choose_draws, compare_rules
from assay.sweep.trial import Outcome, Trial


@dataclass(frozen=True)
class FoldTrial:
    """A fold, its trial, and what became of it."""

    fold: Fold
    trial: Trial
    outcome: Outcome
    row: Mapping[str, Any]
    """Its row of trials.csv."""


class FoldReport:
    """The numbers of all folds, and how they are told.

    Args:
        task: its name.
        column: the domain whose values are tested.
        rule: what val was drawn by; see `RULES`.
        trials: all that were planned.
        finished: those of them that have numbers, at least one.
    """

    def __init__(
        self,
        task: str,
        column: str,
        rule: str,
        trials: Sequence[FoldTrial],
        finished: Sequence[FoldTrial],
    ) -> None:
        self.task, self.column, self.rule = task, column, rule
        self.trials, self.finished = trials, finished
        tested = gather([(t.fold, t.trial.folder) for t in finished], column)
        scores = [t.outcome.score for t in finished]
        candidates = candidates_of([t.fold for t in finished], scores, tested)
        # where val is of the test domain itself there is nothing that other rules could choose by
        self.rules = [] if rule == ORACLE else compare_rules(candidates, tested)
        taken = choose_draws(candidates)
        self.vals = mean_vals([finished[place] for place in taken])
        self.summary = summarize(tested.at(np.isin(tested.trial, taken)), self.vals)
        unlabelled = {t.fold.setting for t in trials if t.fold.config.split.unlabelled == "train"}
        self.transductive = sorted(unlabelled)
        """Settings that saw images of the tested domain, without labels."""

    def write(self, folder: Path) -> None:
        """Write sweep.json and report.html, and print what they say."""
        runs = [trial.trial.folder.name for trial in self.trials]
        numbers = {**self.summary.to_dict(), "rules": [asdict(each) for each in self.rules]}
        content = {"schema": 1, **self.shared(), **numbers, "trials": runs}
        write_json(folder / "sweep.json", content)
        print(_summary_text(self.summary, self.column, f"{self.oracle} {self.about}".lstrip()))
        print(_rules_text(self.rules, self.column), end="")
        print(f"report: {write_page(folder, self.page(folder.name))}")

    def shared(self) -> dict[str, Any]:
        """Return what sweep.json and the page both say."""
        return {
            "task": self.task,
            "column": self.column,
            "metric": self.summary.rows.metric,
            "about": self.about,
            "oracle": self.oracle,
        }

    def page(self, name: str) -> str:
        """Return the page of the sweep of this name."""
        summary, most = self.summary, self.summary.most
        choices = {(trial.fold.trained, trial.fold.seed) for trial in self.finished}
        return fill_page(
            "folds.html",
            **self.shared(),
            id=name,
            headline=self.headline,
            most=int(summary.rows.size.max()),
            standings=summary.standings,
            differences=summary.differences,
            by_size=summary.by_size,
            by_value=summary.by_value,
            sizes=sorted(set(summary.rows.size.tolist())),
            values=sorted(set(most.value.tolist())),
            num_folds=Counter(len(trained) for trained, _ in choices),
            vals=self.vals,
            curve=curve(summary, self.column),
            matrices=matrices(most, self.column),
            has_classes=bool(summary.rows.classes),
            unfinished=len(self.trials) - len(self.finished),
            rule=RULES[self.rule],
            rules=self.rules,
            trials=[
                {**t.row, "run": t.row["run"][-12:], "name": t.trial.name} for t in self.trials
            ],
        )

    @property
    def oracle(self) -> str:
        """Say so where val is of what is tested."""
        if self.rule != ORACLE:
            return ""
        return f"ORACLE: val is of the very {plural(self.column)} that are tested, so all numbers are upper bounds."

    @property
    def headline(self) -> str:
        """Say what the setting that val chose has on its worst value, with what was known of it."""
        best, num = self.summary.standings[0], len(self.summary.standings)
        marks = ["ORACLE: "] * (self.rule == ORACLE)
        marks += ["TRANSDUCTIVE: "] * (best.setting in self.transductive)
        chosen = " (best on val)" if num > 1 and best.val is not None else ""
        return f"{''.join(marks)}{best.setting}{chosen} has {best.lowest.value:.3f} on its worst {self.column} never seen"

    @property
    def about(self) -> str:
        """Say how many were trained, and what they were tested on."""
        rows, column = self.summary.rows, self.column
        seeds = len({trial.fold.seed for trial in self.trials})
        images, groups, values = (
            len(set(names.tolist())) for names in (rows.row, rows.group, rows.value)
        )
        text = (
            f"{len(self.finished)} trainings of {len(self.summary.standings)} settings, {seeds} seed{'s' if seeds > 1 else ''}; each is tested on all "
            f"{plural(column)} that it was not trained on: {images} images of {groups} groups and {values} {plural(column)}. n counts an image once for each "
            f"training tested on it, {len(rows.score)} in all."
        )
        if not self.transductive:
            return text
        return f"{text} TRANSDUCTIVE: {', '.join(self.transductive)} saw images of the {plural(column)} that are tested, without labels."


def mean_vals(trials: Sequence[FoldTrial]) -> dict[str, dict[int, float]]:
    """Average the score of val by setting and number of values trained on."""
    scores: dict[tuple[str, int], list[float]] = {}
    for trial in trials:
        if trial.outcome.score is not None:
            key = trial.fold.setting, trial.fold.num_trained
            scores.setdefault(key, []).append(trial.outcome.score)
    means: dict[str, dict[int, float]] = {}
    for (setting, size), values in scores.items():
        means.setdefault(setting, {})[size] = statistics.fmean(values)
    return means


def _summary_text(summary: Summary, column: str, about: str) -> str:
    lines = [
        about,
        f"{summary.rows.metric.capitalize()} with 95 % intervals over {plural(column)}.",
        "",
    ]
    for name, sizes in summary.by_size.items():
        for size, estimate in sizes.items():
            lines.append(f"  {name:14s} trained on {size:2d}: {estimate}")
    most = summary.rows.size.max()
    lines += ["", f"Worst {column}, trained on {most}; the best on val first:"]
    for ranking in summary.standings:
        val = "" if ranking.val is None else f" (val {ranking.val:.3f})"
        lines.append(f"  {ranking.setting:14s} {ranking.worst}: {ranking.lowest}{val}")
    for d in summary.differences:
        compared = f"{d.first} - {d.second}, trained on {d.size}"
        lines.append(f"  {compared}: {signed(d.estimate)}, p = {d.p_holm:.2g}: {d.verdict}")
    return "\n".join(lines)


def _rules_text(rules: Sequence[RuleScore], column: str) -> str:
    if not rules:
        return ""
    lines = [f"\nOn {plural(column)} never seen, by the rule that chooses:"]
    lines += [f"  {each.label:36s} {each.setting:14s} {each.estimate}" for each in rules]
    return "\n".join(lines) + "\n"
