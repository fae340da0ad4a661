"""Where and how winners are served, as settings and in the form of `serve deploy`; no Ray.

`configuration` says all of it: a front that also follows the registry, and one application per
task that has a champion. A promotion changes nothing but `user_config` in it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Interval

from assay.bundle.aliases import ALIASES
from assay.bundle.bundle import Provider, Variant
from assay.bundle.registry import Registry
from assay.config import Settings, to_dict
from assay.errors import ConfigError, ServeError
from assay.serve.limits import Limits
from assay.session import write_secret

LOOPBACK = ("127.0.0.1", "localhost", "::1")


FOLLOW_S = 2.0
"""Seconds between looks into the registry."""


@dataclass(frozen=True, kw_only=True)
class ApplicationConfig(Settings, section="app"):
    """How each task's application runs; the generated file may say otherwise of one."""

    variant: Variant = "fp32"
    """int8 where a bundle has such graphs."""
    provider: Provider = "auto"
    """What runs the graphs."""
    cpus: Annotated[float, Ge(0)] = 1.0
    """CPUs of a replica."""
    gpus: Annotated[float, Ge(0)] = 0.0
    """GPUs of a replica."""
    min_replicas: Annotated[int, Ge(1)] = 1
    """Replicas at rest."""
    max_replicas: Annotated[int, Ge(1)] = 2
    """Replicas under load."""
    batch: Annotated[int, Ge(1)] = 4
    """Most images that go through the graphs together; 1 switches batching off, a GPU takes more."""
    queue: Annotated[int, Ge(1)] = 64
    """Most waiting requests; more are answered 429."""

    def __post_init__(self) -> None:
        """Refuse fewer replicas under load than at rest."""
        super().__post_init__()
        if self.min_replicas > self.max_replicas:
            raise ConfigError(
                f"app.min-replicas is {self.min_replicas} and app.max-replicas {self.max_replicas}; give no fewer for the second."
            )


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Settings):
    """Where and how the winners of a registry are served."""

    registry: str = "registry"
    """Folder or URI of the registry."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs a token."""
    port: Annotated[int, Interval(ge=0, le=65535)] = 8000
    """Port to listen on."""
    token_file: Path = Path("~/.assay/token")
    """File with the token, written where there is none; ASSAY_TOKEN goes before it."""
    open: bool = False
    """Let in everyone who reaches the port; on this machine's own address alone."""
    keep_uncertain: bool = False
    """Keep small pictures of the least certain recent requests in memory, for the page."""
    app: ApplicationConfig = field(default_factory=ApplicationConfig)
    """How each task's application runs."""
    limits: Limits = field(default_factory=Limits)
    """What is refused, and when."""

    def __post_init__(self) -> None:
        """Refuse to stand open to the network."""
        super().__post_init__()
        if self.open and self.host not in LOOPBACK:
            raise ConfigError(
                f"open is set and host is {self.host}, so that whoever reaches this machine would be let in; leave open out, or listen on {LOOPBACK[0]}."
            )


def configuration(config: ServeConfig, present: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Describe for `serve deploy` what the registry has now.

    Args:
        config: where and how.
        present: applications of an earlier time, whose options are kept.

    Raises:
        RegistryError: the registry cannot be read.
        ServeError: no task has a champion.
    """
    config = _absolute(config)
    registry = Registry(config.registry)
    earlier = {app["name"]: dict(app) for app in present}
    tasks, applications = [], []
    for name in registry.tasks():
        records = {alias: registry.holder(name, alias) for alias in ALIASES}
        if records["champion"] is None:
            continue
        app = earlier.get(name) or _application(name, config)
        (deployment,) = app["deployments"]
        ids = {alias: record.id if record else "" for alias, record in records.items()}
        user_config = deployment["user_config"] | ids
        tasks.append(name)
        applications.append(app | {"deployments": [deployment | {"user_config": user_config}]})
    if not tasks:
        raise ServeError(
            f"No task of the registry {config.registry} has a champion; promote a run by assay promote RUN."
        )
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.host, "port": config.port},
        "applications": [_front(tasks, config), *applications],
    }


def _absolute(config: ServeConfig) -> ServeConfig:
    """Spell out paths for a process that begins in another folder."""
    registry = config.registry
    if "://" not in registry:
        registry = str(Path(registry).absolute())
    token_file = config.token_file.expanduser().absolute()
    return replace(config, registry=registry, token_file=token_file)


def _front(tasks: list[str], config: ServeConfig) -> dict[str, Any]:
    deployment = {
        "name": "front",
        "user_config": {"tasks": tasks, "every_s": FOLLOW_S},
        "num_replicas": 1,
        "max_ongoing_requests": 1000,
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
        # what exceeds a batch waits in front of all replicas, for the one that is first free
        "max_ongoing_requests": app.batch + 2,
        "max_queued_requests": app.queue,
        "graceful_shutdown_timeout_s": 30,
        "ray_actor_options": {"num_cpus": app.cpus, "num_gpus": app.gpus},
        "user_config": {"variant": app.variant, "batch": app.batch, "keep": config.keep_uncertain},
    }
    return {
        "name": name,
        "route_prefix": None,
        "import_path": "assay.serve.cluster:task",
        "args": {
            "registry": config.registry,
            "task": name,
            "threads": max(1, int(app.cpus)),
            "provider": app.provider,
            "image_mp": config.limits.image_mp,
            "decode_s": config.limits.decode_s,
        },
        "deployments": [deployment],
    }


def read_token(config: ServeConfig, create: bool = False) -> str | None:
    """Return the token, None where everyone is let in.

    Raises:
        ServeError: there is none, or its file can be read by others.
    """
    if config.open:
        return None
    token, path = os.environ.get("ASSAY_TOKEN", ""), config.token_file.expanduser()
    if token:
        return token
    if create and not path.exists():
        write_secret(path)
    try:
        token, mode = path.read_text().strip(), path.stat().st_mode
    except OSError:
        raise ServeError(
            f"There is no token in ASSAY_TOKEN nor in {path}; write one there, readable by its owner alone."
        ) from None
    if not token or mode & 0o077:
        raise ServeError(
            f"The token file {path} is {'empty' if not token else 'open to others'}; write a token into it and chmod 600 it."
        )
    return token
