"""What is deployed, in the form of `serve deploy`; no Ray.

`configuration` says all of it: a front that also follows the registry, and one application per
task that has a champion, under `/v1/<task>`. A promotion changes nothing but `user_config` in it.

What a person changed in the file of an earlier time is kept, except where a flag says otherwise: a
value counts as changed where the file's own flags, which it holds too, would not have given it.
"""

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.bundle.aliases import ALIASES, Alias
from assay.bundle.bundle import Variant
from assay.bundle.card import read_card
from assay.bundle.registry import Record, Registry
from assay.bundle.trial import try_bundle
from assay.config import from_dict, to_dict
from assay.errors import AssayError, ServeError
from assay.serve.config import ApplicationConfig, ServeConfig
from assay.storage import reach

FOLLOW_S = 2.0
"""Seconds between looks into the registry."""


AGAIN_S, AGAIN_TIMES = 60.0, 20
"""Seconds until a bundle that did not open is tried again; and times as long as that took, since other tasks wait meanwhile."""


MOST_REQUESTS = 20_000
"""Requests that a process takes at once; those that are slow to arrive must not keep others out."""


FLAGS = {
    "variant": "app.variant",
    "provider": "app.provider",
    "num_cpus": "app.cpus",
    "threads": "app.cpus",
    "num_gpus": "app.gpus",
    "min_replicas": "app.min-replicas",
    "max_replicas": "app.max-replicas",
    "batch": "app.batch",
    "target_ongoing_requests": "app.batch",
    "queue": "app.queue",
    "keep": "keep-uncertain",
}
"""Which flag speaks of an option."""


_NOT_EDITED = ("max_ongoing_requests", "max_queued_requests")
"""Options by which an earlier Assay queued; a replica does that itself (see app.queue)."""


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
    config, refused = _absolute(config), {} if refused is None else refused
    registry = Registry(config.registry)
    earlier = {app["name"]: dict(app) for app in present}
    before = _config_of(earlier.get("front")) or config
    for name in registry.reserved():
        _refuse(refused, (name, ""), "", "it is a name that the server needs itself", time.time())
    applications = []
    for name in registry.tasks():
        app = _application(name, config)
        if name in earlier:
            app = _keep_edits(_application(name, before), earlier[name], app, told)
        (deployment,) = app["deployments"]
        had = _user_config(earlier.get(name))
        ids = {alias: _follow(registry, name, alias, had, config, refused) for alias in ALIASES}
        if ids["champion"]:
            user_config = deployment["user_config"] | ids
            applications.append(app | {"deployments": [deployment | {"user_config": user_config}]})
    if not applications:
        raise ServeError(
            f"No task of the registry {config.registry} has a champion{' that opens' if refused else ''}; promote a run by assay promote RUN."
        )
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.host, "port": config.port},
        "applications": [_front([app["name"] for app in applications], config), *applications],
    }


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
        _try(registry, record, had.get("variant", config.app.variant))
    except AssayError as error:
        _refuse(refused, (name, alias), record.id if record else "", str(error), began)
        return kept
    refused.pop((name, alias), None)
    return record.id


def _try(registry: Registry, record: Record, variant: Variant) -> None:
    """Open a record's bundle apart.

    Raises:
        AssayError: it is gone, or does not open.
    """
    folder = registry.fetch(record)
    try_bundle(folder, variant if read_card(folder).pipeline.get("int8") else "fp32")


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


def _user_config(app: Mapping[str, Any] | None) -> Mapping[str, Any]:
    values = app["deployments"][0].get("user_config") if app else None
    return values if isinstance(values, dict) else {}


def _keep_edits(
    before: dict[str, Any], edited: Mapping[str, Any], app: dict[str, Any], told: Collection[str]
) -> dict[str, Any]:
    """Return an application with what was changed by hand in its form of an earlier time.

    Args:
        before: what the flags of that time gave.
        edited: what the file had.
        app: what the flags give now.
        told: flags that were given.
    """
    # an argument that an earlier Assay did not know is no argument that was taken away, nor one of its own a new one
    given = app["args"] | {key: edited["args"][key] for key in edited["args"] if key in app["args"]}
    given |= {name: app["args"][name] for name in ("task", "config")}
    ours = {"args": given, "route_prefix": app["route_prefix"]}
    kept: dict[str, Any] = _merge(before, {**edited, **ours}, app, told)
    (was,), (now,), (new,) = before["deployments"], edited["deployments"], app["deployments"]
    now = {key: new.get(key) if key in _NOT_EDITED else value for key, value in now.items()}
    now = {key: value for key, value in now.items() if value is not None}
    return kept | {"deployments": [_merge(was, now, new, told)]}


def _merge(before: Any, edited: Any, new: Any, told: Collection[str], key: str = "") -> Any:
    if not (isinstance(before, dict) and isinstance(edited, dict) and isinstance(new, dict)):
        is_kept = edited != before and new == before and FLAGS.get(key) not in told
        return edited if is_kept else new
    merged: dict[str, Any] = {}
    for name in {**new, **edited}:
        if name not in new:
            merged[name] = edited[name]
        elif name in edited:
            merged[name] = _merge(before.get(name), edited[name], new[name], told, name)
        elif name not in before:
            merged[name] = new[name]
    return merged


def changes(
    before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]
) -> Iterator[str]:
    """Tell where applications differ from those of an earlier time, but for promotions."""
    old = {app["name"]: dict(_leaves(app)) for app in before}
    new = {app["name"]: dict(_leaves(app)) for app in after}
    for name, leaves in old.items():
        if name not in new:
            yield f"{name} is not served any more"
            continue
        for key, value in leaves.items():
            later = new[name].get(key, "nothing")
            is_told = name == "front" or not key.startswith("args.config.")
            if later != value and is_told and key.rpartition(".")[2] not in (*ALIASES, "tasks"):
                yield f"{name}: {key.removeprefix('args.config.')} was {value}, is {later}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif path == "deployments":
        for item in value:
            yield from _leaves(item)
    else:
        yield path, value


def _absolute(config: ServeConfig) -> ServeConfig:
    """Spell out paths for a process that begins in another folder."""
    registry = config.registry
    if "://" not in registry:
        reach(registry)  # refuses s3:/bucket, of which this would make a folder
        registry = str(Path(registry).absolute())
    token_file = config.token_file.expanduser().absolute()
    return replace(config, registry=registry, token_file=token_file)


def _front(tasks: list[str], config: ServeConfig) -> dict[str, Any]:
    deployment = {
        "name": "front",
        "user_config": {"tasks": tasks, "every_s": FOLLOW_S},
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
    app = config.app
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
        "user_config": {
            "variant": app.variant,
            "batch": app.batch,
            "queue": app.queue,
            "keep": config.keep_uncertain,
        },
    }
    return {
        "name": name,
        "route_prefix": f"/v1/{name}",
        "import_path": "assay.serve.cluster:task",
        "args": {
            # not of other tasks, nor what user_config says: to change that starts no replica anew
            "config": to_dict(replace(config, app=ApplicationConfig(), keep_uncertain=False)),
            "task": name,
            "threads": max(1, int(app.cpus)),
            "provider": app.provider,
        },
        "deployments": [deployment],
    }
