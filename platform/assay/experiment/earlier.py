"""The run of given settings, images and code: one that is there already, or the next."""

import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from assay.data.manifest import Manifest
from assay.errors import RunError
from assay.experiment.identity import code_of, content, identity
from assay.runs.folder import Run
from assay.runs.names import attempts, is_run_name
from assay.runs.record import STAGES, Stage, read_record
from assay.runs.remote import catch_up
from assay.train.source import TaskSource
from assay.train.task_config import TaskConfig


def find(
    source: TaskSource,
    config: TaskConfig,
    manifest: Manifest,
    storage: Path,
    again: bool = False,
    reuse: bool = False,
    stage: Stage = "bundle",
) -> Run:
    """Find the run of these settings, images and code: the newest attempt, or the next one if `again`.

    A run that differs in code alone and was finished as far as `stage` is taken as it is with
    `reuse`; without, a sentence says that it is there and which files have changed since. It also
    says so of one that ended early, which goes on with its own code alone.
    """
    name = f"{source.name}-{identity(source, config, manifest)}"
    tried = attempts(storage, name)
    if not tried:
        older = _of_other_code(source, config, manifest, storage, stage)
        if older is not None and not again:
            is_begun = older.state != "finished"
            if reuse and not is_begun:
                catch_up(older.folder)
                return older
            files = tuple(_changed_files(older, source))
            _say_what_changed(older.folder.name, files, is_begun)
        return Run(storage / name)
    if again:
        return Run(storage / f"{name}-{max(tried) + 1}")
    catch_up(tried[max(tried)])
    return Run(tried[max(tried)])


def _of_other_code(
    source: TaskSource, config: TaskConfig, manifest: Manifest, storage: Path, stage: Stage
) -> Run | None:
    """Find the newest run of the same settings and images that was finished as far as `stage`, or else that ended early with a checkpoint."""
    wanted, enough = content(config, manifest), STAGES[STAGES.index(stage) :]
    ended: dict[Path, float] = {}
    begun: dict[Path, float] = {}
    for path in storage.glob(f"{source.name}-*/run.json"):
        if not is_run_name(path.parent.name, source.name):
            continue
        with suppress(RunError):  # a damaged record is of no run to be taken
            record = read_record(path.parent)
            if record.content != wanted:
                continue
            time = max((launch.time or 0.0 for launch in record.launches), default=0.0)
            if record.state == "finished" and record.stage in enough:
                ended[path.parent] = time
            elif record.state in ("running", "stopped") and (path.parent / "checkpoints").exists():
                begun[path.parent] = time
    times = ended or begun
    return Run(max(times, key=times.__getitem__)) if times else None


def _changed_files(run: Run, source: TaskSource) -> list[str]:
    before, now = run.record.code or {}, code_of(source)
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


@lru_cache(maxsize=1024)
def _say_what_changed(name: str, files: tuple[str, ...], is_begun: bool) -> None:
    """Say once why a run is not taken."""
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    since, remedy = "trained", "--reuse takes it as it is"
    if is_begun:
        since, remedy = "begun", "it is not at its end, and goes on once they are as they were"
    print(
        f"{name} has these settings and images, but {', '.join(files[:5])}{more} changed since it was {since}, so it is trained anew; {remedy}.",
        file=sys.stderr,
    )
