"""The sweep of hyperparameters: what `sweeps/hyperparameters.py` does.

    runs/sweeps/fingerprint-tpe-3f2a.../
        optuna.log           the study, see `search`
        report.html, sweep.json, trials.csv, trials.parquet

Trials are judged on val alone. The selected one is then trained no further: it is run to its end,
which predicts and scores the test sets, once, and says among how many it was chosen. Begun again
with more --trials the study goes on; a later selection scores test once more, which is recorded.

Population based training is left out: it changes settings during a run, so that what it finds is
no setting that could be run again.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from markupsafe import Markup
from optuna.trial import FrozenTrial

from assay import space
from assay.config import fingerprint, from_dict
from assay.errors import ConfigError, RunError, one_sentence
from assay.experiment.identity import identity
from assay.experiment.judge import judge, write_comparison
from assay.experiment.options import Launch, option, parse_with
from assay.experiment.resources import Resources
from assay.experiment.run import (
    StoredImages,
    absolute,
    complete,
    find,
    is_whole,
    prepare,
    read_data,
    storage_of,
)
from assay.experiment.workers import cluster
from assay.files import read_json, write_json
from assay.report.page import fill_page, write_page, write_report
from assay.report.text import print_run
from assay.runs.folder import Run
from assay.runs.results import read_result
from assay.space import Space
from assay.sweep import coordinates, figures, space_file, space_text
from assay.sweep.figures import Budget, budget_of
from assay.sweep.study import (
    JOURNAL,
    Objective,
    Sampling,
    Search,
    StudySettings,
    importances,
    open_study,
)
from assay.sweep.trial import Outcome, describe_outcome, write_trials
from assay.sweep.tune import Halving, SweepContext, fit_in, run_trials
from assay.train.source import TaskSource, load_task
from assay.train.task import Task, TaskConfig


@dataclass(frozen=True, kw_only=True)
class SearchLaunch(Launch):
    """What is searched, how, and for how long."""

    task: Path = Path("tasks/fingerprint.py")
    """The task file."""
    space: tuple[str, ...] = ()
    """Changes to the task's search space: SETTING=LOW..HIGH[,log], SETTING=A|B|C; SETTING=A takes it out."""
    space_file: Path | None = None
    """YAML file with the search space, in the place of the task's; also a W&B sweep."""
    trials: int = 20
    """Trials in all, those of earlier launches among them."""
    epochs: int = 0
    """Epochs after which no further trial begins, for methods that are compared at equal cost; 0: no limit."""
    sampling: Sampling = "tpe"
    """How settings are proposed: TPE (multivariate, constant liar), at random, as a grid, or NSGA-II."""
    objectives: tuple[Objective, ...] = ("score",)
    """What val is to improve: score, nll, latency_ms, num_params; several make a Pareto front by NSGA-II."""
    grace: int = 1
    """Epochs (looks at val) before a trial may be stopped early."""
    eta: int = 3
    """One of so many trials goes on at each rung of early stopping (ASHA); 0: every trial runs to its end."""
    warm_start: tuple[Path, ...] = ()
    """Folders of earlier sweeps, whose best settings are tried first."""
    sweep_seed: int = 0
    """Seed of the proposals."""
    parallel: int = 0
    """Trials at once; 0: as many as fit."""
    gpus_per_worker: float = 1.0
    """GPUs of each worker, with --gpus; below 1 several trials share one (not checked on a GPU yet)."""


