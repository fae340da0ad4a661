"""A run: one training of one task on one manifest, and its directory.

    runs/fingerprint-3f2a.../
        run.json             schema, state, launches, code stamp, quarantined files, warnings; written atomically
        config.json          what is computed; pass it back with --config to replay
        split.parquet        the manifest with the drawn sets
        metrics.jsonl        see `telemetry`
        checkpoints/         see `checkpoint`
        best/weights.safetensors
        predictions.parquet  one row per judged image: every number is computed from it
        result.json          the numbers; comparison.json: beside the baselines
        samples/             images of the report
        report.html          see `report`
        bundle/              what ships
        lease.json           who is writing

A run is identified by *what* it computes (settings, data, source of the task and of the modules it
trains with), not by *where*; the same command finds the same directory again.
"""

import ast
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import assay
from assay.config import fingerprint, from_dict, to_dict
from assay.data.manifest import Manifest
from assay.data.pixels import Pixels
from assay.data.split import Split
from assay.errors import RunError
from assay.loop import Loop, Position, load_best, write_json
from assay.predict import Predictor
from assay.task import Stream, TaskConfig, TaskSource, batches, load_task
from assay.telemetry import Telemetry
from assay.tier import Resident, Tier

SCHEMA = 1
STALE_LEASE_S = 180
TIE = 1e-6
"""Weight of nll where scores are equal; no two scores of fewer than 10000 images are as close."""
TRAINED_WITH = ("task.py", "loop.py", "predict.py", "data", "nn")
"""Modules whose source is part of a run's identity; the rest is stamped only."""


@dataclass(frozen=True)
class Run:
    """One run's directory."""

    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        """Contents of run.json, or nothing where the run is new.

        Raises:
            RunError: run.json is damaged, or was written by a newer Assay.
        """
        path = self.folder / "run.json"
        if not path.exists():
            return {}
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except ValueError:
            raise RunError(f"{path} is damaged; restore it, or start over with --again.") from None
        if found.get("schema", 0) > SCHEMA:
            raise RunError(
                f"{self.folder} was written by a newer Assay (schema {found['schema']}, this one knows {SCHEMA}); "
                "update Assay, or train again with --again."
            )
        return found

    def note(self, **fields: Any) -> None:
        """Change fields of run.json."""
        write_json(self.folder / "run.json", self.record | {"schema": SCHEMA} | fields)

    def warn(self, text: str) -> None:
        """Keep a monitor's warning in run.json, once."""
        known = self.record.get("warnings", [])
        if text not in known:
            self.note(warnings=[*known, text])

    @property
    def state(self) -> str:
        """new, running, stopped, failed or finished."""
        return str(self.record.get("state", "new"))

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the right to write; renewed every 30 s, given up at the end.

        Raises:
            RunError: another process holds it.
        """
        path = self.folder / "lease.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and _is_held(path):
            raise RunError(
                f"{self.folder} is being written by {path.read_text()}; wait for it, or end that process."
            )
        write_json(path, {"host": socket.gethostname(), "pid": os.getpid()})
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(30):
                path.touch()

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    if holder["pid"] == os.getpid() and holder["host"] == socket.gethostname():
        return False
    if holder["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime < STALE_LEASE_S
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return time.time() - path.stat().st_mtime < STALE_LEASE_S


def identity(source: TaskSource, config: TaskConfig, manifest: Manifest) -> str:
    """What a run computes, as 12 hex digits; paths, workers, comments and judging do not count."""
    return fingerprint(_computed(source, config, manifest))


def recipe(source: TaskSource, config: TaskConfig, manifest: Manifest) -> str:
    """What runs have in common that differ in train.seed alone, as 12 hex digits."""
    what = _computed(source, config, manifest)
    what["config"]["train"].pop("seed")
    return fingerprint(what)


def _computed(source: TaskSource, config: TaskConfig, manifest: Manifest) -> dict[str, Any]:
    what = to_dict(config)
    what["data"].pop("root")
    what.pop("decide", None)  # how a run is judged does not change what is trained
    package = Path(assay.__file__).parent
    files = sorted(
        f
        for name in TRAINED_WITH
        for f in ([package / name] if name.endswith(".py") else (package / name).glob("*.py"))
    )
    code = {f.relative_to(package).as_posix(): _code(f.read_bytes()) for f in files} | {
        "task": _code(source.code)
    }
    return {"config": what, "data": manifest.fingerprint, "code": code}


def _code(source: bytes) -> str:
    """The syntax of a source file, which comments and formatting do not change."""
    return fingerprint(ast.dump(ast.parse(source)))


def stamp() -> dict[str, Any]:
    """Versions and machine, for the record."""
    names = ("ray", "torch", "timm", "numpy", "opencv-python-headless")
    return {
        "assay": assay.__version__,
        "python": platform.python_version(),
        "host": socket.gethostname(),
    } | {n: version(n) for n in names}


@dataclass(frozen=True)
class Job:
    """All that a worker needs to train and judge one run; travels to the workers by value."""

    source: TaskSource
    config: dict[str, Any]
    manifest: Manifest
    split: Split
    pixels: Pixels
    folder: Path
    device: str
    strategy: str
    track: tuple[str, ...] = ()
    judged: tuple[str, ...] = field(default=())
    checkpoint_steps: int = 0
    tier: Tier = "disk"

    def load(self) -> tuple[Any, TaskConfig]:
        """The task's class and settings."""
        task = load_task(self.source)
        return task, from_dict(task.Config, self.config)

    def stream(self) -> Stream:
        """Batches prepared in this process."""
        task, config = self.load()
        return lambda steps, train: batches(
            task, config, self.pixels, self.manifest.truth, steps, train
        )


