"""Commands that answer: `assay serve` over HTTP, `assay predict` for folders and lists."""

import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from annotated_types import Interval

from assay.bundle.bundle import Variant
from assay.bundle.providers import provider_with
from assay.cluster import nodes
from assay.errors import ConfigError, ImageError, ServeError
from assay.files import write_whole
from assay.runs import listing
from assay.runs.mirror import needs_judged
from assay.runs.remote import open_storage
from assay.serve.application_file import read_applications
from assay.serve.config import ServeConfig, check_certificate, check_host
from assay.serve.deployment import configuration, refuse_strangers
from assay.serve.edits import changes
from assay.serve.tokens import open_tokens

_SERVE = ServeConfig()


@dataclass(frozen=True)
class Serve:
    """Serve the champions of a registry; a later promotion reaches the cluster by itself.

    Without RAY_ADDRESS on a Ray of this machine, until Ctrl-C; else on that cluster, which goes on.
    """

    config: Annotated[ServeConfig, tyro.conf.arg(name="")] = _SERVE
    """Where and how."""
    file: Path = Path("cluster/serve.yaml")
    """What is deployed is written here; options of applications may be changed in it, and flags go before them."""
    wait_s: Annotated[float, Interval(ge=0, le=604_800)] = 900.0
    """Seconds to wait for nodes on a cluster that can grow; 0: take what is there, as on one that cannot."""


def serve(command: Serve, words: Sequence[str]) -> None:
    """Serve by a command that was given in these words."""
    import yaml

    config, file = command.config, command.file
    open_tokens(config, create=True)
    check_certificate(config)
    check_host(config)
    if not 0 <= command.wait_s < math.inf:
        raise ConfigError(f"wait-s is {command.wait_s}; it must be a finite number, at least 0.")
    if not os.environ.get("RAY_ADDRESS"):  # a cluster's nodes have an onnxruntime of their own
        provider_with(config.app.gpus, config.app.provider)
    _guard_ray()
    from assay.serve import control

    told = {word.partition("=")[0].lstrip("-").replace("_", "-") for word in words}
    told |= {name.removeprefix("no-") for name in told}
    present = read_applications(file)
    wanted = configuration(config, present, told)
    refuse_strangers(config, wanted)
    for change in changes(present, wanted["applications"]):
        print(f"{file} is changed by the flags: {change}")
    _write(file, yaml.safe_dump(wanted, sort_keys=False))
    with control.cluster(config) as address, suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # requests under way are answered
        waiting = _room(wanted, command.wait_s)
        control.deploy(wanted)
        names = control.wait(config, *waiting)
        print(f"{address}/v1/{{{','.join(names)}}}; the page: {address}/", flush=True)
        if not config.open and not os.environ.get("ASSAY_TOKEN"):
            print(f"token: {config.token_file}", flush=True)
        if not os.environ.get("RAY_ADDRESS"):
            signal.pause()


def _room(wanted: Mapping[str, Any], wait_s: float) -> tuple[float, Callable[[], None]]:
    """Return how long to wait for what is to be deployed, and what tells of nodes meanwhile.

    The replicas themselves are what the autoscaler hears of.

    Raises:
        ResourceError: the replicas at rest need more than the cluster may have.
    """
    bundles = []
    for app in wanted["applications"]:
        for deployment in app["deployments"]:
            options = deployment.get("ray_actor_options", {})
            cpus, gpus = options.get("num_cpus", 1), options.get("num_gpus", 0)
            one = {"CPU": float(cpus), "GPU": float(gpus)}
            scaling = deployment.get("autoscaling_config", {})
            bundles += [one] * scaling.get("min_replicas", 1)
    need, is_growing = nodes.total(bundles), wait_s > 0 and nodes.growth() is not None
    most = nodes.maximum() if is_growing else nodes.up()
    if most is not None:
        lower = "lower --app.cpus, --app.gpus or --app.min-replicas"
        nodes.refuse_beyond(need, most, lower, "The replicas at rest")
    if not is_growing:
        return 300.0, lambda: None
    return wait_s, nodes.Waiting(need, wait_s).look


def _write(file: Path, text: str) -> None:
    """Write what is deployed.

    Raises:
        ServeError: it cannot be written.
    """
    try:
        write_whole(file, text.encode())
    except OSError as error:
        raise ServeError(
            f"{file} cannot be written ({error.strerror}); name another --file."
        ) from None


def _guard_ray() -> None:
    """Let Ray's own ports ask for a token, and listen on this machine's own address where no other joins.

    Unless the user says otherwise; Ray reads both as it is imported.
    """
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if not os.environ.get("RAY_ADDRESS"):
            # a Ray of several machines is switched off, by the name of where that is the default
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def predict(
    bundle: Annotated[str, tyro.conf.Positional],
    paths: Annotated[list[Path], tyro.conf.Positional],
    out: Path = Path("predictions"),
    variant: Variant = "fp32",
    overlays: bool = True,
    storage: str = "runs",
) -> None:
    """Judge images without a server, in a process per CPU; the same command again does what is left.

    Args:
        bundle: A bundle's folder, or a run that holds one, by its folder or name.
        paths: Images, folders of images (a store too), or tables (CSV, Parquet) with a column `image`; where they
            have a column `group` too, its images are views of one part and judged together. What cannot be read is
            a line of bad.csv; only where nothing can, the exit code is 2.
        out: Folder of the answers, new or of this command.
        variant: The graphs to use.
        overlays: Draw patches or masks over each image.
        storage: Folder or URI of the runs, where a run is named.
    """
    if not paths:
        raise ConfigError(
            f"assay predict {bundle} names nothing to judge; give images, folders of them, or tables with a column 'image'."
        )
    _guard_ray()
    from assay.serve import offline

    folder = Path(bundle)
    if not folder.exists():
        folder = listing.find(bundle, open_storage(storage, bundle, needs_judged)).folder
    folder = offline.find_bundle(folder).absolute()
    good, bad = offline.predict(folder, paths, out.absolute(), variant, overlays)
    print(f"{good} images answered: {out}/answers.parquet, answers.csv")
    if bad:
        print(f"{bad} cannot be read: {out}/bad.csv")
    if not good:
        raise ImageError(f"None of the {bad} images can be read; {out}/bad.csv says why.")
