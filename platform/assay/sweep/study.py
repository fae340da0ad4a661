"""The search for hyperparameters: an Optuna study, told by hand, that outlives every process.

The study's journal holds what was proposed and what came of it; that a trial is finished is known
from its run alone. Begun again, a study hears of what finished without it, proposes once more what
was running, and goes on. A trial that was stopped early is PRUNED and keeps its looks at val; one
that failed is FAIL, which no sampler takes for a bad score.
"""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from assay import space
from assay.errors import ConfigError
from assay.space import Space
from assay.sweep.trial import Outcome, Trial, outcome
from assay.train.task import TaskConfig

JOURNAL = "optuna.log"
"""Opened by `optuna-dashboard runs/sweeps/NAME/optuna.log`."""


STUDY = "sweep"


MAX_REPEATS = 200
"""Proposals in a row that were all made before, after which the space is taken to be used up."""


NUM_WARM = 5


Objective = Literal["score", "nll", "latency_ms", "num_params"]


DIRECTIONS: Mapping[str, Literal["maximize", "minimize"]] = {
    "score": "maximize", "nll": "minimize", "latency_ms": "minimize", "num_params": "minimize",
}  # fmt: skip


Sampling = Literal["tpe", "random", "grid", "nsga2"]


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How a study is made; what differs makes another study."""

    sampling: Sampling
    objectives: tuple[Objective, ...]
    seed: int


def open_study(folder: Path, made: StudySettings) -> optuna.Study:
    """The study of a sweep's folder, new or as it was left."""
    optuna.logging.set_verbosity(logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(
        storage=storage, study_name=STUDY, load_if_exists=True,
        directions=[DIRECTIONS[name] for name in made.objectives],
    )  # fmt: skip
    # a sampler that began again with the same seed would repeat its first proposals
    study.sampler = _sampler(made, made.seed + len(study.trials))
    return study


def _sampler(made: StudySettings, seed: int) -> optuna.samplers.BaseSampler:
    if made.sampling == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=16, seed=seed)
    if made.sampling in ("random", "grid"):
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # conditions make several spaces (group); what still runs counts as poor (constant liar)
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, seed=seed, n_startup_trials=8
        )


