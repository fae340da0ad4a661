"""What is deployed, in the form of `serve deploy`; no Ray.

`configuration` says all of it: a front that also follows the registry, one application per task that
has a champion, under `/v1/<task>`, and one of all tasks that share replicas, under `/v1`. A promotion
changes nothing but `user_config` in it.
"""

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.bundle.aliases import ALIASES, Alias
from assay.bundle.bundle import Variant
from assay.bundle.card import read_card
from assay.bundle.registry import Record, Registry
from assay.bundle.trial import try_bundle, try_together
from assay.config import from_dict, to_dict
from assay.errors import AssayError, ServeError
from assay.serve.config import ApplicationConfig, ServeConfig, SharedConfig
from assay.serve.edits import keep_edits
from assay.storage import reach

SHARED = "shared-tasks"
"""The application of tasks that share replicas; no task can be called so."""


FOLLOW_S = 2.0
"""Seconds between looks into the registry."""


AGAIN_S, AGAIN_TIMES = 60.0, 20
"""Seconds until a bundle that did not open is tried again; and times as long as that took, since other tasks wait meanwhile."""


MOST_REQUESTS = 20_000
"""Requests that a process takes at once; those that are slow to arrive must not keep others out."""


logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Refusal:
    """A record that is not followed for now."""

    record: str
    again: float
    """When it is tried again."""
    why: str


Refused = dict[tuple[str, str], Refusal]
"""By task and alias."""


def configuration(
    config: ServeConfig,
    present: Iterable[Mapping[str, Any]] = (),
    told: Collection[str] = (),
    refused: Refused | None = None,
) -> dict[str, Any]:
    """Describe for `serve deploy` what the registry has now.

    A bundle that does not open, or a record that is damaged, leaves its task at what it had.

    Args:
        config: where and how.
        present: applications of an earlier time; what was changed by hand in them is kept.
        told: flags that were given, which say otherwise all the same (such as app.queue).
        refused: what did not open of late, and is not tried again so soon; brought up to date.

    Raises:
        RegistryError: the registry cannot be read.
        ServeError: no task has a champion.
    """
    config = _absolute(config)
    registry = Registry(config.registry)
    earlier = {app["name"]: dict(app) for app in present}
    if refused is None:
        refused = {}
        _try_together(registry, earlier, config.app.variant)
    before = _config_of(earlier.get("front")) or config
    for name in registry.reserved():
        _refuse(refused, (name, ""), "", "it is a name that the server needs itself", time.time())
    followed = _follow_all(registry, earlier, config, refused)
    shared = {name: ids for name, ids in followed.items() if config.shared.has(name)}
    applications = [
        _application_now(name, config, before, earlier, told, ids)
        for name, ids in followed.items()
        if name not in shared
    ]
    alone = [app["name"] for app in applications]
    if shared:
        tasks = {"tasks": shared, "others": alone}
        applications.insert(0, _application_now(SHARED, config, before, earlier, told, tasks))
    if not applications:
        raise ServeError(
            f"No task of the registry {config.registry} has a champion{' that opens' if refused else ''}; promote a run by assay promote RUN."
        )
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.host, "port": config.port},
        "applications": [_front(sorted([*alone, *shared]), [*shared], config), *applications],
    }