def work(job: Job, stream: Stream, heartbeat: Any = lambda position: None) -> Position:
    """Train to the end and predict the sets to be judged; the same on every worker and without Ray.

    Raises:
        RunError: the workers were not given the same run, or a monitor stops it.
    """
    refuse_divergence(job)
    task_class, config = job.load()
    device = torch.device(job.device)
    torch.manual_seed(config.train.seed)
    task = task_class(config, job.manifest.classes, job.pixels).to(device)
    wrapped = _wrap(task, job.strategy, device)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    keep = Run(job.folder).warn
    telemetry = Telemetry(job.folder, job.track, job.config, keep) if rank == 0 else None
    rows = {name: job.split.rows(name) for name in ("train", "val")}
    if job.tier == "device":
        task.resident = Resident(rows["train"].tolist())
    try:
        loop = Loop(
            task, wrapped, rows, job.manifest.truth, stream, job.folder, telemetry, heartbeat,
            job.checkpoint_steps,
        )  # fmt: skip
        position = loop.fit()
        _predict(job, stream, device)
    finally:
        if telemetry is not None:
            telemetry.close()
    return position


def reached(position: Position, select: str) -> dict[str, int | float]:
    """What a run says to whoever may stop it: epochs done, and the best of val until then.

    `rank` orders by score, and by nll where scores are equal: early on many runs guess one class, and
    the score of few images has few values.
    """
    assert position.best is not None
    first, second = position.best  # ordered as `train.select` says
    score, fit = (first, second) if select == "score" else (second, first)
    return {"epoch": position.epoch, "score": score, "nll": -fit, "rank": score + TIE * fit}


def refuse_divergence(job: Job) -> None:
    """Compare what every worker was given; nothing to compare with one worker.

    Raises:
        RunError: on all workers, where any differs from the first; names what and which.
    """
    group = torch.distributed
    if not group.is_initialized():
        return
    own = {
        "split": fingerprint(job.split.sets),
        "settings": fingerprint(job.config),
        "images": fingerprint([job.manifest.column("id"), job.manifest.truth.tolist()]),
        "classes": fingerprint(job.manifest.classes),
        "task file": fingerprint(job.source.code.decode()),
    }
    everyone: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(everyone, own)
    differing = {
        what: [str(rank) for rank, theirs in enumerate(everyone) if theirs[what] != first]
        for what, first in everyone[0].items()
    }
    found = [f"{what} (worker {', '.join(ranks)})" for what, ranks in differing.items() if ranks]
    if found:
        raise RunError(
            f"Some of the {len(everyone)} workers were not given the run of worker 0, different are: {', '.join(found)}; "
            "draw split and settings once, on the driver, and send them to the workers."
        )


def _wrap(task: Any, strategy: str, device: torch.device) -> torch.nn.Module:
    group = torch.distributed
    num_workers = group.get_world_size() if group.is_initialized() else 0
    if num_workers == 0 or (num_workers == 1 and strategy == "ddp"):
        wrapped: torch.nn.Module = task
        return wrapped
    if strategy == "ddp":
        ids = [device] if device.type == "cuda" else None
        # parts of a model may rest in some phases (a scorer while the backbone warms up)
        return torch.nn.parallel.DistributedDataParallel(
            task, device_ids=ids, find_unused_parameters=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for child in task.children():
        if any(p.requires_grad for p in child.parameters()):
            fully_shard(child, mesh=mesh)
    sharded: torch.nn.Module = fully_shard(task, mesh=mesh)
    register_fsdp_forward_method(sharded, "predict")
    return sharded


def _predict(job: Job, stream: Stream, device: torch.device) -> None:
    """Predict val and the judged sets with the best weights, unsharded, in fixed batches."""
    task_class, config = job.load()
    task = task_class(config, job.manifest.classes, job.pixels).to(device)
    load_best(task, job.folder)
    tables = []
    for name in ("val", *job.judged):
        predictor = Predictor(task, stream, job.split.rows(name), examine=True)
        tables.append(predictions_table(job.manifest, name, predictor.predict()))
    if predictor.rank == 0:
        hidden = job.folder / ".predictions.parquet"
        pq.write_table(pa.concat_tables(tables), hidden)
        hidden.rename(job.folder / "predictions.parquet")


def predictions_table(manifest: Manifest, name: str, columns: dict[str, np.ndarray]) -> pa.Table:
    """One set's predictions as a table; see `predictions` for its columns."""
    chosen = manifest.take(columns["row"]).table
    domains = {c: chosen[c] for c in chosen.column_names if c.startswith("domain.")}
    arrays = {
        key: pa.array(list(values)) if values.ndim > 1 else pa.array(values)
        for key, values in columns.items() if key != "row"
    }  # fmt: skip
    table = pa.table(
        {"id": chosen["id"], "split": pa.array([name] * len(chosen)), "group": chosen["group"]}
        | domains | {"truth": pa.array(manifest.truth[columns["row"]])} | arrays
    )  # fmt: skip
    return table.replace_schema_metadata({b"classes": json.dumps(manifest.classes).encode()})
