"""Commands for winners: which run answers, behind which alias, since when and why.

assay promote RUN                 make it the champion of its task
assay registry                    who answers, and the history
assay rollback TASK               return to the one before
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import tyro

from assay import listing
from assay.bundle import Variant
from assay.errors import RunError
from assay.estimate import Estimate
from assay.registry import ALIASES, Alias, Record, Registry, promote, roll_back
from assay.serving.config import ServeConfig, configuration

Name = Annotated[str, tyro.conf.Positional]
_RUNS = Path("runs")
_REGISTRY = "registry"
_SERVE = ServeConfig()


def promote_run(
    run: Name,
    alias: Alias = "champion",
    registry: str = _REGISTRY,
    storage: Path = _RUNS,
    force: str = "",
) -> None:
    """Put a run's bundle behind an alias; refused where it is worse than the champion.

    Args:
        run: The run.
        alias: What it becomes.
        registry: Folder or URI of the registry.
        storage: Folder of the runs.
        force: Why it is promoted in spite of objections; recorded.
    """
    found = listing.judged(run, storage)
    if not (found.folder / "bundle" / "bundle.json").is_file():
        raise RunError(f"{found.folder.name} has no bundle; run the task again, which ships one.")
    record = promote(Registry(registry), found.folder / "bundle", found.predictions(), alias, force)
    print(f"{record.task} {record.version} is {record.alias} (run {record.run})")
    for objection in record.objections:
        print(f"  forced: {objection}; reason: {record.reason}")
    for one in record.comparisons:
        gain = Estimate(**one["difference"])
        print(
            f"  {one['set']}: {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], {one['verdict']}"
        )


def show_registry(task: str = "", registry: str = _REGISTRY) -> None:
    """Show who answers for each task, with lineage, and the history.

    Args:
        task: Only this one.
        registry: Folder or URI of the registry.
    """
    place = Registry(registry)
    tasks = [name for name in place.tasks() if task in ("", name)]
    if not tasks:
        raise RunError(
            f"The registry {registry} holds nothing{f' of the task {task}' if task else ''}; promote a run by assay promote RUN."
        )
    for name in tasks:
        print(name)
        for alias in ALIASES:
            record = place.holder(name, alias)
            if record is not None:
                _print_holder(record)
        print("  history")
        for record in place.history(name):
            why = f"; forced: {record.reason}" if record.reason else ""
            print(
                f"    {listing.when(record.time)}  {record.alias:10s}  {record.version}  {record.kind}{why}"
            )


def _print_holder(record: Record) -> None:
    print(f"  {record.alias}: {record.version} since {listing.when(record.time)}")
    print(f"    run {record.run}, data {record.data}, Assay {record.code.get('assay')}")
    for name, own in record.metrics.items():
        metric, score = next(iter(own["metrics"].items()))
        print(f"    {name}: {metric} {listing.bracket(Estimate(**score))}, n = {own['num']}")


def rollback(task: Name, alias: Alias = "champion", registry: str = _REGISTRY) -> None:
    """Return an alias to the bundle that it had before; both stay in the history.

    Args:
        task: The task.
        alias: Which alias.
        registry: Folder or URI of the registry.
    """
    record = roll_back(Registry(registry), task, alias)
    print(f"{record.task} {record.version} is {record.alias} again (run {record.run})")


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
    from assay.serving import cluster

    present = yaml.safe_load(file.read_text())["applications"] if file.exists() else ()
    wanted = configuration(config, present)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(wanted, sort_keys=False))
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
    """Ray's own ports ask for a token too, unless the user says otherwise; it reads this as it is imported."""
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
            have a column `group` too, its images are views of one part and judged together.
        out: Folder of the answers.
        variant: The graphs to use.
        overlays: Draw patches or masks over each image.
    """
    _ask_for_a_token()
    from assay.serving import offline
    from assay.serving.node import on_ray

    folder, (images, groups) = offline.find_bundle(bundle), offline.images_in(paths)
    with on_ray():
        good, bad = offline.predict(
            folder.absolute(), images, out.absolute(), variant, overlays, groups
        )
    print(f"{good} images answered: {out}/answers.parquet, answers.csv")
    if bad:
        print(f"{bad} cannot be read: {out}/bad.csv")
