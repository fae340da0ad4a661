"""The comparison of settings, over seeds and shares of train: what `sweeps/comparison.py` does.

    runs/sweeps/casting-comparison-3f2a.../
        report.html          see `standings`
        sweep.json           the same numbers
        trials.csv, trials.parquet

Each training is a run of its own below runs/, recognised by what it computes. All have the same
val and test sets. One on a share of train has its epochs multiplied, so that each sees as many images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from assay.bundle.latency import measure_latency
from assay.config import fingerprint
from assay.data.manifest import Manifest
from assay.errors import ConfigError
from assay.experiment.earlier import find
from assay.experiment.options import say_doubts
from assay.experiment.places import absolute, storage_of
from assay.experiment.resources import Resources
from assay.files import write_json
from assay.metrics.estimate import signed
from assay.report.page import fill_page, write_page
from assay.report.svg import count
from assay.runs.folder import Run
from assay.runs.record import Stage
from assay.runs.remote import writing
from assay.space import change
from assay.sweep.fixed import (
    combine,
    is_finished,
    manifest_of,
    print_missing,
    run_missing,
    settings_of,
    variants_of,
)
from assay.sweep.folds import repeated
from assay.sweep.launch import SweepLaunch, run_command
from assay.sweep.pareto import COSTS, chart
from assay.sweep.standings import Summary, curve_figures, summarize
from assay.sweep.trained_run import read_run
from assay.sweep.trial import Trial, read_outcome, refuse_all_failed, write_trials
from assay.train.source import TaskSource, load_task
from assay.train.task import Task
from assay.train.task_config import TaskConfig

TrainShare = Annotated[float, Interval(gt=0, le=1)]
"""Part of the groups of train."""


@dataclass(frozen=True, kw_only=True)
class ComparisonLaunch(SweepLaunch):
    """What is compared, and how many at once."""

    settings: tuple[str, ...] = ()
    """What to compare: SETTING=A|B, several are combined; none: the variants, or the task and its baselines."""
    variants: tuple[str, ...] = ()
    """Settings that belong together, each as "NAME: SETTING=VALUE SETTING=VALUE"; each is combined with --settings."""
    seeds: Annotated[int, Interval(ge=1, le=10_000)] = 3
    """Seeds of training."""
    train_shares: tuple[TrainShare, ...] = (1.0,)
    """Shares of train to train on; tests and costs are of the largest."""
    latency: bool = False
    """Ship what is trained on the largest share, and measure the latency of its graphs."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One setting with a seed on a share of train."""

    setting: str
    share: float
    seed: int
    config: TaskConfig
    stage: Stage
    """How far its run is taken."""

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.setting}, {100 * self.share:g} % of train, seed {self.seed}"


def main(defaults: ComparisonLaunch, arguments: Sequence[str] | None = None) -> None:
    """Run the command; see `run_command`."""
    run_command(sweep, defaults, arguments)


def sweep(
    source: TaskSource, config: TaskConfig, resources: Resources, launch: ComparisonLaunch
) -> int:
    """Run what is missing, and write and print what all of it says; returns how many failed."""
    storage, task = storage_of(resources), load_task(source)
    if config.split.train_share < 1:
        raise ConfigError(
            f"split.train-share is {config.split.train_share:g}, and the shares of a comparison are those of --train-shares; set it to 1, and give the share there."
        )
    settings = _settings(source, task, config, launch)
    say_doubts(settings.values())
    trainings = plan(settings, launch.train_shares, launch.seeds, launch.latency)
    manifest = manifest_of(task, settings, storage)
    _refuse_untested(settings, manifest)
    trials = []
    for t in trainings:
        run = find(source, t.config, manifest, storage, reuse=launch.reuse, stage=t.stage)
        values = {"setting": t.setting, "share": t.share, "seed": t.seed}
        trials.append(Trial(t.name, values, t.config, run.folder))
    _refuse_equal(trials)
    name = f"{source.name}-comparison-{fingerprint([trial.folder.name for trial in trials])}"
    missing: dict[Stage, list[Trial]] = {"bundle": [], "test": []}
    for t, trial in zip(trainings, trials, strict=True):
        if not is_finished(trial.folder, t.stage):
            missing[t.stage].append(trial)
    num_missing = sum(map(len, missing.values()))
    print_missing(trials, num_missing)
    if num_missing:
        configs = list(settings.values())
        run_missing(missing, configs, source, manifest, resources, launch, name)
    if launch.latency:
        _measure_latencies([trial.folder for trial in trials])
    folder = storage / "sweeps" / name
    with writing(folder):
        return report(folder, source.name, trials)