def main(defaults: SearchLaunch, arguments: Sequence[str] | None = None) -> None:
    """Run the sweep; exits with 2 and one sentence where the user can mend something, with 1 where a trial failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_sentence():
        source = TaskSource.read(option(arguments, "--task") or defaults.task)
        task = load_task(source)
        config, where, launch = parse_with(task, arguments, defaults)
        failed = sweep(source, config, where, launch)
    if failed:
        raise SystemExit(1)


def sweep(source: TaskSource, config: TaskConfig, where: Resources, launch: SearchLaunch) -> int:
    """Search, select on val, score the selected once; returns how many trials failed."""
    if where.workers == 0:
        raise ConfigError("--workers is 0, and trials need Ray; give 1 or more.")
    storage, task = storage_of(where), load_task(source)
    config = absolute(config)
    searched, launch = _declared(task, config, launch)
    manifest = task.manifest(config, storage)
    _refuse_other_data(task, config, searched, storage, manifest.fingerprint)
    made = StudySettings(
        sampling=launch.sampling, objectives=launch.objectives, seed=launch.sweep_seed
    )
    halving = _halving(config, launch)
    what = [identity(source, config, manifest), repr(searched), repr(made), repr(halving)]
    folder = storage / "sweeps" / f"{source.name}-{made.sampling}-{fingerprint(what)}"
    folder.mkdir(parents=True, exist_ok=True)
    study = open_study(folder, made)
    search = Search(
        study, made, searched, config, lambda c: find(source, c, manifest, storage, reuse=launch.reuse).folder,
        launch.trials, launch.epochs,
    )  # fmt: skip
    search.warm([_earlier(path) for path in launch.warm_start])
    search.told = lambda trial, found: print(
        f"{len(search.trials)} of {search.num}: {_short(trial.values)}: {describe_outcome(found)}",
        file=sys.stderr,
    )
    data: StoredImages | None = None
    with cluster(where):
        if len(search.trials) < search.num:
            resources, parallel = fit_in(where, launch.gpus_per_worker, launch.parallel)
            data = read_data(source, manifest, config, where, storage)
            measured = bool({"latency_ms", "num_params"} & {*made.objectives})
            select = made.objectives[0] if made.objectives[0] in ("score", "nll") else "score"
            shared = SweepContext(data, where, "val", folder.name, measured, select)
            run_trials(shared, search, resources, parallel, halving)
        best = search.best()
        if not best:
            raise RunError(f"None of {len(search.trials)} trials of {folder.name} came to its end; see their reasons in {folder / 'trials.csv'} and mend the space.")  # fmt: skip
        chosen = Run(storage / best[0].user_attrs["run"])
        data = data or read_data(source, manifest, config, where, storage)
        _score_once(chosen, source.name, data, where, len(search.trials))
    return _write(folder, search, halving, chosen)


def _declared(
    task: type[Task], config: TaskConfig, launch: SearchLaunch
) -> tuple[Space, SearchLaunch]:
    """The space, and the options with what a file says; what the command line says counts more."""
    searched: Space = task.space(config)
    if launch.space_file is not None:
        declared = space_file.read(launch.space_file, config, task.aliases)
        searched, default = declared.space, SearchLaunch()
        said_there: dict[str, Any] = {
            "sampling": declared.method, "trials": declared.trials, "grace": declared.grace, "eta": declared.eta,
            "objectives": None if declared.objective is None else (declared.objective,),
        }  # fmt: skip
        launch = replace(launch, **{
            key: value for key, value in said_there.items()
            if value is not None and getattr(launch, key) == getattr(default, key)
        })  # fmt: skip
    searched = space_text.merged(
        searched, dict(space_text.parse(text, config) for text in launch.space)
    )
    space_text.check(searched, config)
    if len(launch.objectives) > 1 and launch.sampling == "tpe":
        launch = replace(launch, sampling="nsga2")
    if launch.trials < 1 or launch.grace < 1 or (launch.eta < 2 and launch.eta != 0):
        raise ConfigError(
            f"--trials is {launch.trials}, --grace {launch.grace} and --eta {launch.eta}; give at least 1, 1, and 2 (or 0 for no early stopping)."
        )
    if len(set(launch.objectives)) != len(launch.objectives) or not launch.objectives:
        raise ConfigError(f"--objectives is {launch.objectives}; name one or several, each once.")
    return searched, launch


def _halving(config: TaskConfig, launch: SearchLaunch) -> Halving | None:
    """Early stopping compares trials by one number, so several objectives have none."""
    if (
        launch.eta == 0
        or len(launch.objectives) > 1
        or launch.objectives[0] not in ("score", "nll")
    ):
        return None
    if launch.grace > config.train.epochs:
        raise ConfigError(
            f"--grace is {launch.grace} and train.epochs {config.train.epochs}; a trial must be longer than its grace."
        )
    return Halving(config.train.epochs, launch.grace, launch.eta)


def _refuse_other_data(
    task: type[Task], config: TaskConfig, searched: Space, storage: Path, data: str
) -> None:
    """All trials read one manifest: a space that changes the images is refused."""
    for name, dimension in searched.items():
        levels = dimension.levels()
        changed = space.changed(config, {name: levels[0]})
        if task.manifest(changed, storage).fingerprint != data:
            raise ConfigError(
                f"The search space has {name!r}, which changes the images themselves; scores on other images cannot be compared: take it out."
            )


def _earlier(path: Path) -> optuna.Study:
    if not (path / JOURNAL).exists():
        raise ConfigError(f"--warm-start {path} holds no {JOURNAL}; name the folder of a sweep, below runs/sweeps.")  # fmt: skip
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(path / JOURNAL))
    )
    return optuna.load_study(study_name=None, storage=storage)


def _score_once(run: Run, name: str, data: StoredImages, where: Resources, tried: int) -> None:
    """Run the selected trial to its end; the only one that is scored on test."""
    task = load_task(data.source)
    config = from_dict(task.Config, read_json(run.folder / "config.json"))
    alone = replace(where, workers=0) if where.workers == 1 else where
    with run.lease():
        if not is_whole(run):
            complete(prepare(data, config, name), run, alone, tried=tried)
        elif read_result(run.folder).tried != tried:
            judge(run.folder, task, config, data.storage, tried)
    write_comparison({name: run.folder})
    write_report(run.folder)


def _write(folder: Path, search: Search, halving: Halving | None, chosen: Run) -> int:
    """The sweep's files and the terminal; returns how many trials failed."""
    trials = [(t, search.outcome_of(t)) for t in search.trials]
    budget = budget_of([found for _, found in trials], search.base.train.epochs)
    best = search.best()
    lines = [
        {"trial": t.number, "run": t.user_attrs.get("run", ""), "state": o.state, "reason": o.reason,
         "score": o.score, "nll": o.nll, "epochs": o.epochs, "seconds": o.seconds, **o.measured, **t.params}
        for t, o in trials
    ]  # fmt: skip
    write_trials(folder, lines)
    shares = importances(search.study)
    name, result = search.study.study_name, read_result(chosen.folder)
    tests = {name: result.sets[name] for name in result.tests}
    write_json(folder / "sweep.json", {
        "schema": 1, "sampling": search.made.sampling, "objectives": search.made.objectives, "selected": chosen.folder.name,
        "params": best[0].params, "front": [{"run": t.user_attrs["run"], "values": t.values, "params": t.params} for t in best],
        "tried": len(trials), "budget": asdict(budget), "importance": shares, "trials": lines,
    })  # fmt: skip
    page = fill_page(
        "search.html", id=folder.name, study=name, lines=lines, chosen=chosen.folder.name, best=best, shares=shares,
        budget=budget, halving=halving, objectives=search.made.objectives, sampling=search.made.sampling,
        tests=tests, val=result.sets["val"], tried=len(trials), num_scored=len(result.scorings),
        coordinates=Markup(coordinates.draw(coordinates.axes_of(search.space, trials), trials)),
        figures=figures.figures(trials, search.made.objectives, shares, best),
    )  # fmt: skip
    path = write_page(folder, page)
    _print(search, trials, best[0], budget, chosen, path)
    return sum(found.state == "failed" for _, found in trials)


def _print(
    search: Search,
    trials: Sequence[tuple[FrozenTrial, Outcome]],
    best: FrozenTrial,
    budget: Budget,
    chosen: Run,
    path: Path,
) -> None:
    states = [found.state for _, found in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{len(trials)} trials: {counts}; {budget}")
    print(f"selected on val: {_short(best.params)}")
    print_run({chosen.folder.name: chosen.folder})
    print(f"{len(trials)} configurations were tried; test was scored for the selected one alone.")
    print(f"study: {path.parent / JOURNAL}\nreport: {path}")


def _short(values: Mapping[str, Any]) -> str:
    parts = [
        f"{name.split('.')[-1]} {value:.3g}" if isinstance(value, float) else f"{name.split('.')[-1]} {value}"
        for name, value in values.items()
    ]  # fmt: skip
    return ", ".join(parts)