def _application_now(
    name: str,
    config: ServeConfig,
    before: ServeConfig,
    earlier: Mapping[str, Mapping[str, Any]],
    told: Collection[str],
    bundles: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe an application by the flags of now, what was changed of it by hand, and what the registry has."""
    app = _application(name, config)
    if name in earlier:
        app = keep_edits(_application(name, before), earlier[name], app, told)
    (deployment,) = app["deployments"]
    user_config = deployment["user_config"] | bundles
    return app | {"deployments": [deployment | {"user_config": user_config}]}


def tasks_of(app: Mapping[str, Any]) -> list[str]:
    """Return the tasks that an application answers for."""
    (deployment,) = app["deployments"]
    own = [] if app["name"] == "front" else deployment["user_config"].get("tasks", [app["name"]])
    return list(own)


def refuse_strangers(config: ServeConfig, wanted: Mapping[str, Any]) -> None:
    """Refuse names that are to share replicas and are of no task.

    Raises:
        ServeError: there is one.
    """
    tasks = [task for app in wanted["applications"] for task in tasks_of(app)]
    for name in config.shared.tasks:
        if not any(map(SharedConfig(tasks=(name,)).has, tasks)):
            raise ServeError(
                f"shared.tasks has {name!r}, and no task that is served is called so; there are: {', '.join(sorted(tasks))}."
            )


def _follow_all(
    registry: Registry,
    earlier: Mapping[str, Mapping[str, Any]],
    config: ServeConfig,
    refused: Refused,
) -> dict[str, dict[str, str]]:
    """Return the records that each task with a champion is to be answered by, by their alias."""
    followed: dict[str, dict[str, str]] = {}
    for name in registry.tasks():
        had = _answered_by(earlier, name)
        ids: dict[str, str] = {
            alias: _follow(registry, name, alias, had, config, refused) for alias in ALIASES
        }
        if ids["champion"]:
            followed[name] = ids
    return followed


def _follow(
    registry: Registry,
    name: str,
    alias: Alias,
    had: Mapping[str, Any],
    config: ServeConfig,
    refused: Refused,
) -> str:
    """Return the record that an alias is to be answered by: that in force, if it opens, else that of before."""
    kept, record, began = str(had.get(alias, "")), None, time.time()
    try:
        record = registry.holder(name, alias)
        if record is None or record.id == kept:
            refused.pop((name, alias), None)
            return record.id if record else ""
        late = refused.get((name, alias))
        if late and late.record == record.id and began < late.again:
            return kept
        try_bundle(*_bundle_of(registry, record, had.get("variant", config.app.variant)))
    except AssayError as error:
        _refuse(refused, (name, alias), record.id if record else "", str(error), began)
        return kept
    refused.pop((name, alias), None)
    return record.id


def _try_together(
    registry: Registry, earlier: Mapping[str, Mapping[str, Any]], variant: Variant
) -> None:
    """Open in one process what a server that begins would try one after the other; what fails is left to that."""
    bundles = []
    for name in registry.tasks():
        had = _answered_by(earlier, name)
        for alias in ALIASES:
            with suppress(AssayError):  # which is said where it is followed
                record = registry.holder(name, alias)
                if record and record.id != had.get(alias):
                    bundles.append(_bundle_of(registry, record, had.get("variant", variant)))
    if len(bundles) > 1:
        try_together(bundles)


def _bundle_of(registry: Registry, record: Record, variant: Variant) -> tuple[Path, Variant]:
    """Return a record's bundle on this machine, and the variant that is wanted where it has that."""
    folder = registry.fetch(record)
    return folder, variant if read_card(folder).pipeline.get("int8") else "fp32"


def _refuse(refused: Refused, key: tuple[str, str], record: str, why: str, began: float) -> None:
    """Note that a task or an alias is not followed; say so when that is new."""
    known, now = refused.get(key), time.time()
    refused[key] = Refusal(record, now + max(AGAIN_S, AGAIN_TIMES * (now - began)), why)
    if known is None or (known.record, known.why) != (record, why):
        logger.error(f"{' '.join(key).strip()} is not followed: {why}")


def _config_of(app: Mapping[str, Any] | None) -> ServeConfig | None:
    """Return the flags that applications of an earlier time were made by, as far as they are known."""
    try:
        return _absolute(from_dict(ServeConfig, app["args"]["config"])) if app else None
    except (AssayError, KeyError, TypeError):
        return None


def _answered_by(earlier: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Return what a task had been answered by, in replicas of its own or in those that it shared."""
    shared = _user_config(earlier.get(SHARED))
    of_task = shared.get("tasks", {}).get(name, {})
    return _user_config(earlier.get(name)) or {**shared, **of_task}


def _user_config(app: Mapping[str, Any] | None) -> Mapping[str, Any]:
    values = app["deployments"][0].get("user_config") if app else None
    return values if isinstance(values, dict) else {}


def _absolute(config: ServeConfig) -> ServeConfig:
    """Spell out paths for a process that begins in another folder."""
    registry = config.registry
    if "://" not in registry:
        reach(registry)  # refuses s3:/bucket, of which this would make a folder
        registry = str(Path(registry).absolute())
    token_file = config.token_file.expanduser().absolute()
    return replace(config, registry=registry, token_file=token_file)


def _front(tasks: list[str], shared: list[str], config: ServeConfig) -> dict[str, Any]:
    deployment = {
        "name": "front",
        "user_config": {"tasks": tasks, "shared": shared, "every_s": FOLLOW_S},
        "num_replicas": 1,
        "max_ongoing_requests": MOST_REQUESTS,
        "ray_actor_options": {"num_cpus": 0},
    }
    return {
        "name": "front",
        "route_prefix": "/",
        "import_path": "assay.serve.cluster:front",
        "args": {"config": to_dict(config)},
        "deployments": [deployment],
    }


def _application(name: str, config: ServeConfig) -> dict[str, Any]:
    """Describe the application of a task, or of those that share replicas, by flags alone."""
    app, is_shared = config.app, name == SHARED
    user_config = {"variant": app.variant, "batch": app.batch, "queue": app.queue}
    user_config |= {"keep": config.keep_uncertain}
    deployment = {
        "name": "replica",
        "autoscaling_config": {
            "min_replicas": app.min_replicas,
            "max_replicas": app.max_replicas,
            "target_ongoing_requests": app.batch,
        },
        "max_ongoing_requests": MOST_REQUESTS,  # a replica refuses what exceeds its queue itself
        "graceful_shutdown_timeout_s": 30,
        "ray_actor_options": {"num_cpus": app.cpus, "num_gpus": app.gpus},
        "user_config": user_config | ({"most_open": config.shared.most_open} if is_shared else {}),
    }
    # not of other tasks, nor what user_config says: to change that starts no replica anew
    plain = replace(config, app=ApplicationConfig(), shared=SharedConfig(), keep_uncertain=False)
    return {
        "name": name,
        "route_prefix": "/v1" if is_shared else f"/v1/{name}",
        "import_path": f"assay.serve.cluster:{'shared' if is_shared else 'task'}",
        "args": {
            "config": to_dict(plain),
            **({} if is_shared else {"task": name}),
            "threads": max(1, int(app.cpus)),
            "provider": app.provider,
        },
        "deployments": [deployment],
    }
