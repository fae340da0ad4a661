"""The sweep over folds: what `sweeps/design_generalization.py` does.

    runs/sweeps/fingerprint-design-3f2a.../
        report.html          see `generalization`
        sweep.json           the same numbers
        trials.csv, trials.parquet

Each training is a run of its own below runs/, found again by what it computes.
"""

import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from assay import space
from assay.config import fingerprint
from assay.errors import ConfigError, one_sentence
from assay.experiment.options import Launch, option, parse_with
from assay.experiment.resources import Resources
from assay.experiment.run import absolute, find, read_data, storage_of
from assay.experiment.workers import cluster
from assay.files import write_json
from assay.report.page import fill_page, write_page
from assay.runs.folder import Run
from assay.sweep import generalization, space_text
from assay.sweep.folds import Fold, plan
from assay.sweep.trial import Outcome, Trial, describe_outcome, outcome, write_trials
from assay.sweep.tune import SweepContext, fit_in, run_trials
from assay.train.source import TaskSource, load_task
from assay.train.task import Task, TaskConfig


@dataclass(frozen=True, kw_only=True)
class FoldLaunch(Launch):
    """Which folds, and how many at once."""

    task: Path = Path("tasks/fingerprint.py")
    """The task file."""
    fold_column: str = "design"
    """Domain whose values are trained on or tested: design, printer, exposure, build."""
    train_on: tuple[int, ...] = ()
    """Numbers of values to train on; none: all but --leave-out of them."""
    leave_out: int = 1
    """Values held out of each fold where --train-on is not given."""
    choices: int = 0
    """Choices of values drawn for each number and seed, evenly over all seeds; 0: all there are."""
    seeds: int = 1
    """Seeds of training, each with choices of its own."""
    settings: tuple[str, ...] = ()
    """What to compare: SETTING=A|B, several are combined; none: the task and its baselines."""
    parallel: int = 0
    """Trainings at once; 0: as many as fit."""
    gpus_per_worker: float = 1.0
    """GPUs of each worker, with --gpus; below 1 several trainings share one (not checked on a GPU yet)."""


def main(defaults: FoldLaunch, arguments: Sequence[str] | None = None) -> None:
    """Run the sweep; exits with 2 and one sentence where the user can mend something, with 1 where a training failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_sentence():
        source = TaskSource.read(option(arguments, "--task") or defaults.task)
        task = load_task(source)
        if defaults.preset not in task.presets() or option(arguments, "--config"):
            defaults = replace(defaults, preset="")
        config, where, launch = parse_with(task, arguments, defaults)
        failed = sweep(source, config, where, launch)
    if failed:
        raise SystemExit(1)


def sweep(source: TaskSource, config: TaskConfig, where: Resources, launch: FoldLaunch) -> int:
    """Run what is missing, and write and print what all of it says; returns how many failed."""
    if where.workers == 0:
        raise ConfigError("--workers is 0, and trials need Ray; give 1 or more.")
    storage, column = storage_of(where), launch.fold_column
    config = _with_column(absolute(config), column)
    task = load_task(source)
    manifest = task.manifest(config, storage)
    settings = compared(source, task, config, launch.settings)
    num = len(set(manifest.column(f"domain.{column}"))) if column in manifest.domains else 0
    sizes = launch.train_on or (num - launch.leave_out,)
    folds = plan(settings, manifest, column, sizes, launch.choices, launch.seeds)
    trials = [
        Trial(fold.name, {"setting": fold.setting}, fold.config, find(source, fold.config, manifest, storage, reuse=launch.reuse).folder)
        for fold in folds
    ]  # fmt: skip
    name = f"{source.name}-{column}-{fingerprint([t.folder.name for t in trials])}"
    missing = [trial for trial in trials if not _is_tested(trial.folder)]
    print(
        f"{len(trials)} trainings ({_count(folds)}), {len(trials) - len(missing)} of them there already",
        file=sys.stderr,
    )
    if missing:
        with cluster(where):
            resources, parallel = fit_in(where, launch.gpus_per_worker, launch.parallel)
            data = read_data(source, manifest, config, where, storage)
            run_trials(
                SweepContext(data, where, "test", name), FixedTrials(missing), resources, parallel
            )
    folder = storage / "sweeps" / name
    folder.mkdir(parents=True, exist_ok=True)
    found = [outcome(trial.folder) for trial in trials]
    write_trials(folder, [_line(*one) for one in zip(folds, trials, found, strict=True)])
    finished = [
        (fold, t.folder) for fold, t in zip(folds, trials, strict=True) if _is_tested(t.folder)
    ]
    if finished:
        _write(folder, source, config, column, folds, trials, found, finished)
    return sum(one.state == "failed" for one in found)


def _with_column(config: TaskConfig, column: str) -> TaskConfig:
    """A column of a table becomes a domain by being asked for."""
    if column in config.data.domains:
        return config
    return replace(config, data=replace(config.data, domains=(*config.data.domains, column)))


def compared(
    source: TaskSource, task: type[Task], config: TaskConfig, texts: Sequence[str]
) -> Mapping[str, TaskConfig]:
    """The settings to compare, by name.

    Raises:
        ConfigError: a text is no choice, or names what folds decide.
    """
    if not texts:
        return {source.name: config} | dict(task.baselines(config))
    named = dict(space_text.parse(text, config) for text in texts)
    space_text.check(named, config)
    found = {}
    for values in itertools.product(*(dimension.levels() for dimension in named.values())):
        chosen = dict(zip(named, values, strict=True))
        name = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in chosen.items())
        found[name] = space.changed(config, chosen)
    return found


def _is_tested(folder: Path) -> bool:
    run = Run(folder)
    return run.state == "finished" and run.record.stage != "val"


def _count(folds: Sequence[Fold]) -> str:
    sizes = sorted({fold.num_trained for fold in folds})
    parts = [f"{sum(fold.num_trained == size for fold in folds)} on {size}" for size in sizes]
    return ", ".join(parts)


class FixedTrials:
    """Trials that are known before, in order."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.left, self.num, self.ended = list(trials), len(trials), 0

    def propose(self) -> Trial | None:
        """The next one."""
        return self.left.pop(0) if self.left else None

    def report(self, trial: Trial, epoch: int, value: float) -> None:
        """Nothing follows from a look at val."""

    def tell(self, trial: Trial, found: Outcome) -> None:
        """Say so on the terminal."""
        self.ended += 1
        print(
            f"{self.ended} of {self.num}: {trial.name}: {describe_outcome(found)}", file=sys.stderr
        )