class Search:
    """Proposes trials and is told of them.

    Args:
        study: see `open_study`.
        made: how it was made.
        space: what is searched.
        base: the settings it is searched around.
        find: the run's folder of any settings.
        num: trials wanted in all, those of earlier launches among them.
        epochs: after how many of all trials together none begins any more; 0: no limit.
    """

    def __init__(
        self,
        study: optuna.Study,
        made: StudySettings,
        space: Space,
        base: TaskConfig,
        find: Callable[[TaskConfig], Path],
        num: int,
        epochs: int = 0,
    ) -> None:
        self.study, self.made, self.space, self.base = study, made, space, base
        self.find, self.num, self.epochs = find, num, epochs
        self.root = find(base).parent
        self.asked: dict[Path, optuna.Trial] = {}
        self.told: Callable[[Trial, Outcome], None] = lambda trial, found: None
        self._settle()
        if made.sampling == "grid" and not study.trials:
            for values in self._grid():
                study.enqueue_trial(values)

    def _grid(self) -> list[dict[str, Any]]:
        return space.grid(self.space, self.base)

    def _settle(self) -> None:
        """Hear of what ended while nobody listened, and propose again what did not."""
        for frozen in self.study.get_trials(states=(TrialState.RUNNING,)):
            found = self.outcome_of(frozen)
            if found.state == "failed" or (found.state == "finished" and not self._lacks(found)):
                self._tell(frozen.number, found)
            else:
                storage = self.study._storage
                storage.set_trial_user_attr(frozen._trial_id, "superseded", True)
                self.study.tell(frozen.number, state=TrialState.FAIL)
                self.study.enqueue_trial(frozen.params, user_attrs={"resumed": True})

    def warm(self, earlier: Sequence[optuna.Study]) -> None:
        """Propose the best settings of earlier studies first; they are measured anew."""
        if self.study.trials:
            return
        for study in earlier:
            done = [t for t in study.get_trials(states=(TrialState.COMPLETE,)) if t.values]
            sign = -1 if DIRECTIONS[self.made.objectives[0]] == "maximize" else 1
            for frozen in sorted(done, key=lambda t: sign * (t.values or [0.0])[0])[:NUM_WARM]:
                known = {name: v for name, v in frozen.params.items() if name in self.space}
                self.study.enqueue_trial(known, user_attrs={"warm": True}, skip_if_exists=True)

    def folder_of(self, frozen: FrozenTrial) -> Path | None:
        """The run of a trial; None where its settings were refused."""
        name = frozen.user_attrs.get("run")
        return None if name is None else self.root / name

    def outcome_of(self, frozen: FrozenTrial) -> Outcome:
        """What became of a trial."""
        folder = self.folder_of(frozen)
        if folder is None:
            return Outcome("failed", frozen.user_attrs.get("reason", ""))
        return outcome(folder)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All that were proposed, without repeats and what was proposed once more."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
        return [
            t for t in self.study.get_trials(deepcopy=False, states=states)
            if not t.user_attrs.get("superseded") and not t.user_attrs.get("repeat")
        ]  # fmt: skip

    def propose(self) -> Trial | None:
        """The next trial that has no result yet; None when there are as many as wanted."""
        known = {t.user_attrs.get("run") for t in self.trials}
        for _ in range(MAX_REPEATS):
            if len(self.trials) >= self.num or self._is_used_up() or self._is_spent():
                return None
            asked = self.study.ask()
            values = space.sample(self.space, self.base, asked)
            try:
                config = space.changed(self.base, values)
            except ConfigError as error:
                asked.set_user_attr("reason", str(error))
                self.study.tell(asked, state=TrialState.FAIL)
                continue
            folder = self.find(config)
            if folder.name in known:
                asked.set_user_attr("repeat", True)
                self.study.tell(asked, state=TrialState.FAIL)
                continue
            asked.set_user_attr("run", folder.name)
            trial = Trial(f"trial {asked.number}", values, config, folder)
            found = outcome(folder)
            if found.state != "finished" or self._lacks(found):
                self.asked[folder] = asked
                return trial
            self._tell(asked.number, found)
            self.told(trial, found)
            known.add(folder.name)
        return None

    def _is_used_up(self) -> bool:
        """A grid has only what was queued."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return self.made.sampling == "grid" and not waiting

    def _is_spent(self) -> bool:
        return 0 < self.epochs <= sum(self.outcome_of(t).epochs for t in self.trials)

    def _lacks(self, found: Outcome) -> bool:
        return any(found.value(name) is None for name in self.made.objectives)

    def report(self, trial: Trial, epoch: int, value: float) -> None:
        """A look at val, from which a trial that is stopped is judged."""
        if len(self.made.objectives) == 1:
            self.asked[trial.folder].report(value, epoch)

    def tell(self, trial: Trial, found: Outcome) -> None:
        """A trial has ended."""
        asked = self.asked.pop(trial.folder)
        self._tell(asked.number, found)
        self.told(trial, found)

    def _tell(self, number: int, found: Outcome) -> None:
        values = [found.value(name) for name in self.made.objectives]
        if found.state == "stopped" and len(values) == 1:
            self.study.tell(number, state=TrialState.PRUNED)
        elif found.state == "finished" and None not in values:
            self.study.tell(number, values=[v for v in values if v is not None])
        else:
            self.study.tell(number, state=TrialState.FAIL)

    def best(self) -> list[FrozenTrial]:
        """The best trial; of several objectives the Pareto front, the best by the first one first."""
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return []
        if len(self.made.objectives) == 1:
            return [self.study.best_trial]
        sign = -1 if DIRECTIONS[self.made.objectives[0]] == "maximize" else 1
        return sorted(self.study.best_trials, key=lambda t: sign * t.values[0])


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each setting in what sets the best quarter apart (PED-ANOVA); nothing of fewer than 8 trials.

    Source: Watanabe, Bansal and Hutter, PED-ANOVA, 2023.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 8 or len({t.values[0] for t in done}) < 2:
        return {}
    # with a target of its own the evaluator takes less for better
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda t: sign * t.values[0]
        )
    return {name: value for name, value in found.items() if math.isfinite(value)}
