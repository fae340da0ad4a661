"""The training loop, the same for every task; no Ray inside.

It is handed a stream of batches and a folder, trains to the end or to an early stop, keeps the
best weights by the named rule on val, and can be stopped and resumed between any two updates.
"""

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from assay.data.order import Step, steps_of
from assay.errors import ConfigError
from assay.runs.telemetry import Telemetry
from assay.train import checkpoint
from assay.train.accumulate import Part, parts_of
from assay.train.batches import Stream
from assay.train.best import save_best
from assay.train.memory import judging, memory_faults
from assay.train.monitor import Monitor, MonitorState, check_repeat
from assay.train.notice import LOOK_S, NO_NOTICE, TERMINATED, Notice
from assay.train.predict import Predictor, world
from assay.train.task import Batch, Task
from assay.train.update import Updater

VAL_CACHE_BYTES = 1 << 29
"""Prepared val batches are kept in memory up to this size."""


@dataclass
class TrainState:
    """Where a run is: everything a checkpoint holds besides tensors."""

    epoch: int = 0
    index: int = 0
    step: int = 0
    best: tuple[float, float] | None = None
    best_epoch: int = -1
    stale: int = 0
    counted: float | None = None
    """What `select` names at the last improvement that patience counted."""
    done: bool = False
    seconds: float = 0.0
    """Of training and looking at val, over all launches; what a broken launch did since its last checkpoint is not in it."""
    scaler: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, list[float]] = field(default_factory=dict)
    """Sum and number of each scalar in the epoch so far."""
    watched: MonitorState = field(default_factory=MonitorState)


