"""What a task script does: `main(__file__)`.

Parses the command line from the task's settings, builds manifest, store and split, trains the run
and its baselines, judges them, ships the bundle, and prints the numbers. Run again, it recognises
what is finished and shows it.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq

# before Ray is imported: workers use this environment as it is
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import tyro

from assay import gallery, report
from assay.bundle import Bundle
from assay.config import from_dict, to_dict
from assay.data.duplicates import NearDuplicate, counts, near_duplicates
from assay.data.manifest import Manifest
from assay.data.pixels import Pixels
from assay.data.split import Split, draw_split
from assay.data.store import Store
from assay.decide import Decision
from assay.errors import AssayError, ConfigError, RunError
from assay.ingest import Quarantined, fill
from assay.judge import is_decided, judge, read_predictions, set_beside, show
from assay.loop import write_json
from assay.run import Job, Run, identity, recipe, stamp
from assay.ship import ship
from assay.task import Task, TaskConfig, TaskSource, load_task
from assay.telemetry import watch
from assay.workers import Where, cluster, pick_device, train


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the command itself behaves."""

    preset: str = ""
    """Named settings to start from; other options change them."""
    config: Path | None = None
    """A run's config.json to replay; other options change it."""
    again: bool = False
    """Train once more although the run exists."""


def main(path: str, arguments: Sequence[str] | None = None) -> None:
    """Run a task script; exits with 2 and one sentence where the user can mend something."""
    try:
        source = TaskSource.read(path)
        task = load_task(source)
        config, where, launch = parse(task, sys.argv[1:] if arguments is None else arguments)
        experiment(source, config, where, again=launch.again)
    except AssayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parse(task: type[Task], arguments: Sequence[str]) -> tuple[TaskConfig, Where, Launch]:
    """Settings from the command line, on top of a preset or a saved config.

    Raises:
        ConfigError: the preset or the saved config does not exist or does not fit.
    """
    presets = task.presets()
    first = next(iter(presets))
    chosen, saved = _option(arguments, "--preset") or first, _option(arguments, "--config")
    if chosen not in presets:
        raise ConfigError(f"--preset is {chosen!r}; allowed: {', '.join(presets)}.")
    default = presets[chosen] if saved is None else _read_config(task, Path(saved))
    fields = [
        (
            "what",
            Annotated[task.Config, tyro.conf.arg(name="")],
            dataclasses.field(default=default),
        ),
        ("where", Annotated[Where, tyro.conf.arg(name="")], dataclasses.field(default=Where())),
        (
            "launch",
            Annotated[Launch, tyro.conf.arg(name="")],
            dataclasses.field(default=Launch(preset=chosen)),
        ),
    ]
    command = dataclasses.make_dataclass("Command", fields, frozen=True, kw_only=True)
    about = f"{sys.modules[task.__module__].__doc__}\nPresets: {', '.join(presets)}."
    parsed: Any = tyro.cli(
        command, args=list(arguments), description=about, config=(tyro.conf.AvoidSubcommands,)
    )
    return parsed.what, parsed.where, parsed.launch


