"""Trials that are known before: the settings they compare, and running those that are missing."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.data.manifest import Manifest
from assay.errors import ConfigError, RunError
from assay.experiment.places import storage_of
from assay.experiment.resources import Resources
from assay.experiment.run import read_data
from assay.experiment.workers import cluster
from assay.runs.folder import Run
from assay.runs.record import STAGES, Stage
from assay.space import change, combinations
from assay.sweep import space_text
from assay.sweep.launch import SweepLaunch
from assay.sweep.trial import Outcome, Trial, print_outcome
from assay.sweep.tune import SweepContext, fit_in, run_trials
from assay.train.source import TaskSource, load_task
from assay.train.task import Task
from assay.train.task_config import TaskConfig


def settings_of(
    source: TaskSource, task: type[Task], config: TaskConfig, texts: Sequence[str]
) -> Mapping[str, TaskConfig]:
    """Make the settings to compare, by name: the choices combined; without any, the task and its baselines.

    Raises:
        ConfigError: a text is no choice, or names what a sweep decides.
    """
    if not texts:
        return {source.name: config} | dict(task.baselines(config))
    return combine({"": config}, texts)


def combine(bases: Mapping[str, TaskConfig], texts: Sequence[str]) -> dict[str, TaskConfig]:
    """Combine settings, by name, with all choices of SETTING=A|B.

    Raises:
        ConfigError: a text is no choice, names what a sweep decides, or a value twice, or none has several values.
    """
    settings: dict[str, TaskConfig] = {}
    for base, config in bases.items():
        space = space_text.parse_all(texts, config)
        if all(len(dimension.levels()) == 1 for dimension in space.values()):
            raise ConfigError(
                f"--settings {' '.join(texts)} names one value alone, so that nothing is compared; give several, as in SETTING=A|B, or set it for all as an option."
            )
        space_text.check(space, config)
        for levels in combinations(space):
            values = dict(zip(space, levels, strict=True))
            words = [f"{key.split('.')[-1]} {value}" for key, value in values.items()]
            name = ", ".join([base, *words] if base else words)
            if name in settings:
                raise ConfigError(f"The settings have {name!r} twice; name each value once.")
            settings[name] = _changed(name, config, values)
    return settings


def variants_of(config: TaskConfig, texts: Sequence[str]) -> dict[str, TaskConfig]:
    """Read settings that belong together, each text as "NAME: SETTING=VALUE SETTING=VALUE".

    Raises:
        ConfigError: a text is not of that form, two have one name, or a setting is not there, not
            to be compared, or not allowed that value.
    """
    variants: dict[str, TaskConfig] = {}
    for text in texts:
        name, colon, rest = (part.strip() for part in text.partition(":"))
        pairs = [part.partition("=") for part in rest.split()]
        if not (name and colon) or not all(key and sign for key, sign, _ in pairs):
            raise ConfigError(
                f'--variants has {text!r}; write "NAME: SETTING=VALUE SETTING=VALUE".'
            )
        if name in variants:
            raise ConfigError(f"--variants has {name!r} twice; give each a name of its own.")
        values = {key.replace("-", "_"): space_text.parse_scalar(value) for key, _, value in pairs}
        if len(values) < len(pairs):
            raise ConfigError(f"--variants has a setting twice in {text!r}; give it once.")
        for key in values:
            space_text.refuse_fixed(key)
        variants[name] = _changed(name, config, values)
    return variants


def _changed(name: str, config: TaskConfig, values: Mapping[str, Any]) -> TaskConfig:
    """Change settings, and say which of them have no effect."""
    try:
        changed = change(config, values)
    except ConfigError as error:
        raise ConfigError(f"{name!r} cannot be: {error}") from None
    for key, why in changed.idle().items():
        if key in values:
            print(f"{key} has no effect in {name!r}: {why}.", file=sys.stderr)
    return changed


def manifest_of(task: type[Task], settings: Mapping[str, TaskConfig], storage: Path) -> Manifest:
    """Return the images that all settings have.

    Raises:
        ConfigError: a setting has others, as where it changes how synthetic ones are drawn.
    """
    first, *others = settings
    manifest = task.manifest(settings[first], storage)
    for name in others:
        if task.manifest(settings[name], storage).fingerprint != manifest.fingerprint:
            raise ConfigError(
                f"{name!r} has other images than {first!r}; compare settings on the same images."
            )
    return manifest


class FixedTrials:
    """Trials that are known before.

    Args:
        trials: in the order in which they run.
        num: all that are to run, those of other stages among them.
        num_ended: those of them that have run.
    """

    def __init__(self, trials: Sequence[Trial], num: int, num_ended: int) -> None:
        self.waiting, self.num, self.num_ended = list(trials), num, num_ended

    def propose(self) -> Trial | None:
        """Return the next one."""
        return self.waiting.pop(0) if self.waiting else None

    def report(self, trial: Trial, epoch: int, value: float) -> None:
        """Pass over a look at val: nothing follows from it."""

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Say on the terminal that a trial has ended."""
        self.num_ended += 1
        print_outcome(self.num_ended, self.num, trial.name, outcome)


def is_finished(folder: Path, stage: Stage = "test") -> bool:
    """Tell whether a run was finished as far as a stage; one that cannot be read was not."""
    try:
        record = Run(folder).record
    except RunError:  # fails alone
        return False
    return record.state == "finished" and STAGES.index(record.stage) >= STAGES.index(stage)


def run_missing(
    missing: Mapping[Stage, Sequence[Trial]],
    settings: Sequence[TaskConfig],
    source: TaskSource,
    manifest: Manifest,
    resources: Resources,
    launch: SweepLaunch,
    sweep: str,
) -> None:
    """Run trials, each as far as its stage; what any setting needs besides images is fetched first.

    Raises:
        ResourceError: they do not fit.
    """
    for config in settings[1:]:
        load_task(source).fetch(config)
    with cluster(resources):
        reserved, parallel = fit_in(resources, launch.gpus_per_worker, launch.parallel)
        data = read_data(source, manifest, settings[0], resources, storage_of(resources))
        context = SweepContext(data, resources, "test", sweep)
        num, num_ended = sum(map(len, missing.values())), 0
        for stage, trials in missing.items():
            if trials:
                fixed = FixedTrials(trials, num, num_ended)
                run_trials(replace(context, stage=stage), fixed, reserved, parallel)
                num_ended += len(trials)


def print_missing(trials: Sequence[Trial], num_missing: int, about: str = "") -> None:
    """Say on the terminal how many trials there are, and how many of them are there already."""
    there = f"{len(trials) - num_missing} of them there already"
    print(f"{len(trials)} trainings{about}, {there}", file=sys.stderr)
