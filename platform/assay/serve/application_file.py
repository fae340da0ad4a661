"""The file of `serve deploy` as an earlier start left it and a person may have edited it since."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.config import from_dict, to_dict
from assay.errors import ConfigError, ServeError
from assay.files import read_bytes
from assay.serve.config import ApplicationConfig, SharedConfig
from assay.serve.deployment import SHARED

MAX_NODES = 1_000_000
"""Values of a file; a task has some sixty."""

OPTIONS = {
    "user_config": {"variant": "variant", "batch": "batch", "queue": "queue"},
    "autoscaling_config": {"min_replicas": "min_replicas", "max_replicas": "max_replicas"},
    "ray_actor_options": {"num_cpus": "cpus", "num_gpus": "gpus"},
}
"""Which setting of `ApplicationConfig` an option of a deployment is."""

TOLD = frozenset({*OPTIONS["user_config"], "keep", "champion", "challenger"})
"""What the replicas of a task are told."""

TOLD_SHARED = frozenset({*OPTIONS["user_config"], "keep", "most_open", "tasks", "others"})
"""What replicas that tasks share are told."""


def read_applications(path: Path) -> list[dict[str, Any]]:
    """Read the applications of a file in the form of `serve deploy`; none where there is no file.

    Raises:
        ServeError: it is none, names something twice, or has a value that no flag would take.
    """
    import yaml

    from assay.strict_yaml import parse_yaml  # the server itself reads no YAML

    try:
        if not path.exists():
            return []
        applications = parse_yaml(read_bytes(path), MAX_NODES)["applications"]
        for app in applications:
            (deployment,) = app["deployments"]
            if not isinstance(app["name"], str) or not isinstance(app.get("args", {}), dict):
                raise TypeError(f"the application {app['name']!r} has no name or no arguments")
            deployment["name"]
            if app["name"] != "front":
                _check_options(app["name"], deployment, app.get("args", {}))
        (name, num), *_ = Counter(app["name"] for app in applications).most_common(1) or [("", 0)]
        if num > 1:
            raise ValueError(f"the application {name!r} stands {num} times")
        return list(applications)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200]
        raise ServeError(
            f"{path} is no file of `serve deploy` as this command writes it ({type(error).__name__}: {why}); correct it, or take it away to have it written anew."
        ) from None


def _check_options(name: str, deployment: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Refuse options that no flag would give, by which replicas would not start or answer nobody."""
    given = {key: deployment.get(key) for key in OPTIONS}
    sections = {key: section for key, section in given.items() if section is not None}
    for key, section in sections.items():
        if not isinstance(section, dict):
            raise TypeError(f"{key} of {name} is {section!r}")
    told = sections.get("user_config", {})
    unknown = [key for key in told if key not in (TOLD_SHARED if name == SHARED else TOLD)]
    if unknown:
        raise ValueError(f"user_config of {name} has {unknown[0]!r}, which replicas do not know")
    values = {
        setting: section[option]
        for key, section in sections.items()
        for option, setting in OPTIONS[key].items()
        if option in section
    }
    values |= {"provider": args["provider"]} if "provider" in args else {}
    tasks = told.get("tasks", {})
    if not isinstance(tasks, dict) or not all(isinstance(ids, dict) for ids in tasks.values()):
        raise TypeError(f"tasks of {name} is {str(tasks)[:80]}")
    try:
        taken = to_dict(from_dict(ApplicationConfig, values))
        if "most_open" in told:
            values["most_open"] = told["most_open"]
            taken |= to_dict(from_dict(SharedConfig, {"most_open": told["most_open"]}))
    except ConfigError as error:
        raise ValueError(f"{name}: {error}".rstrip(".")) from None
    wrong = [setting for setting, value in values.items() if taken[setting] != value]
    if wrong:
        raise ValueError(f"{name}: {wrong[0]} is {values[wrong[0]]!r}")