def _line(fold: Fold, trial: Trial, found: Outcome) -> dict[str, Any]:
    return {
        "run": trial.folder.name, "setting": fold.setting, "trained on": len(fold.trained), "seed": fold.seed,
        "trained": " ".join(fold.trained), "tested": " ".join(fold.tested), "state": found.state,
        "reason": found.reason, "val": found.score, "epochs": found.epochs, "seconds": found.seconds,
    }  # fmt: skip


def _vals(folds: Sequence[Fold], found: Sequence[Outcome]) -> dict[str, dict[int, float]]:
    """Mean score of val by setting and number of values trained on."""
    scores: dict[str, dict[int, list[float]]] = {}
    for fold, one in zip(folds, found, strict=True):
        if one.score is not None:
            scores.setdefault(fold.setting, {}).setdefault(fold.num_trained, []).append(one.score)
    return {
        name: {size: statistics.fmean(own) for size, own in sizes.items()}
        for name, sizes in scores.items()
    }


def _write(
    folder: Path,
    source: TaskSource,
    config: TaskConfig,
    column: str,
    folds: Sequence[Fold],
    trials: Sequence[Trial],
    found: Sequence[Outcome],
    finished: Sequence[tuple[Fold, Path]],
) -> None:
    """sweep.json, report.html, and the terminal."""
    rows = generalization.gather(finished, column)
    most = generalization.largest(rows)
    standings, differences = generalization.standings(most), generalization.differences(rows)
    sizes, values = generalization.by_size(rows), generalization.by_value(most)
    seeds, num = len({fold.seed for fold in folds}), len({*rows.value.tolist()})
    about = (
        f"{len(finished)} trainings of {len(standings)} settings, {seeds} seed{'s' if seeds > 1 else ''}; each is tested on all "
        f"{column}s that it was not trained on. n = {len(rows.score)} test rows, {len(set(rows.group.tolist()))} groups, {num} {column}s."
    )
    best = standings[0]
    size = int(rows.size.max())
    headline = f"{best.setting} has {best.lowest.value:.3f} on its worst {column} never seen"
    write_json(folder / "sweep.json", {
        "schema": 1, "task": source.name, "column": column, "metric": rows.metric, "about": about,
        "standings": [asdict(one) for one in standings],
        "differences": [asdict(one) | {"verdict": one.verdict} for one in differences],
        "by_size": {k: {str(s): asdict(e) for s, e in v.items()} for k, v in sizes.items()},
        "by_value": {k: {s: asdict(e) for s, e in v.items()} for k, v in values.items()},
        "trials": [t.folder.name for t in trials],
    })  # fmt: skip
    page = fill_page(
        "folds.html", id=folder.name, task=source.name, column=column, metric=rows.metric, headline=headline,
        about=about, most=size, standings=standings, differences=differences,
        by_size=sizes, by_value=values, sizes=sorted({s for own in sizes.values() for s in own}),
        num_folds={s: len({(f.trained, f.seed) for f, _ in finished if f.num_trained == s}) for s in {f.num_trained for f in folds}},
        vals=_vals(folds, found),
        values=sorted({v for own in values.values() for v in own}), curve=generalization.curve(rows, column),
        matrices=generalization.matrices(most, column), has_classes=bool(rows.classes),
        unfinished=len(trials) - len(finished), rule=config.split.rule,
        trials=[
            {"run": t.folder.name[-12:], "name": t.name, "state": o.state, "reason": o.reason, "val": o.score, "epochs": o.epochs, "seconds": o.seconds}
            for t, o in zip(trials, found, strict=True)
        ],
    )  # fmt: skip
    path = write_page(folder, page)
    print(f"{about}\n{rows.metric.capitalize()} with 95 % intervals over {column}s.\n")
    for name, own in sizes.items():
        for m, estimate in own.items():
            print(f"  {name:14s} trained on {m:2d}: {estimate}")
    print(f"\nWorst {column}, trained on {size}:")
    for one in standings:
        print(f"  {one.setting:14s} {one.worst}: {one.lowest}")
    for d in differences:
        e = d.estimate
        print(
            f"  {d.first} - {d.second}, trained on {d.size}: {e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}], p = {d.p_holm:.2g}: {d.verdict}"
        )
    print(f"report: {path}")
