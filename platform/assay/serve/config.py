"""Where and how winners are served, as settings."""

import re
import socket
import ssl
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from assay.bundle.bundle import Variant
from assay.bundle.providers import Provider, refuse_idle_gpus
from assay.config import Settings
from assay.errors import ConfigError, ServeError
from assay.serve.limits import Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ApplicationConfig(Settings, section="app"):
    """How each task's application runs; the generated file may say otherwise of one."""

    variant: Variant = "fp32"
    """int8 where a bundle has such graphs."""
    provider: Provider = "auto"
    """What runs the graphs."""
    cpus: Annotated[float, Interval(ge=0, le=1000)] = 1.0
    """CPUs of a replica."""
    gpus: Annotated[float, Interval(ge=0, le=128)] = 0.0
    """GPUs of a replica."""
    min_replicas: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """Replicas at rest."""
    max_replicas: Annotated[int, Interval(ge=1, le=10_000)] = 2
    """Replicas under load."""
    batch: Annotated[int, Interval(ge=1, le=10_000)] = 4
    """Most images that go through the graphs together; 1 switches batching off, a GPU takes more."""
    queue: Annotated[int, Interval(ge=1, le=1_000_000)] = 64
    """Most requests that wait at a replica; more are answered 429."""

    def __post_init__(self) -> None:
        """Refuse fewer replicas under load than at rest, and GPUs that nothing would use."""
        super().__post_init__()
        refuse_idle_gpus(self.gpus, self.provider)
        if self.min_replicas > self.max_replicas:
            raise ConfigError(
                f"app.min-replicas is {self.min_replicas} and app.max-replicas {self.max_replicas}; give no fewer for the second."
            )


@dataclass(frozen=True, kw_only=True)
class SharedConfig(Settings, section="shared"):
    """Tasks that are asked seldom: they share replicas, which open a task's bundles when it is asked."""

    tasks: tuple[str, ...] = ()
    """Their names, or patterns in quotes such as 'line_*'; '*' is all. Every other task has replicas of its own."""
    most_open: Annotated[int, Interval(ge=1, le=100_000)] = 16
    """Most tasks whose bundles a replica holds open; the longest unused are put away."""

    def __post_init__(self) -> None:
        """Refuse what can be no task's name, as files are that a shell put in the place of a pattern."""
        super().__post_init__()
        for name in self.tasks:
            if not re.fullmatch(r"[a-z0-9_*?]{1,64}", name):
                raise ConfigError(
                    f"shared.tasks has {name[:80]!r}, which is no task's name; give names, or patterns in quotes such as 'line_*'."
                )

    def has(self, task: str) -> bool:
        """Tell whether a task shares replicas."""
        return any(fnmatchcase(task, name) for name in self.tasks)


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
    """File with the tokens, written with one where there is none; ASSAY_TOKEN goes before it."""
    open: bool = False
    """Let in everyone who reaches the port; on this machine's own address alone."""
    tls_cert: Path | None = None
    """Certificate (PEM, with its chain), to be asked by HTTPS."""
    tls_key: Path | None = None
    """Its key (PEM, without a password)."""
    keep_uncertain: bool = False
    """Keep small pictures of the least certain recent requests in memory, for the page."""
    app: ApplicationConfig = field(default_factory=ApplicationConfig)
    """How each task's application runs, and that of tasks that share replicas."""
    shared: SharedConfig = field(default_factory=SharedConfig)
    """Which tasks share replicas."""
    limits: Limits = field(default_factory=Limits)
    """What is refused, and when."""

    def __post_init__(self) -> None:
        """Refuse to stand open to the network."""
        super().__post_init__()
        if not self.host.strip():
            raise ConfigError(
                f"host is {self.host!r}, which would be every address of this machine; give one, or 0.0.0.0 if every one is meant."
            )
        if self.open and self.host not in LOOPBACK:
            raise ConfigError(
                f"open is set and host is {self.host}, so that whoever reaches this machine would be let in; leave open out, or listen on {LOOPBACK[0]}."
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("One of tls-cert and tls-key is set; give both, or none for HTTP.")

    @property
    def address(self) -> str:
        """Where it is asked."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"


def check_host(config: ServeConfig) -> None:
    """See that the address to listen on is one.

    Raises:
        ServeError: it is none that is known here.
    """
    try:
        socket.getaddrinfo(config.host, None)
    except (OSError, UnicodeError) as error:
        raise ServeError(
            f"host is {config.host}, which is no address ({error}); give one of this machine, such as {LOOPBACK[0]}."
        ) from None


def check_certificate(config: ServeConfig) -> None:
    """See that certificate and key can be used.

    Raises:
        ServeError: they cannot be read, or do not belong together.
    """
    if config.tls_cert is None or config.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            config.tls_cert, config.tls_key, lambda: ""
        )
    except (OSError, ValueError) as error:
        raise ServeError(
            f"The certificate {config.tls_cert} and the key {config.tls_key} cannot be used ({error}); give PEM files that belong together, the key without a password."
        ) from None
