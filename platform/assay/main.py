"""What a task script does: `main(__file__)`.

Parses the command line from the task's settings, builds manifest, store and split, trains the run
and its baselines, judges them, ships the bundle, and prints the numbers. Run again, it recognises
what is finished and shows it.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

# before Ray is imported: workers use this environment as it is
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import tyro

from assay import report
from assay.config import from_dict, to_dict
from assay.errors import ConfigError, one_sentence
from assay.experiment import absolute, complete, find, is_whole, prepare, read_data, storage_of
from assay.judge import is_decided, judge, set_beside, show
from assay.loop import write_json
from assay.run import Run
from assay.task import Task, TaskConfig, TaskSource, load_task
from assay.workers import Where, cluster


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the command itself behaves."""

    preset: str = ""
    """Named settings to start from; other options change them."""
    config: Path | None = None
    """A run's config.json to replay; other options change it."""
    again: bool = False
    """Train once more although the run exists."""


def main(path: str, arguments: Sequence[str] | None = None) -> None:
    """Run a task script; exits with 2 and one sentence where the user can mend something."""
    with one_sentence():
        source = TaskSource.read(path)
        task = load_task(source)
        config, where, launch = parse(task, sys.argv[1:] if arguments is None else arguments)
        experiment(source, config, where, again=launch.again)


L = TypeVar("L", bound=Launch)


def parse(task: type[Task], arguments: Sequence[str]) -> tuple[TaskConfig, Where, Launch]:
    """Settings from the command line, on top of a preset or a saved config.

    Raises:
        ConfigError: the preset or the saved config does not exist or does not fit.
    """
    return parse_with(task, arguments, Launch())


def parse_with(
    task: type[Task], arguments: Sequence[str], launch: L
) -> tuple[TaskConfig, Where, L]:
    """The same where the command has options of its own, whose defaults are `launch`."""
    presets = task.presets()
    first = launch.preset or next(iter(presets))
    chosen, saved = option(arguments, "--preset") or first, option(arguments, "--config")
    if chosen not in presets:
        raise ConfigError(f"--preset is {chosen!r}; allowed: {', '.join(presets)}.")
    default = presets[chosen] if saved is None else _read_config(task, Path(saved))
    fields = [
        (
            "what",
            Annotated[task.Config, tyro.conf.arg(name="")],
            dataclasses.field(default=default),
        ),
        ("where", Annotated[Where, tyro.conf.arg(name="")], dataclasses.field(default=Where())),
        (
            "launch",
            Annotated[type(launch), tyro.conf.arg(name="")],
            dataclasses.field(default=dataclasses.replace(launch, preset=chosen)),
        ),
    ]
    command = dataclasses.make_dataclass("Command", fields, frozen=True, kw_only=True)
    about = f"{sys.modules[task.__module__].__doc__}\nPresets: {', '.join(presets)}."
    parsed: Any = tyro.cli(
        command, args=list(arguments), description=about, config=(tyro.conf.AvoidSubcommands,)
    )
    return parsed.what, parsed.where, parsed.launch


def option(arguments: Sequence[str], name: str) -> str | None:
    """The last value given to an option, needed before the parser that it decides about."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument(name, dest="value")
    return early.parse_known_args(arguments)[0].value


def _read_config(task: type[Task], path: Path) -> TaskConfig:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--config {path} cannot be read ({error}); give a run's config.json."
        ) from None
    return from_dict(task.Config, values)


def experiment(source: TaskSource, config: TaskConfig, where: Where, again: bool = False) -> Run:
    """Train, judge and show a run and its baselines; what is finished is only shown.

    A finished run that was judged by other settings of `decide` is judged again, which is recorded.
    """
    storage = storage_of(where)
    task = load_task(source)
    config = absolute(config)
    manifest = task.manifest(config, storage)
    named = {"": config} | dict(task.baselines(config))
    runs = {name: find(source, c, manifest, storage, again) for name, c in named.items()}
    if not all(is_whole(run) for run in runs.values()):
        with cluster(where):
            data = read_data(source, manifest, config, where, storage)
            for name, run in runs.items():
                if not is_whole(run):
                    with run.lease():
                        prepared = prepare(data, named[name], name or source.name)
                        complete(prepared, run, where)
    folders = {name or source.name: run.folder for name, run in runs.items()}
    for name, run in runs.items():
        if not is_decided(run.folder, named[name]):
            with run.lease():
                judge(run.folder, task, named[name], storage)
                write_json(run.folder / "config.json", to_dict(named[name]))
    _write_reports(folders)
    show(folders)
    print(f"report: {runs[''].folder / 'report.html'}")
    return runs[""]


def _write_reports(folders: Mapping[str, Path]) -> None:
    """Compare the runs and make their pages, where judging is newer than the page."""
    newest = max((folder / "result.json").stat().st_mtime for folder in folders.values())
    for folder in folders.values():
        page = folder / "report.html"
        if not page.exists() or page.stat().st_mtime < newest:
            if folder == next(iter(folders.values())):
                set_beside(folders)
            report.write(folder)
