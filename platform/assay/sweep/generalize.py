"""The sweep over folds: what `sweeps/design_generalization.py` does.

    runs/sweeps/fingerprint-design-3f2a.../
        report.html          see `generalization`
        sweep.json           the same numbers
        trials.csv, trials.parquet

Each training is a run of its own below runs/, recognised by what it computes.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import optuna
from annotated_types import Interval

from assay.config import fingerprint
from assay.data.manifest import Manifest
from assay.data.split_config import RULES
from assay.experiment.earlier import find
from assay.experiment.places import absolute, storage_of
from assay.experiment.resources import Resources
from assay.files import write_json
from assay.metrics.estimate import signed
from assay.report.page import fill_page, write_page
from assay.runs.remote import writing
from assay.space import change, sample
from assay.sweep.fixed import is_finished, manifest_of, print_missing, run_missing, settings_of
from assay.sweep.folds import Fold, plan
from assay.sweep.generalization import Summary, curve, gather, matrices, summarize
from assay.sweep.launch import SweepLaunch, run_command
from assay.sweep.rules import ORACLE, RuleScore, candidates_of, choose_draws, compare_rules
from assay.sweep.trial import Outcome, Trial, read_outcome, write_trials
from assay.train.source import TaskSource, load_task
from assay.train.task import Task, TaskConfig

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


@dataclass(frozen=True)
class FoldTrial:
    """A fold, its trial, and what became of it."""

    fold: Fold
    trial: Trial
    outcome: Outcome
    row: Mapping[str, Any]
    """Its row of trials.csv."""


def main(defaults: FoldLaunch, arguments: Sequence[str] | None = None) -> None:
    """Run the command; see `run_command`."""
    run_command(sweep, defaults, arguments)


def sweep(source: TaskSource, config: TaskConfig, resources: Resources, launch: FoldLaunch) -> int:
    """Run what is missing, and write and print what all of it says; returns how many failed."""
    storage, column = storage_of(resources), launch.fold_column
    config = _with_column(absolute(config), column)
    task = load_task(source)
    settings = settings_of(source, task, config, launch.settings)
    manifest = manifest_of(task, settings, storage)
    drawn = {name: draw_settings(task, base, launch.draws) for name, base in settings.items()}
    folds = _plan(drawn, manifest, launch)
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
        if finished:
            _report(folder, source, config, column, ended, finished)
    return sum(each.outcome.state == "failed" for each in ended)


def _with_column(config: TaskConfig, column: str) -> TaskConfig:
    """Make a column of a table a domain, which it becomes by being asked for."""
    if column in config.data.domains:
        return config
    return replace(config, data=replace(config.data, domains=(*config.data.domains, column)))


def draw_settings(task: type[Task], config: TaskConfig, num: int) -> list[TaskConfig]:
    """Return the settings as they stand, then with hyperparameters drawn from the task's space, `num` in all."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    space = task.space(config)
    drawn = [change(config, sample(space, config, study.ask())) for _ in range(num - 1)]
    return [config, *drawn]


def _plan(
    settings: Mapping[str, Sequence[TaskConfig]], manifest: Manifest, launch: FoldLaunch
) -> list[Fold]:
    column = launch.fold_column
    num = len(set(manifest.column(f"domain.{column}"))) if column in manifest.domains else 0
    sizes, choices = launch.train_on or (num - 1,), launch.choices
    if launch.leave_out:
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


def _vals(trials: Sequence[FoldTrial]) -> dict[str, dict[int, float]]:
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


