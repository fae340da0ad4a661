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
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from assay import space
from assay.errors import ConfigError
from assay.files import reading
from assay.space import Space
from assay.sweep.trial import Outcome, Trial, describe_values, print_outcome, read_outcome
from assay.train.task_config import TaskConfig

JOURNAL = "optuna.log"
"""Opened by `optuna-dashboard runs/sweeps/NAME/optuna.log`."""


STUDY = "sweep"


MAX_REPEATS = 200
"""Proposals in a row that were all made before, after which the space is taken to be used up."""


NUM_WARM = 5


Objective = Literal["score", "nll", "latency_ms", "num_params"]


DIRECTIONS: Mapping[str, Literal["maximize", "minimize"]] = {
    "score": "maximize",
    "nll": "minimize",
    "latency_ms": "minimize",
    "num_params": "minimize",
}


Sampling = Literal["tpe", "random", "grid", "nsga2"]


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How a study is made; what differs makes another study."""

    sampling: Sampling
    objectives: tuple[Objective, ...]
    seed: int


def open_study(folder: Path, settings: StudySettings) -> optuna.Study:
    """Open the study of a sweep's folder, new or as it was last.

    Raises:
        RunError: its journal is damaged.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    with _opening(folder):
        study = optuna.create_study(
            storage=_storage(folder),
            study_name=STUDY,
            load_if_exists=True,
            directions=[DIRECTIONS[name] for name in settings.objectives],
        )
        # a sampler that began again with the same seed would repeat its first proposals
        study.sampler = _sampler(settings, settings.seed + len(study.trials))
    return study


def _opening(folder: Path) -> AbstractContextManager[None]:
    remedy = "delete it to begin the study anew, which takes finished trials as they are"
    return reading(folder / JOURNAL, remedy=remedy)


def load_study(folder: Path) -> optuna.Study:
    """Open the study of an earlier sweep to read it.

    Raises:
        ConfigError: the folder has none.
        RunError: its journal is damaged.
    """
    if not (folder / JOURNAL).exists():
        raise ConfigError(
            f"--warm-start {folder} holds no {JOURNAL}; name the folder of a sweep, below runs/sweeps."
        )
    with _opening(folder):
        return optuna.load_study(study_name=None, storage=_storage(folder))


def _storage(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def _sampler(settings: StudySettings, seed: int) -> optuna.samplers.BaseSampler:
    if settings.sampling == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=16, seed=seed)
    if settings.sampling in ("random", "grid"):
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # conditions make several spaces (group); what still runs counts as poor (constant liar)
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, seed=seed, n_startup_trials=8
        )


