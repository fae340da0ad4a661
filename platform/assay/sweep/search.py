"""The sweep of hyperparameters: what `sweeps/hyperparameters.py` does.

    runs/sweeps/fingerprint-tpe-3f2a.../
        optuna.log           the study, see `study`
        report.html, sweep.json, trials.csv, trials.parquet

Trials are judged on val alone. The selected one is then trained no further: it is run to its end,
which predicts and scores the test sets, once, and says among how many it was chosen. Begun again
with more --trials the study goes on; a later selection scores test once more, which is recorded.

Population based training is left out: it changes settings during a run, so that what it finds is
no setting that could be run again.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from optuna import Study

from assay.config import fingerprint, from_dict
from assay.errors import ConfigError, RunError
from assay.experiment.earlier import find
from assay.experiment.identity import identity
from assay.experiment.judge import judge, write_comparison
from assay.experiment.options import say_doubts
from assay.experiment.places import absolute, storage_of
from assay.experiment.resources import Resources
from assay.experiment.run import StoredImages, complete, is_whole, prepare, read_data
from assay.experiment.workers import cluster
from assay.report.page import write_report
from assay.runs.folder import Run
from assay.runs.names import is_run_name
from assay.runs.remote import look_at, writing
from assay.runs.results import read_config, read_result
from assay.space import Space, change
from assay.sweep import space_file, space_text
from assay.sweep.launch import SweepLaunch, given_of, run_command
from assay.sweep.search_report import report_search
from assay.sweep.study import (
    Objective,
    Sampling,
    Search,
    StudySettings,
    load_study,
    open_study,
)
from assay.sweep.tune import Halving, SweepContext, fit_in, run_trials
from assay.train.source import TaskSource, load_task
from assay.train.task import Task
from assay.train.task_config import TaskConfig

OF_STOPPING = ("eta", "grace")
OF_FILES = ("sampling", "trials", "objectives", *OF_STOPPING)
"""Options that a file of the space may have too."""


@dataclass(frozen=True, kw_only=True)
class SearchLaunch(SweepLaunch):
    """What is searched, how, and for how long."""

    space: tuple[str, ...] = ()
    """Changes to the task's search space: SETTING=LOW..HIGH[,log], SETTING=A|B|C; SETTING=A takes it out."""
    space_file: Path | None = None
    """YAML file with the search space, in the place of the task's; also a W&B sweep."""
    trials: Annotated[int, Interval(ge=1, le=100_000)] = 20
    """Trials in all, those of earlier launches among them."""
    epochs: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """Epochs after which no further trial begins, for methods that are compared at equal cost; 0: no limit."""
    sampling: Sampling = "tpe"
    """How settings are proposed: TPE (multivariate, constant liar), at random, as a grid, or NSGA-II."""
    objectives: tuple[Objective, ...] = ("score",)
    """What val is to improve: score, nll, latency_ms, num_params; several make a Pareto front by NSGA-II."""
    grace: Annotated[int, Interval(ge=1, le=100_000)] = 1
    """Epochs (looks at val) before a trial may be stopped early."""
    eta: Annotated[int, Interval(ge=0, le=100)] = 3
    """One of so many trials goes on at each rung of early stopping (ASHA); 0: every trial runs to its end."""
    warm_start: tuple[Path, ...] = ()
    """Folders of earlier sweeps, whose best settings are tried first."""
    sweep_seed: Annotated[int, Interval(ge=0, le=2**31)] = 0
    """Seed of the proposals."""


def main(defaults: SearchLaunch, arguments: Sequence[str] | None = None) -> None:
    """Run the command; see `run_command`."""
    given = given_of(OF_FILES, arguments)
    run_command(partial(sweep, given=given), defaults, arguments)


def sweep(
    source: TaskSource,
    config: TaskConfig,
    resources: Resources,
    launch: SearchLaunch,
    given: Collection[str] = (),
) -> int:
    """Search, select on val, score the selected once; returns how many trials failed.

    Args:
        source: the task's file.
        config: the settings that are searched around.
        resources: of each trial.
        launch: what is searched, and how.
        given: options of the command line, which count more than those of a file.
    """
    storage, task = storage_of(resources), load_task(source)
    config = absolute(config)
    say_doubts([config])
    space, launch = _read_space(task, config, launch, given)
    manifest = task.manifest(config, storage)
    _refuse_other_data(task, config, space, storage, manifest.fingerprint)
    objectives = launch.objectives
    settings = StudySettings(
        sampling=launch.sampling, objectives=objectives, seed=launch.sweep_seed
    )
    halving = _halving(config, launch)
    _say_idle(space, config, launch, given)
    parts = [identity(source, config, manifest), repr(space), repr(settings), repr(halving)]
    folder = storage / "sweeps" / f"{source.name}-{settings.sampling}-{fingerprint(parts)}"
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        study = open_study(folder, settings)
        _look_at_runs(study, storage, source.name)
        search = Search(
            study,
            settings,
            space,
            config,
            # Tune pickles the search: a lambda is left alone by jaxtyping, whose wrapper cannot be
            lambda config: (
                find(source, config, manifest, storage, reuse=launch.reuse, stage="val").folder
            ),
            launch.trials,
            launch.epochs,
        )
        search.warm([load_study(path) for path in launch.warm_start])
        data: StoredImages | None = None
        with cluster(resources):
            if len(search.trials) < search.num:
                reserved, parallel = fit_in(resources, launch.gpus_per_worker, launch.parallel)
                data = read_data(source, manifest, config, resources, storage)
                measure = bool({"latency_ms", "num_params"} & {*objectives})
                select = objectives[0] if objectives[0] in ("score", "nll") else "score"
                context = SweepContext(data, resources, "val", folder.name, measure, select)
                run_trials(context, search, reserved, parallel, halving)
            selected = _select(search, folder)
            data = data or read_data(source, manifest, config, resources, storage)
            _score_once(selected, source.name, data, resources, len(search.trials))
        return report_search(folder, search, halving, selected)


