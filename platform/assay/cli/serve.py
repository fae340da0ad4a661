"""Commands that answer: `assay serve` over HTTP, `assay predict` for folders and lists."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import tyro

from assay.bundle.bundle import Variant
from assay.errors import ImageError
from assay.files import write_whole
from assay.serve.config import ServeConfig, configuration

_SERVE = ServeConfig()


def serve(
    config: Annotated[ServeConfig, tyro.conf.arg(name="")] = _SERVE,
    file: Path = Path("cluster/serve.yaml"),
) -> None:
    """Serve the champions of a registry; a later promotion reaches the cluster by itself.

    Without RAY_ADDRESS on a Ray of this machine, until Ctrl-C; else on that cluster, which goes on.

    Args:
        config: Where and how.
        file: What is deployed is written here; options of applications may be changed in it.
    """
    import yaml

    _ask_for_a_token()
    from assay.serve import cluster

    present = yaml.safe_load(file.read_text())["applications"] if file.exists() else ()
    wanted = configuration(config, present)
    write_whole(file, yaml.safe_dump(wanted, sort_keys=False).encode())
    with cluster.cluster(config) as address, suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # requests under way are answered
        cluster.deploy(wanted)
        cluster.wait()
        names = [app["name"] for app in wanted["applications"][1:]]
        print(f"{address}/v1/{{{','.join(names)}}}; the page: {address}/", flush=True)
        if not config.open and not os.environ.get("ASSAY_TOKEN"):
            print(f"token: {config.token_file}", flush=True)
        if not os.environ.get("RAY_ADDRESS"):
            signal.pause()


def _ask_for_a_token() -> None:
    """Let Ray's own ports ask for a token too, unless the user says otherwise; Ray reads this as it is imported."""
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def predict(
    bundle: Annotated[Path, tyro.conf.Positional],
    paths: Annotated[list[Path], tyro.conf.Positional],
    out: Path = Path("predictions"),
    variant: Variant = "fp32",
    overlays: bool = True,
) -> None:
    """Judge images without a server, with Ray Data; the same command again does what is left.

    Args:
        bundle: A bundle, or a run that holds one.
        paths: Images, folders of images (a store too), or tables (CSV, Parquet) with a column `image`; where they
            have a column `group` too, its images are views of one part and judged together. What cannot be read is
            a line of bad.csv; only where nothing can, the exit code is 2.
        out: Folder of the answers.
        variant: The graphs to use.
        overlays: Draw patches or masks over each image.
    """
    _ask_for_a_token()
    from assay.serve import offline
    from assay.session import ray_session

    folder, (images, groups) = offline.find_bundle(bundle), offline.list_images(paths)
    with ray_session(serves=True):
        good, bad = offline.predict(
            folder.absolute(), images, out.absolute(), variant, overlays, groups
        )
    print(f"{good} images answered: {out}/answers.parquet, answers.csv")
    if bad:
        print(f"{bad} cannot be read: {out}/bad.csv")
    if not good:
        raise ImageError(f"None of the {bad} images can be read; {out}/bad.csv says why.")