class Search:
    """Proposes trials and hears what became of them.

    Args:
        study: see `open_study`.
        settings: what it was opened with.
        space: what is searched.
        base: the settings it is searched around.
        find: the run's folder of any settings.
        num: trials wanted in all, those of earlier launches among them.
        epochs: after how many of all trials together none begins any more; 0: no limit.
    """

    def __init__(
        self,
        study: optuna.Study,
        settings: StudySettings,
        space: Space,
        base: TaskConfig,
        find: Callable[[TaskConfig], Path],
        num: int,
        epochs: int = 0,
    ) -> None:
        self.study, self.settings, self.space, self.base = study, settings, space, base
        self.find, self.num, self.epochs = find, num, epochs
        self.root = find(base).parent
        self.proposals: dict[Path, optuna.Trial] = {}
        self._catch_up()
        if settings.sampling == "grid" and not study.trials:
            for values in self._grid():
                study.enqueue_trial(values)

    def _grid(self) -> list[dict[str, Any]]:
        """List the points of a grid as they are suggested: before they are rounded."""
        points = space.grid(self.space, self.base)
        rounds = {n: d for n, d in self.space.items() if isinstance(d, space.Rounded)}
        return [
            {n: rounds[n].before(float(v)) if n in rounds else v for n, v in point.items()}
            for point in points
        ]

    def _catch_up(self) -> None:
        """Hear of what ended while nobody listened, and propose again what did not."""
        for frozen in self.study.get_trials(states=(TrialState.RUNNING,)):
            outcome = self.outcome_of(frozen)
            if outcome.state == "failed" or self._is_complete(outcome):
                self._record(frozen.number, outcome)
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
            for frozen in sorted(done, key=self._rank)[:NUM_WARM]:
                params = {name: v for name, v in frozen.params.items() if name in self.space}
                self.study.enqueue_trial(params, user_attrs={"warm": True}, skip_if_exists=True)

    def _rank(self, frozen: FrozenTrial) -> float:
        """Sort by the first objective, the best first."""
        sign = -1 if DIRECTIONS[self.settings.objectives[0]] == "maximize" else 1
        return sign * frozen.values[0]

    def folder_of(self, frozen: FrozenTrial) -> Path | None:
        """Return the run of a trial; None where its settings were refused."""
        name = frozen.user_attrs.get("run")
        return None if name is None else self.root / name

    def outcome_of(self, frozen: FrozenTrial) -> Outcome:
        """Read what became of a trial."""
        folder = self.folder_of(frozen)
        if folder is None:
            return Outcome("failed", frozen.user_attrs.get("reason", ""))
        return read_outcome(folder)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All that were proposed, without repeats and what was proposed once more."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
        trials = self.study.get_trials(deepcopy=False, states=states)
        return [t for t in trials if not t.user_attrs.keys() & {"superseded", "repeat"}]

    def propose(self) -> Trial | None:
        """Return the next trial that has no result yet; None when there are as many as wanted."""
        runs = {frozen.user_attrs.get("run") for frozen in self.trials}
        for _ in range(MAX_REPEATS):
            if len(self.trials) >= self.num or self._is_used_up() or self._is_spent():
                return None
            proposal = self.study.ask()
            values = space.sample(self.space, self.base, proposal)
            try:
                config = space.change(self.base, values)
            except ConfigError as error:
                self._reject(proposal, "reason", str(error))
                continue
            folder = self.find(config)
            if folder.name in runs:
                self._reject(proposal, "repeat", True)
                continue
            proposal.set_user_attr("run", folder.name)
            self.proposals[folder] = proposal
            trial = Trial(f"trial {proposal.number}", values, config, folder)
            outcome = read_outcome(folder)
            if not self._is_complete(outcome):
                return trial
            self.tell(trial, outcome)
            runs.add(folder.name)
        return None

    def _reject(self, proposal: optuna.Trial, mark: str, value: str | bool) -> None:
        proposal.set_user_attr(mark, value)
        self.study.tell(proposal, state=TrialState.FAIL)

    def _is_used_up(self) -> bool:
        """Say whether a grid, which has only what was queued, has no more."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return self.settings.sampling == "grid" and not waiting

    def _is_spent(self) -> bool:
        return 0 < self.epochs <= sum(self.outcome_of(frozen).epochs for frozen in self.trials)

    def _is_complete(self, outcome: Outcome) -> bool:
        return outcome.state == "finished" and None not in self._values(outcome)

    def _values(self, outcome: Outcome) -> list[float | None]:
        return [outcome.value(name) for name in self.settings.objectives]

    def report(self, trial: Trial, epoch: int, value: float) -> None:
        """Note a look at val, from which a trial that is stopped is judged."""
        if len(self.settings.objectives) == 1:
            self.proposals[trial.folder].report(value, epoch)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Note that a trial has ended, and say so on the terminal."""
        self._record(self.proposals.pop(trial.folder).number, outcome)
        print_outcome(len(self.trials), self.num, describe_values(trial.values), outcome)

    def _record(self, number: int, outcome: Outcome) -> None:
        values = self._values(outcome)
        if outcome.state == "stopped" and len(values) == 1:
            self.study.tell(number, state=TrialState.PRUNED)
        elif self._is_complete(outcome):
            self.study.tell(number, values=[value for value in values if value is not None])
        else:
            self.study.tell(number, state=TrialState.FAIL)

    def best(self) -> list[FrozenTrial]:
        """Return the best trial; of several objectives the Pareto front, the best by the first one first."""
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return []
        if len(self.settings.objectives) == 1:
            return [self.study.best_trial]
        return sorted(self.study.best_trials, key=self._rank)


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the share of each setting in what sets the best quarter apart (PED-ANOVA); nothing of fewer than 8 trials.

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
        shares = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda t: sign * t.values[0]
        )
    return {name: share for name, share in shares.items() if math.isfinite(share)}
