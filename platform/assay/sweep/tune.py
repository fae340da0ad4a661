"""Trials on Ray Tune: how many fit at once, and what one does. This file alone imports ray.tune.

A trial is a run. One of a single worker is trained in the trial's own process; more workers are a
TorchTrainer below it. Tune decides when a trial starts and whether it goes on; what a trial is and
what became of it is in its run's directory alone, so nothing of Tune's is kept.
"""

import os
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

# Tune asks for these when it is imported or begins
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # of trials that failed early
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import numpy as np
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from assay.cluster.heap import give_back_freed_memory
from assay.cluster.nodes import DRIVER, gather, maximum, refuse_beyond, say, total, up
from assay.config import from_dict, to_dict
from assay.data.dataset import Dataset
from assay.data.order import steps_of
from assay.errors import AssayError, RunError, disk_faults
from assay.experiment.resources import FOR_DATA, Resources, grows
from assay.experiment.run import StoredImages, complete, prepare
from assay.files import describe
from assay.runs.folder import Run
from assay.runs.lease import LEASE, holder_of, is_held, us
from assay.runs.record import Stage
from assay.runs.remote import drop_ray_storage, pull, ray_storage, try_push
from assay.sweep.trial import Outcome, Trial, read_outcome
from assay.train.batches import batches
from assay.train.best import load_best
from assay.train.loop import TrainState
from assay.train.source import load_task
from assay.train.task_config import TaskConfig
from assay.train.worker import reached

DRIVER_CPUS = 0.1
"""CPUs of the process that waits for a trial's several workers, where no node has places for drivers."""


NUM_TIMED = 20


AWAIT_S = 2.0
"""Seconds between two looks whether another process still writes a run."""


LOWER = "lower --workers, --cpus-per-worker or --gpus-per-worker"


@dataclass(frozen=True)
class SweepContext:
    """What all trials of a sweep share."""

    data: StoredImages
    resources: Resources
    stage: Stage
    sweep: str
    measure: bool = False
    """Also measure latency and count parameters."""
    select: str = "score"
    """What of val Tune is told: score, or nll."""


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving (ASHA): at each rung one of `eta` trials goes on."""

    epochs: int
    grace: int
    eta: int


@runtime_checkable
class TrialSource(Protocol):
    """Where trials come from, and who hears of them."""

    def propose(self) -> Trial | None:
        """Return the next trial; None: there is no more."""
        ...

    def report(self, trial: Trial, epoch: int, value: float) -> None:
        """Take note of a look at val."""
        ...

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Take note that a trial has ended."""
        ...


def fit_in(resources: Resources, gpus_each: float, parallel: int) -> tuple[dict[str, float], int]:
    """Return what Tune reserves for a trial, and how many trials run at once.

    Args:
        resources: the workers of each trial.
        gpus_each: GPUs of each worker, where they have any.
        parallel: trials at once; 0: as many as fit, on a cluster that tells its maximum in that.

    Raises:
        ResourceError: they do not fit, or not even one had room in time on a cluster that can grow;
            says what is needed, what there is, and what to lower.
    """
    is_growing, several = grows(resources), resources.workers > 1
    each = resources.cpus_per_worker or 1.0
    worker = {"CPU": each} | ({"GPU": gpus_each} if resources.gpus else {})
    # a trial of several workers has a driver; Ray Data feeds these, and a GPU
    driver = {DRIVER: 1.0} if DRIVER in up() else {"CPU": DRIVER_CPUS}
    beside = [driver] if several else []
    if several or resources.gpus:
        beside.append(FOR_DATA)
    trial = [worker] * resources.workers + beside
    need, has = total(trial), (maximum() or {} if is_growing else up())
    most = min(int(has.get(name, 0.0) / value + 1e-9) for name, value in need.items())
    if is_growing and not has:  # nobody said how far it may grow
        most = max(parallel, 1)
    num = max(parallel, 1)
    if num > most:
        what = f"{num} trial{'s' if num > 1 else ''} at once of {resources.workers} workers of {say(worker)}"
        what += ", their driver" if several else ""
        what += " and 1 CPU for Ray Data" if FOR_DATA in beside else ""
        lower = f"take --parallel {most} or fewer" if most else LOWER
        refuse_beyond({name: num * value for name, value in need.items()}, has, lower, what)
    if is_growing:  # for one trial; the others begin as nodes come for them
        gather(trial, resources.wait_s, LOWER)
    return driver if several else worker, parallel or most


def run_trials(
    shared: SweepContext,
    source: TrialSource,
    reserved: dict[str, float],
    parallel: int,
    halving: Halving | None = None,
) -> None:
    """Run what the source proposes, until it proposes no more.

    A trial whose process dies is begun again from its own checkpoint, `resources.retries` times.
    """
    folder = shared.data.storage / "sweeps" / shared.sweep / "tune"
    # how many may wait for nodes at once; where they come from a searcher Tune would let one
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(parallel)
    trainable = tune.with_parameters(_run_trial, shared=shared, parallel=parallel)
    tuner = tune.Tuner(
        tune.with_resources(trainable, reserved),
        tune_config=tune.TuneConfig(
            search_alg=_SourceSearcher(source, shared.select, folder.parent),
            scheduler=_scheduler(halving, shared.select) if halving else None,
            num_samples=-1,
            max_concurrent_trials=parallel,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"{time.time_ns()}",
            **ray_storage(folder),
            verbose=0,
            callbacks=[_Silent()],
            failure_config=tune.FailureConfig(max_failures=shared.resources.retries),
        ),
    )
    try:
        tuner.fit()
    finally:
        drop_ray_storage(folder)


