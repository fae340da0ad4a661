"""From settings to a judged run: the images once for all runs, then each run in its directory.

A run may end early and go on later: `complete` brings it to where it is judged on val ("val", a
trial of a search), on test too ("test", a trial of a grid of folds), or shipped ("bundle").
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from assay import gallery
from assay.bundle import Bundle
from assay.config import to_dict
from assay.data.duplicates import NearDuplicate, counts, near_duplicates
from assay.data.manifest import Manifest
from assay.data.pixels import Pixels
from assay.data.split import Split, draw_split
from assay.data.store import Store
from assay.decide import Decision
from assay.errors import AssayError, ConfigError, RunError
from assay.ingest import Quarantined, fill
from assay.judge import judge, read_predictions, read_result
from assay.loop import Position, write_json
from assay.run import Job, Run, identity, recipe, stamp
from assay.ship import ship
from assay.task import TaskConfig, TaskSource, load_task
from assay.telemetry import watch
from assay.workers import Where, pick_device, train

Stage = Literal["val", "test", "bundle"]
Heartbeat = Callable[[Position], None]


@dataclass(frozen=True)
class Data:
    """What all runs on the same images share."""

    source: TaskSource
    manifest: Manifest
    """Without what could not be read."""
    pixels: Pixels
    quarantined: list[Quarantined]
    storage: Path


def read_data(
    source: TaskSource, manifest: Manifest, config: TaskConfig, where: Where, storage: Path
) -> Data:
    """Decode what the store lacks, and leave out what cannot be read."""
    store = _store_of(where, storage)
    bad = fill(manifest, store, config.data.on_error, parallel=where.workers > 0)
    kept = _without(manifest, bad)
    pixels = Pixels(store, kept.column("content"), kept.masks)
    return Data(source, kept, pixels, bad, storage)


def _store_of(where: Where, storage: Path) -> Store:
    place = where.store or str(storage / "store")
    return Store(place if "://" in place else str(Path(place).absolute()), where.cache)


@dataclass(frozen=True)
class Prepared:
    """What a run starts from."""

    name: str
    config: TaskConfig
    data: Data
    split: Split
    near: list[NearDuplicate]


def prepare(data: Data, config: TaskConfig, name: str) -> Prepared:
    """Draw a run's split and look for near duplicates across it."""
    split = draw_split(data.manifest, config.split)
    near = near_duplicates(data.pixels.signatures(), split.sets)
    found = counts(near, split.sets)
    split.report.update({f"near_duplicates_{k}": v for k, v in found.items()})
    return Prepared(name, config, data, split, near)


def is_whole(run: Run) -> bool:
    """Whether a run is finished and shipped."""
    return run.state == "finished" and run.record.get("stage", "bundle") == "bundle"


def complete(
    prepared: Prepared,
    run: Run,
    where: Where,
    stage: Stage = "bundle",
    heartbeat: Heartbeat | None = None,
    callbacks: Sequence[Any] = (),
    tried: int | None = None,
    sweep: str = "",
) -> None:
    """Train and judge one run, and ship it, as far as `stage`; its state says how far it came.

    Args:
        prepared: what it starts from.
        run: its directory, leased.
        where: its workers.
        stage: where to stop.
        heartbeat: called after each look at val, in the place of a bar on the terminal.
        callbacks: of Ray Train, where there are several workers.
        tried: configurations among which val chose this one.
        sweep: name of the sweep it is a trial of.
    """
    data, config = prepared.data, prepared.config
    is_judged = run.state == "finished" and run.record.get("stage") == "test"
    _refuse_other_split(prepared, run)
    job = _begin(prepared, run, where, () if stage == "val" else tuple(prepared.split.tests), sweep)
    began = time.time()
    label = f"{data.source.name} {run.folder.name[-12:]}"
    try:
        with watch(run.folder, label) if heartbeat is None else nullcontext():
            if not is_judged:
                train(job, where, heartbeat, callbacks)
        if is_judged:
            result = read_result(run.folder)
        else:
            task = load_task(data.source)
            result = judge(run.folder, task, config, data.storage, tried)
        if stage == "bundle":
            ship(job, result, data.storage)
            _illustrate(prepared, run, result)
    except (KeyboardInterrupt, SystemExit):  # Ray Tune ends a trial by the latter
        run.note(state="stopped")
        raise
    except AssayError as error:
        run.note(state="failed", reason=str(error))
        raise
    spent = run.record.get("seconds", 0.0) if is_judged else 0.0
    run.note(state="finished", stage=stage, seconds=spent + time.time() - began)


def _begin(prepared: Prepared, run: Run, where: Where, judged: tuple[str, ...], sweep: str) -> Job:
    """Write down what is about to run."""
    data, config, device = prepared.data, prepared.config, pick_device(where)
    launch = {
        "time": time.time(), "workers": where.workers, "strategy": where.strategy, "device": device,
    } | stamp() | ({"sweep": sweep} if sweep else {})  # fmt: skip
    run.note(
        state="running", task=data.source.name, name=prepared.name, launches=[*run.record.get("launches", []), launch],
        split=prepared.split.report, quarantined=[dataclasses.asdict(q) for q in data.quarantined],
        data=data.manifest.fingerprint, recipe=recipe(data.source, config, data.manifest),
    )  # fmt: skip
    write_json(run.folder / "config.json", to_dict(config))
    (run.folder / "task.py").write_bytes(data.source.code)
    pq.write_table(prepared.split.table(data.manifest), run.folder / "split.parquet")
    return Job(
        data.source, to_dict(config), data.manifest, prepared.split, data.pixels, run.folder.absolute(),
        device, where.strategy, where.track, judged, where.checkpoint_steps,
    )  # fmt: skip


def _refuse_other_split(prepared: Prepared, run: Run) -> None:
    """A launch that finds other sets than the one before would test on what was trained on."""
    path = run.folder / "split.parquet"
    if not path.exists() or not (run.folder / "checkpoints").exists():
        return
    before = pq.read_table(path, columns=["id", "split"]).to_pylist()
    now = prepared.split.table(prepared.data.manifest).select(["id", "split"]).to_pylist()
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
    data = prepared.data
    task, opened = load_task(data.source), Bundle(run.folder / "bundle", verify=False)
    images = data.manifest.column("image")

    def picture(row: int) -> Any:
        def answer() -> Any:
            return opened.predict(Path(images[row]))

        return task.picture(prepared.config, data.pixels, row, answer)

    gallery.collect(
        run.folder, read_predictions(run.folder), data.manifest, data.pixels, decision,
        prepared.near, picture,
    )  # fmt: skip


def find(
    source: TaskSource, config: TaskConfig, manifest: Manifest, storage: Path, again: bool = False
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


def absolute(config: TaskConfig) -> TaskConfig:
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
