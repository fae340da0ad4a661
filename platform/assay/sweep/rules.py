"""Which of the trained models would be taken: three rules side by side, from one sweep over folds.

    training-domain        the best on val, which is of the values trained on
    leave-one-domain-out   the settings that are best on other values held out, by the trainings that hold out
                           one value more: the mean over all values in turn
    oracle                 the best on the very rows that are tested: an upper bound, and marked wherever it shows

Gulrajani and Lopez-Paz 2021, section 3. A rule chooses for each fold and seed among the draws of one
setting, and once more among all settings; what it chose is judged on the fold's unseen values.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from assay.data.split_config import RULES
from assay.metrics.estimate import Estimate
from assay.sweep.folds import Fold
from assay.sweep.generalization import Rows

ANY = "any of them"
"""Name of the choice among all settings."""

ORACLE = "oracle"


@dataclass(frozen=True)
class Candidate:
    """A finished training, and the scores that a rule may look at."""

    fold: Fold
    val: float | None
    scores: Mapping[str, float]
    """On each value that it never saw."""


@dataclass(frozen=True, kw_only=True)
class RuleScore:
    """What a rule would have taken of a setting, and how that does on values never seen."""

    rule: str
    setting: str
    estimate: Estimate
    """Over unseen values."""
    num_chosen: int
    """Trainings that were chosen: one for each fold and seed."""

    @property
    def label(self) -> str:
        """How the rule is shown."""
        return "ORACLE, chosen by test" if self.rule == ORACLE else RULES[self.rule]


def candidates_of(
    folds: Sequence[Fold], vals: Sequence[float | None], rows: Rows
) -> list[Candidate]:
    """Give each training its scores; `rows.trial` counts the folds."""
    candidates = []
    for number, (fold, val) in enumerate(zip(folds, vals, strict=True)):
        trial = rows.at(rows.trial == number)
        scores = {}
        for value in np.unique(trial.value).tolist():
            cell = trial.at(trial.value == value)
            weights = cell.weight if cell.weight.any() else None
            scores[value] = float(np.average(cell.score, weights=weights))
        candidates.append(Candidate(fold, val, scores))
    return candidates


def rule_scores(candidates: Sequence[Candidate], rule: str) -> list[float | None]:
    """Return what a rule ranks each training by; None where it cannot be told."""
    if rule == "training-domain":
        return [c.val for c in candidates]
    if rule == ORACLE:
        return [float(np.mean(list(c.scores.values()))) for c in candidates]
    nested = {
        (c.fold.setting, c.fold.draw, c.fold.seed, frozenset(c.fold.trained)): c.scores
        for c in candidates
    }

    def left_out(c: Candidate) -> float | None:
        key, trained = (c.fold.setting, c.fold.draw, c.fold.seed), frozenset(c.fold.trained)
        inner = [nested.get((*key, trained - {value}), {}).get(value) for value in c.fold.trained]
        known = [score for score in inner if score is not None]
        return float(np.mean(known)) if len(known) == len(inner) else None

    return [left_out(c) for c in candidates]


def choose(scores: Sequence[float | None], keys: Sequence[Hashable]) -> list[int]:
    """Return for each key the place of the highest score, the first of equals; none where no score is known."""
    best: dict[Hashable, int] = {}
    for place, (score, key) in enumerate(zip(scores, keys, strict=True)):
        if score is None:
            continue
        other = scores[best[key]] if key in best else None
        if other is None or score > other:
            best[key] = place
    return sorted(best.values())


def choose_draws(candidates: Sequence[Candidate]) -> list[int]:
    """Choose by val among the draws of each setting, for each fold and seed; where val is not known, the first."""
    scores = [-1.0 if c.val is None else c.val for c in candidates]
    return choose(scores, [(c.fold.setting, c.fold.trained, c.fold.seed) for c in candidates])


def compare_rules(candidates: Sequence[Candidate], rows: Rows) -> list[RuleScore]:
    """Judge what each rule would have taken, of the folds that are trained on the most values.

    A rule that cannot be told for a setting is left out: leave-one-domain-out needs the trainings that
    hold out one value more (--leave-out 1 2).
    """
    most = max(c.fold.num_trained for c in candidates)
    names = list(dict.fromkeys(c.fold.setting for c in candidates))
    judged = []
    for rule in RULES:
        scores = [
            score if c.fold.num_trained == most else None
            for c, score in zip(candidates, rule_scores(candidates, rule), strict=True)
        ]
        for name in (*names, *([ANY] if len(names) > 1 else [])):
            among = [
                score if name in (c.fold.setting, ANY) else None
                for c, score in zip(candidates, scores, strict=True)
            ]
            chosen = choose(among, [(c.fold.trained, c.fold.seed) for c in candidates])
            if chosen:
                cell = rows.at(np.isin(rows.trial, chosen))
                estimate = cell.over(cell.value)
                judged.append(
                    RuleScore(rule=rule, setting=name, estimate=estimate, num_chosen=len(chosen))
                )
    return judged
