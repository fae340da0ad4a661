"""The command of a sweep: what all sweeps are asked, and how they end."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

from annotated_types import Interval

from assay.errors import ConfigError, one_sentence
from assay.experiment.options import Launch, option, parse_with
from assay.experiment.resources import Resources
from assay.train.source import TaskSource, load_task
from assay.train.task_config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class SweepLaunch(Launch):
    """The task, and how many of its trials run at once."""

    task: Path = Path("tasks/fingerprint.py")
    """The task file."""
    parallel: Annotated[int, Interval(ge=0, le=10_000)] = 0
    """Trials at once; 0: as many as fit."""
    gpus_per_worker: Annotated[float, Interval(gt=0, le=128)] = 1.0
    """GPUs of each worker, with --gpus; below 1 several trials share one (not checked on a GPU yet)."""


L = TypeVar("L", bound=SweepLaunch)


Sweep = Callable[[TaskSource, TaskConfig, Resources, L], int]
"""Runs a sweep; returns how many trials failed."""


def given_of(names: Sequence[str], arguments: Sequence[str] | None) -> list[str]:
    """Return those of some options that the command line has, whatever their value."""
    words = sys.argv[1:] if arguments is None else arguments
    return [name for name in names if option(words, f"--{name}") is not None]


def run_command(sweep: Sweep[L], defaults: L, arguments: Sequence[str] | None) -> None:
    """Run a sweep as the command line asks for it.

    Exits with 2 and one sentence where the user can mend something, or no trial came to its end, with 1 where some failed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_sentence():
        source = TaskSource.read(option(arguments, "--task") or defaults.task)
        task = load_task(source)
        if defaults.preset not in task.presets():
            defaults = replace(defaults, preset="")
        config, resources, launch = parse_with(task, arguments, defaults)
        if resources.workers == 0:
            raise ConfigError("--workers is 0, and trials need Ray; give 1 or more.")
        if resources.workers_max:
            raise ConfigError(
                "--workers is a range, and trials keep their workers; give one number."
            )
        if launch.again:
            print("--again has no effect: a sweep runs what is missing alone.", file=sys.stderr)
        failed = sweep(source, config, resources, launch)
    if failed:
        raise SystemExit(1)