def _scheduler(halving: Halving, select: str) -> ASHAScheduler:
    metric, better = ("nll", "min") if select == "nll" else ("rank", "max")
    return ASHAScheduler(
        time_attr="epoch",
        metric=metric,
        mode=better,
        max_t=halving.epochs,
        grace_period=halving.grace,
        reduction_factor=halving.eta,
        stop_last_trials=False,
    )


class _Silent(TrialProgressCallback):
    """Tune's lines on the terminal, which it writes at any verbosity of a trial that reported nothing."""

    def _print(self, msg: str) -> None:
        pass


class _SourceSearcher(Searcher):
    """A source of trials as Tune knows it."""

    def __init__(self, source: TrialSource, select: str, folder: Path) -> None:
        super().__init__()
        self.source, self.select, self.folder = source, select, folder
        self.running: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        trial = self.source.propose()
        if trial is None:
            return Searcher.FINISHED
        self.running[trial_id] = trial
        config = to_dict(trial.config)
        return {"name": trial.name, "folder": str(trial.folder), "config": config}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self.select in result:
            self.source.report(self.running[trial_id], result["epoch"], result[self.select])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self.running.pop(trial_id)
        run = Run(trial.folder)
        pull(run.folder)  # the trial may have been on another node
        with suppress(RunError):  # a damaged run.json is read as the trial's failure
            if error and run.state != "failed":
                run.note(state="failed", reason="Its process died, and did so again when retried.")
            elif run.state == "running":  # Tune may end the process before it can say so
                run.note(state="stopped")
        self.source.tell(trial, read_outcome(trial.folder))
        try_push(self.folder)

    def save(self, checkpoint_path: str) -> None:
        """Leave the record to the runs' directories and the study."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


def _run_trial(settings: dict[str, Any], shared: SweepContext, parallel: int) -> None:
    """Run one trial, in a process of its own."""
    data, run = shared.data, Run(Path(settings["folder"]))
    config = from_dict(load_task(data.source).Config, settings["config"])
    os.environ["WANDB_RUN_GROUP"] = shared.sweep
    cpus = shared.resources.cpus_per_worker or 1.0
    resources = replace(shared.resources, cpus_per_worker=cpus)
    alone = resources.workers == 1
    if alone:
        resources = replace(resources, workers=0)
    callbacks = [] if alone else [TuneReportCallback()]  # type: ignore[no-untyped-call]

    def report(position: TrainState) -> None:
        tune.report(reached(position, config.train.select))

    try:
        _await_writer(run, settings["name"])
        with disk_faults(), run.lease():
            try:
                prepared = prepare(data, config, settings["name"])
                stage, sweep = shared.stage, shared.sweep
                complete(prepared, run, resources, stage, report, callbacks, None, sweep, parallel)
                if shared.measure:
                    measured = {**(run.record.measured or {}), **_measure(shared, config, run)}
                    run.note(measured=measured)
            except AssayError as error:
                run.note(state="failed", reason=str(error))
                raise
            # what the user cannot mend is tried again, and then ends this trial alone
            except Exception as error:
                run.note(state="failed", reason=describe(error))
                raise
    except AssayError as error:  # to try again would fail again
        print(f"{settings['name']}: {error}", file=sys.stderr)
    finally:
        give_back_freed_memory()  # the next trial is run by the same process, in another thread


def _await_writer(run: Run, name: str) -> None:
    """Wait for another process that trains the same run, such as a trial of another sweep: what it leaves counts."""
    path, is_told = run.folder / LEASE, False
    while is_held(path) and holder_of(path) != us():
        if not is_told:
            print(f"{name}: another process trains {run.folder}; waiting for it", file=sys.stderr)
            is_told = True
        time.sleep(AWAIT_S)


def _measure(shared: SweepContext, config: TaskConfig, run: Run) -> dict[str, float]:
    """Take the median latency of one image through the model in this process, and count the model's parameters."""
    data = shared.data
    task_class = load_task(data.source)
    dataset = Dataset.of(data.manifest, data.pixels)
    task = task_class(config, dataset).eval()
    load_best(task, run.folder)
    steps = steps_of([np.zeros(1, np.int64)], 0)
    batch = next(batches(task_class, config, dataset, steps, False))
    seconds = []
    with torch.inference_mode():
        for _ in range(NUM_TIMED):
            began = time.perf_counter()
            task.predict(batch)
            seconds.append(time.perf_counter() - began)
    num = sum(parameter.numel() for parameter in task.parameters())
    return {"latency_ms": 1000 * statistics.median(seconds), "num_params": float(num)}