def _settings(
    source: TaskSource, task: type[Task], config: TaskConfig, launch: ComparisonLaunch
) -> dict[str, TaskConfig]:
    settings: Mapping[str, TaskConfig] = variants_of(config, launch.variants)
    if not settings:
        settings = settings_of(source, task, config, launch.settings)
    elif launch.settings:
        for text in launch.settings:
            _refuse_overruled(text.partition("=")[0].strip(), launch.variants)
        settings = combine(settings, launch.settings)
    return {name: absolute(each) for name, each in settings.items()}


def _refuse_overruled(setting: str, variants: Sequence[str]) -> None:
    """Refuse a setting that variants have values of too: these would be lost."""
    keys = {word.partition("=")[0] for text in variants for word in text.partition(":")[2].split()}
    if setting.replace("-", "_") in {key.replace("-", "_") for key in keys}:
        raise ConfigError(
            f"--settings and --variants both give values to {setting}, and those of --variants would be lost; name it in one of them."
        )


def plan(
    settings: Mapping[str, TaskConfig],
    shares: Sequence[float],
    seeds: int,
    latency: bool = False,
) -> list[Training]:
    """List all trainings, those on the largest share first, and of all settings a seed at a time.

    Raises:
        ConfigError: there is nothing to compare.
    """
    shares = sorted(set(shares), reverse=True)
    if len(settings) * len(shares) < 2:
        raise ConfigError(
            f"There is one setting ({', '.join(settings)}) and one share of train, so nothing to compare; give --settings SETTING=A|B, "
            "two --variants or more --train-shares."
        )
    return [
        Training(
            setting=name,
            share=share,
            seed=seed,
            config=_config(config, share, seed, shares[0] / share),
            stage="bundle" if latency and share == shares[0] else "test",
        )
        for share in shares
        for seed in range(seeds)
        for name, config in settings.items()
    ]


def _config(config: TaskConfig, share: float, seed: int, longer: float) -> TaskConfig:
    config = replace(config, train=repeated(config.train, seed, longer))
    return change(config, {"split.train_share": share}) if share < 1 else config


def _refuse_equal(trials: Sequence[Trial]) -> None:
    """Refuse settings under two names that compute the same."""
    names: dict[Path, str] = {}
    for trial in trials:
        before = names.setdefault(trial.folder, trial.values["setting"])
        if before != trial.values["setting"]:
            raise ConfigError(
                f"{before!r} and {trial.values['setting']!r} compute the same; leave one of them out."
            )


def _refuse_untested(settings: Mapping[str, TaskConfig], manifest: Manifest) -> None:
    """Refuse settings that leave test empty, on which all are compared."""
    is_given = any(name and name.startswith("test") for name in manifest.declared_sets)
    for name, config in settings.items():
        if not (is_given or config.split.test or config.split.unseen_domain):
            raise ConfigError(
                f"split.test of {name!r} is 0, and settings are compared on test; give it a share, or the set in the data."
            )


def _measure_latencies(folders: Sequence[Path]) -> None:
    """Measure the shipped graphs that have not been measured, one after another and beside nothing else."""
    for folder in folders:
        run = Run(folder)
        if is_finished(folder, "bundle") and "latency_threads" not in (run.record.measured or {}):
            with run.lease():
                costs = run.record.measured or {}
                run.note(measured={**costs, **measure_latency(folder / "bundle")})


