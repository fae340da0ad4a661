"""One update of the weights: from a batch in parts and in phases, alike on every worker."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from assay.data.order import Step
from assay.errors import ConfigError
from assay.nn.optim import Multiplier, build_optimizer, set_rates
from assay.train.accumulate import Part, gradients_wait
from assay.train.monitor import Monitor
from assay.train.predict import autocast, world
from assay.train.task import Batch, Task


class Updated(NamedTuple):
    """What came of an update."""

    scalars: dict[str, float]
    """Loss of the global batch, this worker's scalars, learning rate and gradient norm."""
    is_called: bool
    """Whether some worker called."""


class Updater:
    """Updates a task's weights.

    Args:
        task: the module; `wrapped` is what DDP or FSDP made of it, or the task itself.
        monitor: what watches the loss, the gradients and the rates.

    Raises:
        ConfigError: nothing is left to train, or fp16 without CUDA.
    """

    def __init__(self, task: Task, wrapped: nn.Module, monitor: Monitor) -> None:
        self.task, self.wrapped, self.monitor = task, wrapped, monitor
        self.config, self.stopwatch = task.config.train, task.stopwatch
        self.rank, self.world_size = world()
        # named as the bare task names them, so that groups mean the same under any wrapping
        self.optimizer = build_optimizer(task, task.config.optim, task.param_groups(0.0))
        self.scaler = _scaler(self.config.precision, task.device)

    def update(
        self,
        step: Step,
        parts: Sequence[Part],
        following: Batch | None,
        number: int,
        calls: bool = False,
    ) -> Updated:
        """Update the weights once.

        Args:
            step: whose share of the batch the parts are.
            parts: of this worker's share, learnt from in turn.
            following: the first part of the next batch, for a task that works ahead.
            number: updates before this one.
            calls: whether this worker has something to say to all, which costs no reduction of its own.
        """
        progress = number / max(self.monitor.total, 1)
        prefixes = self.task.param_groups(progress)
        lr = set_rates(self.optimizer, self.task.config.optim, prefixes, progress)
        self.monitor.check_rates(number, self.optimizer, prefixes)
        # dropout and the like: a function of seed, position and rank, so a resumed run repeats it
        torch.manual_seed(hash((self.config.seed, number, self.rank)) & 0x7FFFFFFF)
        self.wrapped.train()
        weight = len(step.rows) * self.world_size / step.num_global if step.entries[0] >= 0 else 0.0
        norm, losses = 0.0, 0.0
        scalars: dict[str, float] = {}
        for phase in self.task.phases:
            self.optimizer.zero_grad(set_to_none=True)
            loss, of_phase = self.learn(parts, following, progress, phase, weight)
            losses += loss / self.world_size
            norm = math.hypot(norm, self._apply(prefixes))
            scalars |= of_phase
        share = weight / self.world_size
        mean, limited, is_called = self._over_workers(losses, scalars, share, calls)
        scaled = self.scaler.is_enabled()
        self.monitor.check_update(number + 1, mean, norm, scaled, limited)
        self.task.after_step(progress)
        return Updated({"loss": mean, **scalars, "lr": lr, "grad_norm": norm}, is_called)

    def learn(
        self,
        parts: Sequence[Part],
        following: Batch | None,
        progress: float,
        phase: str,
        weight: float,
    ) -> tuple[float, dict[str, float]]:
        """Add up the gradients of a batch's parts; return its loss and scalars."""
        losses, sums = 0.0, dict[str, tuple[float, float]]()
        batches = [part.batch for part in parts]
        upcoming = [*batches[1:], following]
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with self.stopwatch.part("forward"), autocast(self.config.precision, self.task.device):
                ahead = upcoming[index]
                if ahead is not None:
                    self.task.ahead(ahead, progress)
                with gradients_wait(self.wrapped, not last), _norm_faults():
                    outputs = self.wrapped(part.batch, progress, phase)
            self.monitor.check_graph(outputs, phase)
            with self.stopwatch.part("backward"), gradients_wait(self.wrapped, not last):
                loss = outputs["loss"] * (weight * part.share)
                self.scaler.scale(loss).backward()
                losses += float(loss.detach())
            for name, value in outputs.items():
                if name != "loss" and part.share:  # of a part without a sample nothing is said
                    total, share = sums.get(name, (0.0, 0.0))
                    mean = float(value.detach())
                    sums[name] = (total + mean * part.share, share + part.share)
        return losses, {name: total / share for name, (total, share) in sums.items()}

    def _apply(self, prefixes: Mapping[str, Multiplier]) -> float:
        """Clip, skip what is not finite or frozen, and update; returns the gradient norm."""
        self.scaler.unscale_(self.optimizer)
        for group in self.optimizer.param_groups:
            if group["prefix"] in prefixes and prefixes[group["prefix"]].lr == 0:
                for parameter in group["params"]:
                    parameter.grad = None
        parameters = [
            p for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        limit = self.task.config.optim.grad_clip or math.inf
        total = nn.utils.clip_grad_norm_(parameters, limit)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if math.isfinite(norm) or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return norm

    def _over_workers(
        self, loss: float, scalars: Mapping[str, float], share: float, calls: bool
    ) -> tuple[float, dict[str, float], bool]:
        """Average the loss, and the scalars that have limits, over the global batch, and pass on a call, in one reduction."""
        sums = [loss, float(calls)]
        for name in self.monitor.limited:
            part = share if name in scalars else 0.0
            sums += [scalars[name] * part if part else 0.0, part]
        if self.world_size > 1:
            total = torch.tensor(sums, device=self.task.device)
            dist.all_reduce(total)
            sums = total.tolist()
        pairs = zip(self.monitor.limited, sums[2::2], sums[3::2], strict=True)
        limited = {name: value / part for name, value, part in pairs if part}
        return sums[0], limited, sums[1] > 0


@contextmanager
def _norm_faults() -> Iterator[None]:
    """Say in a sentence that batch normalisation has one value to take statistics over.

    Raises:
        ConfigError: in the place of what torch raises.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "Batch normalisation takes statistics over the images that are learnt from at a time, and here that is one, of which it has a single value; "
            "give a --train.batch-size that leaves no worker or part one image alone, also at the end of an epoch, or normalise otherwise (--model.norm group, a head by layer)."
        ) from None


def _scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"train.precision fp16 needs a CUDA device, this run has {device.type}; use bf16 or fp32."
        )
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