class Loop:
    """One run's training on one worker.

    Args:
        task: the module; `wrapped` is what DDP or FSDP made of it, or the task itself.
        rows: row numbers of "train" and "val".
        stream: where batches come from.
        folder: the run's directory, on storage that all workers share.
        telemetry: rank 0's metrics, None on other ranks.
        heartbeat: called after each look at val with the run's position.
        checkpoint_steps: updates between checkpoints besides those at each look at val; 0: none.
        accumulate: parts of a worker's share of each batch that are learnt from in turn.
        keep: checkpoints that stay on disk.
        saved: called by every worker after each checkpoint.
        notice: says that the machine is about to be taken away: a checkpoint is saved at once.

    Raises:
        ConfigError: train or val is empty, nothing is left to train, or fp16 without CUDA.
    """

    def __init__(
        self,
        task: Task,
        wrapped: nn.Module,
        rows: dict[str, np.ndarray],
        stream: Stream,
        folder: Path,
        telemetry: Telemetry | None = None,
        heartbeat: Callable[[TrainState], None] = lambda position: None,
        checkpoint_steps: int = 0,
        accumulate: int = 1,
        keep: checkpoint.Keep = checkpoint.KEEP,
        saved: Callable[[], None] = lambda: None,
        notice: Notice = NO_NOTICE,
    ) -> None:
        self.task, self.wrapped, self.rows = task, wrapped, rows
        self.stream, self.folder, self.telemetry = stream, folder, telemetry
        self.heartbeat, self.checkpoint_steps = heartbeat, checkpoint_steps
        self.accumulate, self.keep, self.stopwatch = accumulate, keep, task.stopwatch
        self.saved = saved
        self.notice, self.is_noticed, self.looked = notice, False, time.perf_counter()
        for name in ("train", "val"):
            if not len(rows[name]):
                raise ConfigError(
                    f"The split has no image in {name}; give it some, or raise --split.{name}."
                    if name == "val"
                    else "The split has no image in train; lower --split.val and --split.test."
                )
        self.config = task.config.train
        self.rank, self.world_size = world()
        self.epochs = [self._epoch_steps(e) for e in range(self.config.epochs)]
        self.total = sum(len(steps) for steps in self.epochs)
        self.monitor = Monitor(
            task.config.optim,
            task.limits(),
            self.total,
            task.classes,
            self._warn,
            task.loss_settles,
        )
        self.updater = Updater(task, wrapped, self.monitor)
        self.position = TrainState(watched=self.monitor.state)
        self.val = Predictor(task, stream, rows["val"], VAL_CACHE_BYTES)
        self.probed = self.is_look_due = False
        self.since = time.perf_counter()

    def _epoch_steps(self, epoch: int) -> list[Step]:
        return steps_of(
            self.task.order(self.task.config, self.task.dataset, self.rows["train"], epoch), epoch
        )

    def fit(self) -> TrainState:
        """Train from the newest good checkpoint, or from the start, to the end."""
        newest = checkpoint.latest(self.folder / "checkpoints")
        if newest is not None:
            self._restore(checkpoint.load(newest, self.wrapped, self.updater.optimizer))
        self.since = time.perf_counter()
        if not self.position.done and self.total:
            self._train()
        elif self.position.best is None:
            self._look_at_val()
            self._save(done=True)
        return self.position

    def _restore(self, saved: dict[str, Any]) -> None:
        saved["best"] = tuple(saved["best"]) if saved["best"] else None
        self.monitor.state = MonitorState(**saved.pop("watched"))
        self.position = TrainState(**saved, watched=self.monitor.state)
        if self.position.scaler:
            self.updater.scaler.load_state_dict(self.position.scaler)

    def _remaining(self) -> list[Step]:
        first = (
            self.epochs[self.position.epoch][self.position.index :]
            if self.position.epoch < len(self.epochs)
            else []
        )
        rest = [step for steps in self.epochs[self.position.epoch + 1 :] for step in steps]
        return [_padded(step.share(self.rank, self.world_size), step) for step in [*first, *rest]]

    def _train(self) -> None:
        remaining = self._remaining()
        if self.telemetry is not None:
            self.telemetry.log(
                "start",
                step=self.position.step,
                epoch=self.position.epoch,
                total=self.total,
                threads=torch.get_num_threads(),
            )
        clock = epoch_clock = time.perf_counter()
        served, spent = 0, Counter[str]()
        self.stopwatch.lap()
        for step, parts, following in self._batches(remaining):
            scalars = self._update(step, parts, following)
            seconds, parts_s = time.perf_counter() - clock, self.stopwatch.lap()
            clock = time.perf_counter()
            served += step.num_global
            spent.update(parts_s)
            with self.stopwatch.part("update"):  # of the next one, whose clock goes
                self._note(step, scalars, seconds, parts_s)
            saved, last = False, step.index == len(self.epochs[step.epoch]) - 1
            self.position.epoch, self.position.index = (
                (step.epoch + 1, 0) if last else (step.epoch, step.index + 1)
            )
            if last:
                self._log_epoch(step, served, time.perf_counter() - epoch_clock, spent)
                self.position.sums = {}
                saved = self._end_epoch(step.epoch)
                served, spent = 0, Counter[str]()
                self.stopwatch.lap()  # what val took is a figure of its own
                clock = epoch_clock = time.perf_counter()
                if self.position.done:
                    break
            every = self.checkpoint_steps
            is_last_call = self._notices()
            if (is_last_call or (every and self.position.step % every == 0)) and not saved:
                self._save()
                clock = time.perf_counter()
            if is_last_call and self.notice.ends:
                raise SystemExit(TERMINATED)

    def _update(
        self, step: Step, parts: Sequence[Part], following: Batch | None
    ) -> dict[str, float]:
        """Update once; the first worker's clock says on all of them whether a look for a notice is due."""
        is_due = self.rank == 0 and time.perf_counter() - self.looked >= LOOK_S
        with self.stopwatch.part("update"):  # all that is no part of its own
            scalars, self.is_look_due = self.updater.update(
                step, parts, following, self.position.step, calls=is_due
            )
        self.position.step += 1
        return scalars

    def _notices(self) -> bool:
        """Look for a notice where that is due, on all workers at once; it is one only once."""
        if not self.is_look_due:
            return False
        self.looked = time.perf_counter()
        is_first = not self.is_noticed and self.notice.is_given()
        self.is_noticed |= is_first
        return is_first

    def _batches(self, steps: Sequence[Step]) -> Iterator[tuple[Step, list[Part], Batch | None]]:
        """Give each step with its batch in parts, and, to a task that works ahead, the first part of the next."""
        stream = self.stream(steps, train=True)
        works_ahead = type(self.task).ahead is not Task.ahead
        following: list[Part] | None = None
        for index, step in enumerate(steps):
            with self.stopwatch.part("wait"):
                parts = following or parts_of(next(stream), self.accumulate)
                following = None
                if works_ahead and index + 1 < len(steps):
                    following = parts_of(next(stream), self.accumulate)
            yield step, parts, following[0].batch if following else None

    def _note(
        self, step: Step, scalars: dict[str, float], seconds: float, parts: Mapping[str, float]
    ) -> None:
        """Add an update's scalars to the epoch's, and log them."""
        for name, value in scalars.items():
            total, num = self.position.sums.get(name, (0.0, 0.0))
            self.position.sums[name] = [total + value, num + 1]
        if self.telemetry is not None:
            rate = step.num_global / seconds
            self.telemetry.log(
                "step",
                step=self.position.step,
                epoch=step.epoch,
                **scalars,
                samples_per_s=rate,
                step_s=seconds,
                data_wait=parts["wait"] / seconds,
                **{f"{name}_s": spent for name, spent in parts.items()},
                memory_mb=memory_mb(),
            )

    def _log_epoch(
        self, step: Step, served: int, seconds: float, parts: Mapping[str, float]
    ) -> None:
        """Log means over the whole epoch; times and rates since this launch began."""
        if self.telemetry is not None:
            means = {name: total / num for name, (total, num) in self.position.sums.items()}
            self.telemetry.log(
                "epoch",
                step=self.position.step,
                epoch=step.epoch,
                **means,
                epoch_s=seconds,
                samples_per_s=served / seconds,
                data_wait=parts["wait"] / seconds,
                **{f"{name}_s": spent for name, spent in parts.items()},
                memory_mb=memory_mb(),
            )

    def _end_epoch(self, epoch: int) -> bool:
        """Look at val and save where it is due; returns whether it was."""
        last = epoch == self.config.epochs - 1
        if not last and (epoch + 1) % self.config.val_every:
            return False
        self._look_at_val()
        stopped = self.config.patience and self.position.stale >= self.config.patience
        if last or stopped:
            self.monitor.check_end(self.task, self.updater.optimizer)
        self._save(done=bool(last or stopped))
        self.heartbeat(self.position)
        return True

    def _look_at_val(self) -> None:
        faults = memory_faults(self.task.device, *judging(self.config.eval_batch_size))
        with faults, self.task.judged(self.val.predict):
            self._judge_val()

    def _judge_val(self) -> None:
        began = time.perf_counter()
        columns = self.val.predict()
        truth = self.task.dataset.truth[columns["row"]]
        self.monitor.check_look(self.task, columns, truth)
        if not self.probed:
            check_repeat(*self.val.probe(), self.config.precision)
            self.probed = True
        scores = self.task.validate(columns)
        score, nll = next(iter(scores.values())), scores["nll"]
        fit = -nll if math.isfinite(nll) else -math.inf
        value = (score, fit) if self.config.select == "score" else (fit, score)
        improved = self.position.best is None or value > self.position.best
        self._count_stale(value[0], improved)
        if improved:
            self.position.best, self.position.best_epoch = value, self.position.epoch - 1
            save_best(self.task, self.folder)
        if self.telemetry is not None:
            seconds = time.perf_counter() - began
            self.telemetry.log(
                "val",
                step=self.position.step,
                epoch=self.position.epoch - 1,
                **scores,
                val_s=seconds,
            )

    def _count_stale(self, value: float, improved: bool) -> None:
        """Count the looks since the last improvement that is large enough for patience."""
        least, counted = self.config.min_improvement, self.position.counted
        if self.position.step < self.task.patience_begins * self.total:
            return
        if least:
            improved = counted is None or value >= counted + least
        self.position.stale = 0 if improved else self.position.stale + 1
        if improved:
            self.position.counted = value

    def _warn(self, text: str) -> None:
        if self.telemetry is not None:
            self.telemetry.warn(text, self.position.step)

    def _save(self, done: bool = False) -> None:
        self.position.done = done
        now = time.perf_counter()
        self.position.seconds, self.since = self.position.seconds + now - self.since, now
        self.position.scaler = self.updater.scaler.state_dict()
        folder, state = self.folder / "checkpoints", asdict(self.position)
        checkpoint.save(
            folder, self.position.step, self.wrapped, self.updater.optimizer, state, self.keep
        )
        self.saved()


def _padded(share: Step, whole: Step) -> Step:
    """Return a worker's share; in the place of none the batch's first row with weight 0 (entry -1)."""
    if len(share.rows):
        return share
    return Step(whole.epoch, whole.index, whole.rows[:1], np.array([-1]), whole.num_global)


def memory_mb() -> float:
    """Return the peak memory of this process, or of its CUDA device, in megabytes."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
