"""The command line of a task: its settings, where it runs, and how the command behaves."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from assay.config import Settings, from_dict, to_dict
from assay.errors import ConfigError
from assay.experiment.resources import Resources
from assay.files import plain_paths, read_json
from assay.train.task import Task
from assay.train.task_config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class Launch(Settings):
    """How the command itself behaves."""

    preset: str = ""
    """Named settings to start from; other options change them."""
    config: Path | None = None
    """A run's config.json to replay; other options change it."""
    again: bool = False
    """Train once more although the run exists."""
    reuse: bool = False
    """Take a finished run of the same settings and images although the code has changed since."""


L = TypeVar("L", bound=Launch)


def parse(task: type[Task], arguments: Sequence[str]) -> tuple[TaskConfig, Resources, Launch]:
    """Read settings from the command line, on top of a preset or a saved config.

    Raises:
        ConfigError: the preset or the saved config does not exist or does not fit, or a path is empty.
    """
    config, resources, launch = parse_with(task, arguments, Launch())
    say_doubts([config])
    return config, resources, launch


def say_doubts(configs: Iterable[TaskConfig]) -> None:
    """Print what is doubtful about settings to stderr, each sentence once."""
    for doubt in dict.fromkeys(doubt for config in configs for doubt in config.doubts()):
        print(doubt, file=sys.stderr)


def parse_with(
    task: type[Task], arguments: Sequence[str], launch: L
) -> tuple[TaskConfig, Resources, L]:
    """Read them where the command has options of its own, whose defaults are `launch`; doubts are said by who knows all settings."""
    arguments = plain_paths(arguments)
    presets = task.presets()
    preset = option(arguments, "--preset")
    replayed = option(arguments, "--config")
    if preset is not None and replayed is not None:
        raise ConfigError(
            f"--preset {preset} and --config {replayed} both name all settings to start from; give one of them."
        )
    preset = launch.preset or next(iter(presets)) if preset is None else preset
    if preset not in presets:
        raise ConfigError(f"--preset is {preset!r}; allowed: {', '.join(presets)}.")
    default = presets[preset] if replayed is None else _read_config(task, Path(replayed))
    fields = [
        _group("what", task.Config, default),
        _group("resources", Resources, Resources()),
        _group("launch", type(launch), dataclasses.replace(launch, preset=preset)),
    ]
    command = dataclasses.make_dataclass("Command", fields, frozen=True, kw_only=True)
    about = f"{sys.modules[task.__module__].__doc__}\nPresets: {', '.join(presets)}."
    parsed: Any = tyro.cli(
        command, args=_spread(arguments), description=about, config=(tyro.conf.AvoidSubcommands,)
    )
    _refuse_repeated(arguments, parsed)
    for name, why in _given_in_vain(parsed.what, default).items():
        print(f"--{name} has no effect: {why}.", file=sys.stderr)
    return parsed.what, parsed.resources, parsed.launch


def _refuse_repeated(arguments: Sequence[str], parsed: Any) -> None:
    """Refuse an option of several values that is given twice, where the second would take the place of the first; of one value say it.

    Raises:
        ConfigError: one is.
    """
    words = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    names = [re.sub(r"^--(.*\.)?no-", r"--\1", word).replace("_", "-") for word in words]
    for name in {name for name in names if names.count(name) > 1}:
        for holder in (parsed.what, parsed.resources, parsed.launch):
            value = holder
            for part in name.removeprefix("--").replace("-", "_").split("."):
                value = getattr(value, part, None)
            if isinstance(value, tuple):
                raise ConfigError(
                    f"{name} is given twice, and the second would take the place of the first; give all its values behind one."
                )
            if value is not None:
                print(
                    f"{name} is given twice, and its last value, {value}, counts.", file=sys.stderr
                )


def _spread(arguments: Sequence[str]) -> list[str]:
    """Write `--workers 2..8` as the two settings that it stands for."""
    words: list[str] = []
    for word in arguments:
        is_range = re.fullmatch(r"(--workers=)?(\d+)\.\.(\d+)", word)
        if is_range and (is_range[1] or words[-1:] == ["--workers"]):
            words += [f"{is_range[1] or ''}{is_range[2]}", "--workers-max", is_range[3]]
        else:
            words.append(word)
    return words


def _given_in_vain(config: TaskConfig, default: TaskConfig) -> dict[str, str]:
    """Name options that were given other values than the preset's and have no effect, with why."""
    given, before = to_dict(config), to_dict(default)

    def value(settings: Any, name: str) -> Any:
        for part in name.split("."):
            settings = settings[part]
        return settings

    idle = config.idle().items()
    return {
        name.replace("_", "-"): why
        for name, why in idle
        if value(given, name) != value(before, name)
    }


def _group(name: str, kind: type, default: Any) -> tuple[str, Any, Any]:
    """Make a field of the command whose own fields are options without a prefix."""
    annotated = Annotated[kind, tyro.conf.arg(name="")]  # type: ignore[valid-type]
    return name, annotated, dataclasses.field(default=default)


def option(arguments: Sequence[str], name: str) -> str | None:
    """Return the last value given to an option, needed before the parser that it decides about."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument(name, dest="value")
    return early.parse_known_args(arguments)[0].value


def _read_config(task: type[Task], path: Path) -> TaskConfig:
    return from_dict(task.Config, read_json(path, ConfigError, "give a run's config.json"))