def _report(
    folder: Path,
    source: TaskSource,
    config: TaskConfig,
    column: str,
    trials: Sequence[FoldTrial],
    finished: Sequence[FoldTrial],
) -> None:
    """Write sweep.json and report.html, and print what they say."""
    tested = gather([(t.fold, t.trial.folder) for t in finished], column)
    candidates = candidates_of(
        [t.fold for t in finished], [t.outcome.score for t in finished], tested
    )
    is_oracle = config.split.rule == ORACLE
    # where val is of the test domain itself there is nothing that other rules could choose by
    rules = [] if is_oracle else compare_rules(candidates, tested)
    taken = choose_draws(candidates)
    vals = _vals([finished[place] for place in taken])
    summary = summarize(tested.at(np.isin(tested.trial, taken)), vals)
    rows, best = summary.rows, summary.standings[0]
    knowing = {t.fold.setting for t in trials if t.fold.config.split.unlabelled == "train"}
    marks = ["ORACLE: "] * is_oracle + ["TRANSDUCTIVE: "] * (best.setting in knowing)
    chosen = " (best on val)" if len(summary.standings) > 1 and best.val is not None else ""
    seeds = len({trial.fold.seed for trial in trials})
    shared = {
        "task": source.name,
        "column": column,
        "metric": rows.metric,
        "about": _describe(summary, column, len(finished), seeds, sorted(knowing)),
        "oracle": f"ORACLE: val is of the very {column}s that are tested, so all numbers are upper bounds."
        if is_oracle
        else "",
    }
    runs = [trial.trial.folder.name for trial in trials]
    numbers = {**summary.to_dict(), "rules": [asdict(each) for each in rules]}
    write_json(folder / "sweep.json", {"schema": 1, **shared, **numbers, "trials": runs})
    choices = {(trial.fold.trained, trial.fold.seed) for trial in finished}
    page = fill_page(
        "folds.html",
        **shared,
        id=folder.name,
        headline=f"{''.join(marks)}{best.setting}{chosen} has {best.lowest.value:.3f} on its worst {column} never seen",
        most=int(rows.size.max()),
        standings=summary.standings,
        differences=summary.differences,
        by_size=summary.by_size,
        by_value=summary.by_value,
        sizes=sorted(set(rows.size.tolist())),
        values=sorted(set(summary.most.value.tolist())),
        num_folds=Counter(len(trained) for trained, _ in choices),
        vals=vals,
        curve=curve(summary, column),
        matrices=matrices(summary.most, column),
        has_classes=bool(rows.classes),
        unfinished=len(trials) - len(finished),
        rule=RULES[config.split.rule],
        rules=rules,
        trials=[{**t.row, "run": t.row["run"][-12:], "name": t.trial.name} for t in trials],
    )
    _print(summary, column, f"{shared['oracle']} {shared['about']}".lstrip())
    _print_rules(rules, column)
    print(f"report: {write_page(folder, page)}")


def _describe(summary: Summary, column: str, num: int, seeds: int, knowing: Sequence[str]) -> str:
    rows = summary.rows
    seen = f" TRANSDUCTIVE: {', '.join(knowing)} saw images of the {column}s that are tested, without labels."
    num_groups, num_values = len(set(rows.group.tolist())), len(set(rows.value.tolist()))
    return (
        f"{num} trainings of {len(summary.standings)} settings, {seeds} seed{'s' if seeds > 1 else ''}; each is tested on all "
        f"{column}s that it was not trained on. n = {len(rows.score)} test rows, {num_groups} groups, {num_values} {column}s.{seen if knowing else ''}"
    )


def _print(summary: Summary, column: str, about: str) -> None:
    print(f"{about}\n{summary.rows.metric.capitalize()} with 95 % intervals over {column}s.\n")
    for name, sizes in summary.by_size.items():
        for size, estimate in sizes.items():
            print(f"  {name:14s} trained on {size:2d}: {estimate}")
    print(f"\nWorst {column}, trained on {summary.rows.size.max()}; the best on val first:")
    for ranking in summary.standings:
        val = "" if ranking.val is None else f" (val {ranking.val:.3f})"
        print(f"  {ranking.setting:14s} {ranking.worst}: {ranking.lowest}{val}")
    for d in summary.differences:
        print(
            f"  {d.first} - {d.second}, trained on {d.size}: {signed(d.estimate)}, p = {d.p_holm:.2g}: {d.verdict}"
        )


def _print_rules(rules: Sequence[RuleScore], column: str) -> None:
    if rules:
        print(f"\nOn {column}s never seen, by the rule that chooses:")
    for each in rules:
        print(f"  {each.label:36s} {each.setting:14s} {each.estimate}")
