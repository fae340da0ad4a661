"""What a person changed in the file of an earlier time, and what flags change of it; no Ray.

An edit is kept, except where a flag says otherwise: a value counts as changed where the file's own
flags, which it holds too, would not have given it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from assay.bundle.aliases import ALIASES

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
    "most_open": "shared.most-open",
    "keep": "keep-uncertain",
}
"""Which flag speaks of an option."""


_PROMOTED = (*ALIASES, "tasks", "shared", "others")
"""What replicas and the front are told of which tasks and bundles there are."""


_NOT_EDITED = ("max_ongoing_requests", "max_queued_requests")
"""Options by which an earlier Assay queued; a replica does that itself (see app.queue)."""


def keep_edits(
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
    given |= {name: app["args"][name] for name in ("task", "config") if name in app["args"]}
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
    sharing = new.get("front", {}).get("user_config.shared", [])
    for name, leaves in old.items():
        if name not in new:
            yield f"{name} {'shares replicas now' if name in sharing else 'is not served any more'}"
            continue
        for key, value in leaves.items():
            later = new[name].get(key, "nothing")
            is_told = name == "front" or not key.startswith("args.config.")
            if later != value and is_told and not _is_promoted(key):
                yield f"{name}: {key.removeprefix('args.config.')} was {value}, is {later}"


def _is_promoted(key: str) -> bool:
    section, _, name = key.rpartition(".")
    return section.startswith("user_config") and name in _PROMOTED


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif path == "deployments":
        for item in value:
            yield from _leaves(item)
    else:
        yield path, value
