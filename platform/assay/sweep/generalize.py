"""The sweep over folds: what `sweeps/design_generalization.py` does.

    runs/sweeps/fingerprint-design-3f2a.../
        report.html          see `fold_report`
        sweep.json           the same numbers
        trials.csv, trials.parquet

Each training is a run of its own below runs/, recognised by what it computes.
"""

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import optuna
from annotated_types import Interval

from assay.config import fingerprint
from assay.data.manifest import Manifest
from assay.data.split_config import SplitConfig
from assay.errors import ConfigError
from assay.experiment.earlier import find
from assay.experiment.options import say_doubts
from assay.experiment.places import absolute, storage_of
from assay.experiment.resources import Resources
from assay.runs.remote import writing
from assay.space import change, sample
from assay.sweep.fixed import is_finished, manifest_of, print_missing, run_missing, settings_of
from assay.sweep.fold_report import FoldReport, FoldTrial
from assay.sweep.folds import Fold, plan
from assay.sweep.launch import SweepLaunch, given_of, run_command
from assay.sweep.space_text import parse_all
from assay.sweep.trial import Trial, read_outcome, refuse_all_failed, write_trials
from assay.train.source import TaskSource, load_task
from assay.train.task import Task
from assay.train.task_config import TaskConfig

Count = Annotated[int, Interval(ge=1, le=10_000)]
"""Of values of a domain."""


@dataclass(frozen=True, kw_only=True)
class FoldLaunch(SweepLaunch):
    """Which folds, and how many at once."""

    fold_column: str = "design"
    """Domain whose values are trained on or tested: design, printer, exposure, build."""
    train_on: tuple[Count, ...] = ()
    """Numbers of values to train on; none: all but one."""
    leave_out: tuple[Count, ...] = ()
    """Numbers of values to hold out, in every choice there is, in the place of --train-on and --choices; 1 2 also tells the rule leave-one-domain-out."""
    choices: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """Choices of values drawn for each number and seed, evenly over all seeds; 0: all there are."""
    seeds: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """Seeds of training, each with choices of its own."""
    settings: tuple[str, ...] = ()
    """What to compare: SETTING=A|B, several are combined; none: the task and its baselines."""
    draws: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """Trainings of each setting in each fold: as it stands, and with hyperparameters drawn from the task's space; rules choose among them."""


def main(defaults: FoldLaunch, arguments: Sequence[str] | None = None) -> None:
    """Run the command; see `run_command`."""
    given = given_of(("train-on", "choices"), arguments)
    run_command(partial(sweep, given=given), defaults, arguments)


def sweep(
    source: TaskSource,
    config: TaskConfig,
    resources: Resources,
    launch: FoldLaunch,
    given: Sequence[str] = (),
) -> int:
    """Run what is missing, and write and print what all of it says; returns how many failed.

    Args:
        source: the task's file.
        config: the settings that folds are made of.
        resources: of each training.
        launch: which folds.
        given: options of the command line that --leave-out takes the place of.
    """
    storage, column = storage_of(resources), launch.fold_column
    for name in given if launch.leave_out else ():
        print(
            f"--{name} has no effect: --leave-out holds out every choice there is.", file=sys.stderr
        )
    config = _with_column(absolute(config), column)
    task = load_task(source)
    _say_overruled(config.split, task.presets()[launch.preset].split, column)
    settings = settings_of(source, task, config, launch.settings)
    say_doubts(settings.values())
    manifest = manifest_of(task, settings, storage)
    compared = parse_all(launch.settings, config)
    drawn = {
        name: draw_settings(task, base, launch.draws, compared) for name, base in settings.items()
    }
    folds = plan_folds(drawn, manifest, launch)
    trials = []
    for fold in folds:
        run = find(source, fold.config, manifest, storage, reuse=launch.reuse, stage="test")
        trials.append(Trial(fold.name, {"setting": fold.setting}, fold.config, run.folder))
    name = f"{source.name}-{column}-{fingerprint([trial.folder.name for trial in trials])}"
    missing = [trial for trial in trials if not is_finished(trial.folder)]
    print_missing(trials, len(missing), f" ({_count(folds)})")
    if missing:
        configs = list(settings.values())
        run_missing({"test": missing}, configs, source, manifest, resources, launch, name)
    folder = storage / "sweeps" / name
    folder.mkdir(parents=True, exist_ok=True)
    ended = [_read_trial(fold, trial) for fold, trial in zip(folds, trials, strict=True)]
    finished = [each for each in ended if is_finished(each.trial.folder)]
    with writing(folder):
        write_trials(folder, [each.row for each in ended])
        if not finished:
            refuse_all_failed([each.outcome for each in ended], folder)
        FoldReport(source.name, column, config.split.rule, ended, finished).write(folder)
    return sum(each.outcome.state == "failed" for each in ended)