def _look_at_runs(study: Study, storage: Path, task: str) -> None:
    """Pull the runs of earlier launches from object storage, where another machine may have trained them."""
    for trial in study.trials:
        name = trial.user_attrs.get("run", "")
        if is_run_name(name, task):
            look_at(storage / name)


def _read_space(
    task: type[Task], config: TaskConfig, launch: SearchLaunch, given: Collection[str]
) -> tuple[Space, SearchLaunch]:
    """Return the space, and the options with a file's; the command line counts more than a file."""
    space: Space = task.space(config)
    if launch.space_file is not None:
        declared = space_file.read(launch.space_file, config, task.aliases)
        space, launch = declared.space, _with_file(launch, declared, given)
    space = space_text.merge(space, space_text.parse_all(launch.space, config))
    space_text.check(space, config)
    if len(launch.objectives) > 1 and launch.sampling == "tpe":
        if "sampling" in given:
            print("--sampling is nsga2, as there are several objectives.", file=sys.stderr)
        launch = replace(launch, sampling="nsga2")
    if launch.eta == 1:
        raise ConfigError("--eta is 1; give 2 or more, or 0 for no early stopping.")
    if len(set(launch.objectives)) != len(launch.objectives) or not launch.objectives:
        raise ConfigError(f"--objectives is {launch.objectives}; name one or several, each once.")
    return space, launch


def _with_file(
    launch: SearchLaunch, declared: space_file.SpaceFile, given: Collection[str]
) -> SearchLaunch:
    """Take a file's options over where the command line has none."""
    options: dict[str, Any] = {
        "sampling": declared.method,
        "trials": declared.trials,
        "grace": declared.grace,
        "eta": declared.eta,
        "objectives": declared.objective and (declared.objective,),
    }
    taken = {name: value for name, value in options.items() if value and name not in given}
    return replace(launch, **taken)


def _say_idle(
    space: Space, config: TaskConfig, launch: SearchLaunch, given: Collection[str]
) -> None:
    """Say which settings are searched that nothing follows, whatever else is chosen, and which options nothing follows."""
    bases = [
        change(config, {name: v}) for name, each in space.items() for v in space_text.extremes(each)
    ]
    idle = [base.idle() for base in (config, *bases)]
    whys = {name: [names.get(name, "") for names in idle] for name in space}
    vain = {f"{name} of the space": why[0] for name, why in whys.items() if all(why)}
    if not launch.eta:
        vain |= {f"--{name}": "--eta is 0" for name in {"grace"} & {*given}}
    elif not _is_stopped_early(launch):
        why = "early stopping compares trials by score or nll alone"
        vain |= {f"--{name}": why for name in OF_STOPPING if name in given}
    for name, why in vain.items():
        print(f"{name} has no effect: {why}.", file=sys.stderr)


def _is_stopped_early(launch: SearchLaunch) -> bool:
    return launch.eta != 0 and launch.objectives in (("score",), ("nll",))


def _halving(config: TaskConfig, launch: SearchLaunch) -> Halving | None:
    """Make early stopping, which compares trials by one number: several objectives have none."""
    if not _is_stopped_early(launch):
        return None
    if launch.grace > config.train.epochs:
        raise ConfigError(
            f"--grace is {launch.grace} and train.epochs {config.train.epochs}; a trial must be longer than its grace."
        )
    return Halving(config.train.epochs, launch.grace, launch.eta)


def _refuse_other_data(
    task: type[Task], config: TaskConfig, space: Space, storage: Path, data: str
) -> None:
    """Refuse a space that changes the images: all trials read one manifest."""
    for name, dimension in space.items():
        changed = change(config, {name: dimension.levels()[0]})
        if task.manifest(changed, storage).fingerprint != data:
            raise ConfigError(
                f"The search space has {name!r}, which changes the images themselves; scores on other images cannot be compared: take it out."
            )


def _select(search: Search, folder: Path) -> Run:
    best = search.best()
    if not best:
        raise RunError(
            f"None of {len(search.trials)} trials of {folder.name} came to its end; see their reasons in {folder / 'trials.csv'} and mend the space."
        )
    return Run(search.root / best[0].user_attrs["run"])


def _score_once(run: Run, name: str, data: StoredImages, resources: Resources, tried: int) -> None:
    """Run the selected trial to its end; the only one that is scored on test."""
    task = load_task(data.source)
    config = from_dict(task.Config, read_config(run.folder))
    # in this process, which has no GPU of its own
    here = resources.workers == 1 and not resources.gpus
    alone = replace(resources, workers=0) if here else resources
    with run.lease():
        if not is_whole(run):
            complete(prepare(data, config, name), run, alone, tried=tried)
        elif read_result(run.folder).tried != tried:
            judge(run.folder, task, config, data.storage, tried)
    with writing(run.folder):
        write_comparison({name: run.folder})
        write_report(run.folder)