def report(folder: Path, task: str, trials: Sequence[Trial]) -> int:
    """Write and print what the trials say, which of them have failed left out; returns how many did."""
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = [read_outcome(trial.folder) for trial in trials]
    finished = [trial for trial in trials if is_finished(trial.folder)]
    summary = None
    if finished:
        summary = summarize([read_run(**trial.values, folder=trial.folder) for trial in finished])
    rows = []
    for trial, outcome in zip(trials, outcomes, strict=True):
        row = {"run": trial.folder.name, **trial.values}
        row |= {"state": outcome.state, "reason": outcome.reason, "val": outcome.score}
        if summary:
            for test, curves in summary.curves.items():
                score = curves.get(row["setting"], {}).get(row["share"])
                row[test] = score.by_seed.get(row["seed"]) if score else None
        row |= {"epochs": outcome.epochs, "seconds": outcome.seconds, **outcome.measured}
        rows.append(row)
    write_trials(folder, rows)
    if summary is None:
        refuse_all_failed(outcomes, folder)
    else:
        _report(folder, task, summary, rows)
    return sum(outcome.state == "failed" for outcome in outcomes)


def _report(folder: Path, task: str, summary: Summary, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write sweep.json and report.html, and print what they say."""
    num_finished = sum(row["state"] == "finished" for row in rows)
    seeds = len({row["seed"] for row in rows})
    means = {test: score.mean for test, score in summary.standings[0].tests.items()}
    sizes = [f"{test}: n = {m.num} rows in {m.num_groups} groups" for test, m in means.items()]
    about = (
        f"{num_finished} trainings of {len(summary.standings)} settings, {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{'; '.join(sizes)}."
    )
    shared = {"task": task, "metric": summary.metric, "about": about}
    runs = [row["run"] for row in rows]
    write_json(folder / "sweep.json", {"schema": 1, **shared, **summary.to_dict(), "trials": runs})
    costs = [key for key in COSTS if any(key in s.costs for s in summary.standings)]
    page = fill_page(
        "comparison.html",
        **shared,
        id=folder.name,
        headline=_headline(summary),
        summary=summary,
        relations={test: summary.relations(test) for test in summary.tests},
        shares=sorted({row["share"] for row in rows}),
        curves=curve_figures(summary),
        costs={key: COSTS[key] for key in costs},
        unmeasured=[COSTS[key] for key in COSTS if key not in costs],
        charts={
            test: [chart(f) for f in summary.fronts if f.set == test] for test in summary.tests
        },
        cost_names=COSTS,
        num_seeds=seeds,
        unfinished=len(rows) - num_finished,
        trials=rows,
    )
    _print(summary, about, write_page(folder, page))


def _headline(summary: Summary) -> str:
    """Say how the best on val fares on the first test set."""
    best, test = summary.standings[0], summary.tests[0]
    text = f"{best.setting} has {best.tests[test].mean.value:.3f} on {test.replace('_', ' ')}"
    if len(summary.standings) > 1:
        text = f"Best on val, {text}"
    relations = summary.relations(test)[best.setting]
    return "; ".join([text, *(f"{words} {_listed(names)}" for words, names in relations.items())])


def _listed(names: Sequence[str]) -> str:
    if len(names) > 4:
        return f"{len(names)} others"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _print(summary: Summary, about: str, path: Path) -> None:
    print(
        f"{about}\n{summary.metric.capitalize()} with 95 % intervals over groups; the best on val first.\n"
    )
    width = max(len(standing.setting) for standing in summary.standings)
    for test, curves in summary.curves.items():
        for setting, shares in curves.items():
            for share, score in shares.items():
                low, high = score.spread
                print(
                    f"  {test:12s} {setting:{width}s} {100 * share:5g} %: {score.mean}, seeds {low:.3f} to {high:.3f}"
                )
        print()
    for standing in summary.standings:
        if standing.costs:
            costs = [f"{COSTS[key]} {count(cost)}" for key, cost in standing.costs.items()]
            print(f"  {standing.setting:{width}s} {', '.join(costs)}")
    for pair in summary.pairs:
        c = pair.comparison
        print(
            f"  {c.set}: {c.first_name} - {c.name}: {signed(c.difference)}, p = {c.p_holm:.2g}, in {pair.num_agree} of {pair.num_seeds} seeds: {c.verdict}"
        )
    print(f"report: {path}")