def _with_column(config: TaskConfig, column: str) -> TaskConfig:
    """Make a column of a table a domain, which it becomes by being asked for."""
    if column in config.data.domains:
        return config
    return replace(config, data=replace(config.data, domains=(*config.data.domains, column)))


def _say_overruled(split: SplitConfig, preset: SplitConfig, column: str) -> None:
    """Say which settings of the split were given other values than the preset's and are the folds' own."""
    for name in ("unseen_domain", "unseen", "num_unseen"):
        if getattr(split, name) != getattr(preset, name):
            print(
                f"--split.{name.replace('_', '-')} has no effect: the folds hold out values of {column}.",
                file=sys.stderr,
            )


def draw_settings(
    task: type[Task], config: TaskConfig, num: int, compared: Collection[str] = ()
) -> list[TaskConfig]:
    """Return the settings as they stand, then with hyperparameters drawn from the task's space, `num` in all.

    What is `compared` stays as it is.

    Raises:
        ConfigError: nothing is left to draw.
    """
    sampler = optuna.samplers.RandomSampler(seed=0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    space = {name: each for name, each in task.space(config).items() if name not in compared}
    if num > 1 and not space:
        raise ConfigError(
            f"--draws is {num}, and --settings name all that the task's space has, so that all draws are one; set --draws 1."
        )
    drawn = [change(config, sample(space, config, study.ask())) for _ in range(num - 1)]
    return [config, *drawn]


def plan_folds(
    settings: Mapping[str, Sequence[TaskConfig]], manifest: Manifest, launch: FoldLaunch
) -> list[Fold]:
    """Return every setting's trainings on the choices of values that are asked for."""
    column = launch.fold_column
    num = len(set(manifest.column(f"domain.{column}"))) if column in manifest.domains else 0
    sizes, choices = launch.train_on or (num - 1,), launch.choices
    if launch.leave_out:
        most = max(launch.leave_out)
        if 0 < num <= most:
            raise ConfigError(
                f"--leave-out is {most}, and {column!r} has {num} values; give at most {num - 1}, so that one is left to train on."
            )
        sizes, choices = tuple(num - held_out for held_out in launch.leave_out), 0
    return plan(settings, manifest, column, sizes, choices, launch.seeds)


def _count(folds: Sequence[Fold]) -> str:
    counts = Counter(fold.num_trained for fold in folds)
    return ", ".join(f"{counts[size]} on {size}" for size in sorted(counts))


def _read_trial(fold: Fold, trial: Trial) -> FoldTrial:
    outcome = read_outcome(trial.folder)
    row = {
        "run": trial.folder.name,
        "setting": fold.setting,
        "draw": fold.draw,
        "trained on": len(fold.trained),
        "seed": fold.seed,
        "trained": " ".join(fold.trained),
        "tested": " ".join(fold.tested),
        "state": outcome.state,
        "reason": outcome.reason,
        "val": outcome.score,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
    }
    return FoldTrial(fold, trial, outcome, row)