def _option(arguments: Sequence[str], name: str) -> str | None:
    """The last value given to an option, needed before the parser that it decides about."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument(name, dest="value")
    return early.parse_known_args(arguments)[0].value


def _read_config(task: type[Task], path: Path) -> TaskConfig:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--config {path} cannot be read ({error}); give a run's config.json."
        ) from None
    return from_dict(task.Config, values)


def experiment(source: TaskSource, config: TaskConfig, where: Where, again: bool = False) -> Run:
    """Train, judge and show a run and its baselines; what is finished is only shown.

    A finished run that was judged by other settings of `decide` is judged again, which is recorded.
    """
    storage = storage_of(where)
    store = _store_of(where, storage)
    task = load_task(source)
    config = _absolute(config)
    manifest = task.manifest(config, storage)
    named = {"": config} | dict(task.baselines(config))
    runs = {name: _find(source, c, manifest, storage, again) for name, c in named.items()}
    if any(run.state != "finished" for run in runs.values()):
        with cluster(where):
            bad = fill(manifest, store, config.data.on_error, parallel=where.workers > 0)
            kept = _without(manifest, bad)
            pixels = Pixels(store, kept.column("content"), kept.masks)
            split = draw_split(kept, config.split)
            near = near_duplicates(pixels.signatures(), split.sets)
            split.report.update(
                {f"near_duplicates_{k}": v for k, v in counts(near, split.sets).items()}
            )
            for name, run in runs.items():
                if run.state != "finished":
                    with run.lease():
                        prepared = Prepared(
                            name or source.name, source, named[name], kept, split, pixels, near, bad
                        )
                        _complete(prepared, run, where, storage)
    folders = {name or source.name: run.folder for name, run in runs.items()}
    for name, run in runs.items():
        if not is_decided(run.folder, named[name]):
            with run.lease():
                judge(run.folder, task, named[name], storage)
                write_json(run.folder / "config.json", to_dict(named[name]))
    _write_reports(folders)
    show(folders)
    print(f"report: {runs[''].folder / 'report.html'}")
    return runs[""]


def _store_of(where: Where, storage: Path) -> Store:
    place = where.store or str(storage / "store")
    return Store(place if "://" in place else str(Path(place).absolute()), where.cache)


def _write_reports(folders: Mapping[str, Path]) -> None:
    """Compare the runs and make their pages, where judging is newer than the page."""
    newest = max((folder / "result.json").stat().st_mtime for folder in folders.values())
    for folder in folders.values():
        page = folder / "report.html"
        if not page.exists() or page.stat().st_mtime < newest:
            if folder == next(iter(folders.values())):
                set_beside(folders)
            report.write(folder)


@dataclass(frozen=True)
class Prepared:
    """What a run starts from."""

    name: str
    source: TaskSource
    config: TaskConfig
    manifest: Manifest
    split: Split
    pixels: Pixels
    near: list[NearDuplicate]
    quarantined: list[Quarantined]


def _complete(prepared: Prepared, run: Run, where: Where, storage: Path) -> None:
    """Train, judge and ship one run; its state says how far it came."""
    device = pick_device(where)
    _refuse_other_split(prepared, run)
    launches = run.record.get("launches", [])
    launch = {
        "time": time.time(),
        "workers": where.workers,
        "strategy": where.strategy,
        "device": device,
    } | stamp()
    run.note(
        state="running", task=prepared.source.name, name=prepared.name, launches=[*launches, launch], split=prepared.split.report,
        quarantined=[dataclasses.asdict(q) for q in prepared.quarantined], data=prepared.manifest.fingerprint,
        recipe=recipe(prepared.source, prepared.config, prepared.manifest),
    )  # fmt: skip
    write_json(run.folder / "config.json", to_dict(prepared.config))
    (run.folder / "task.py").write_bytes(prepared.source.code)
    pq.write_table(prepared.split.table(prepared.manifest), run.folder / "split.parquet")
    job = Job(
        prepared.source, to_dict(prepared.config), prepared.manifest, prepared.split, prepared.pixels, run.folder.absolute(),
        device, where.strategy, where.track, tuple(prepared.split.tests), where.checkpoint_steps,
    )  # fmt: skip
    began = time.time()
    try:
        with watch(run.folder, f"{prepared.source.name} {run.folder.name[-12:]}"):
            train(job, where)
        result = judge(run.folder, load_task(prepared.source), prepared.config, storage)
        ship(job, result, storage)
        _illustrate(prepared, run, result)
    except KeyboardInterrupt:
        run.note(state="stopped")
        raise
    except AssayError as error:
        run.note(state="failed", reason=str(error))
        raise
    run.note(state="finished", seconds=time.time() - began)


def _refuse_other_split(prepared: Prepared, run: Run) -> None:
    """A launch that finds other sets than the one before would test on what was trained on."""
    path = run.folder / "split.parquet"
    if not path.exists() or not (run.folder / "checkpoints").exists():
        return
    before = pq.read_table(path, columns=["id", "split"]).to_pylist()
    now = prepared.split.table(prepared.manifest).select(["id", "split"]).to_pylist()
    if before != now:
        changed = len(
            {(r["id"], r["split"]) for r in before} ^ {(r["id"], r["split"]) for r in now}
        )
        raise RunError(
            f"{run.folder.name} was begun on another split ({changed} entries differ, since other images can be read now); "
            "restore the images, or train again with --again."
        )


def _illustrate(prepared: Prepared, run: Run, result: Mapping[str, Any]) -> None:
    """Keep what the report shows of the images, while their pixels are at hand."""
    decision = Decision.from_dict(result["decision"]) if result["decision"] else None
    task, opened = load_task(prepared.source), Bundle(run.folder / "bundle", verify=False)
    images = prepared.manifest.column("image")

    def picture(row: int) -> Any:
        def answer() -> Any:
            return opened.predict(Path(images[row]))

        return task.picture(prepared.config, prepared.pixels, row, answer)

    gallery.collect(
        run.folder, read_predictions(run.folder), prepared.manifest, prepared.pixels, decision,
        prepared.near, picture,
    )  # fmt: skip


def _find(
    source: TaskSource, config: TaskConfig, manifest: Manifest, storage: Path, again: bool
) -> Run:
    """The run of this content: the newest attempt, or the next one if `again`."""
    name = f"{source.name}-{identity(source, config, manifest)}"
    attempts = sorted(
        storage.glob(f"{name}*"), key=lambda p: int(p.name.removeprefix(name).lstrip("-") or 1)
    )
    if not attempts:
        return Run(storage / name)
    if again:
        return Run(storage / f"{name}-{len(attempts) + 1}")
    return Run(attempts[-1])


def storage_of(where: Where) -> Path:
    """The absolute folder of the runs.

    Raises:
        ConfigError: it is relative and this is an uploaded copy of the working directory, which
            Ray deletes after the job.
    """
    uploaded = "runtime_resources" in Path.cwd().parts
    if where.storage is None:
        return Path.home() / "assay" / "runs" if uploaded else Path.cwd() / "runs"
    if uploaded and not where.storage.is_absolute():
        raise ConfigError(
            f"--storage {where.storage} is relative, and this job runs in a temporary copy of your folder; give an absolute path that outlives the job."
        )
    return where.storage.absolute()


def _absolute(config: TaskConfig) -> TaskConfig:
    """The same settings with data.root absolute, since workers have other working directories."""
    root = config.data.root
    return (
        config
        if root is None
        else dataclasses.replace(
            config, data=dataclasses.replace(config.data, root=root.absolute())
        )
    )


def _without(manifest: Manifest, bad: Sequence[Quarantined]) -> Manifest:
    if not bad:
        return manifest
    rows = {q.row for q in bad}
    print(
        f"{len(rows)} of {len(manifest)} images are quarantined, first: {bad[0].reason}",
        file=sys.stderr,
    )
    kept = manifest.take([i for i in range(len(manifest)) if i not in rows])
    lost = set(manifest.classes) - set(kept.classes)
    if lost:
        raise RunError(
            f"No readable image is left of the class {min(lost)!r}; mend its files or leave the class out."
        )
    return kept
