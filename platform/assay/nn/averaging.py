"""Averages of the weights of many updates, to be judged and shipped in the place of the last ones.

- uniform: every update from `begins` on weighs the same (SWA, Izmailov et al. 2018; the model parameter
  averaging of ERM++, Teterwak et al. 2023)
- ema: m <- d m + (1 - d) w, with d = min(decay, (1 + n) / (10 + n)) after n updates
- swad: as uniform, from where the loss of val began to stay low until it overfits (Cha et al. 2021)

Running statistics of batch normalisation are averaged like weights, as DomainBed does.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from jaxtyping import Float32
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from assay.config import Settings, Share
from assay.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AverageConfig(Settings, section="average"):
    """Which weights are judged and shipped."""

    weights: Literal["last", "uniform", "ema", "swad"] = "last"
    """Those of the last update, or their mean over updates: uniform, exponential, or dense in a valley of val's loss."""
    begins: Share = 0.1
    """Share of the run before which nothing is averaged."""
    decay: Annotated[float, Interval(ge=0, lt=1)] = 0.999
    """Weight of what was averaged before, per update (ema)."""
    converged_looks: Annotated[int, Interval(ge=1, le=1000)] = 3
    """The valley begins at a look at val whose loss so many looks, itself included, do not undercut (swad)."""
    overfit_looks: Annotated[int, Interval(ge=1, le=1000)] = 6
    """The valley ends before so many looks in a row that are above the tolerance (swad)."""
    tolerance: Annotated[float, Interval(ge=0, le=10)] = 0.3
    """Share by which val's loss may exceed its mean where the valley began (swad)."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        why = f"average.weights is {self.weights}"
        used = {
            "last": (),
            "uniform": ("begins",),
            "ema": ("begins", "decay"),
            "swad": ("begins", "converged_looks", "overfit_looks", "tolerance"),
        }[self.weights]
        names = ("begins", "decay", "converged_looks", "overfit_looks", "tolerance")
        return {name: why for name in names if name not in used}


class WeightAverage(nn.Module):
    """A running average of a module's parameters and floating-point buffers; all of it in buffers, so in every checkpoint.

    It may be a part of the module whose weights it averages, and leaves itself out.
    """

    values: Tensor
    num: Tensor
    pending: Tensor
    num_pending: Tensor
    losses: Tensor
    threshold: Tensor
    num_above: Tensor

    def __init__(self, config: AverageConfig, module: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0
        """At the last update; a look follows an update of the same process, so no checkpoint needs it."""
        size = len(self._flat(module))
        self.register_buffer("values", torch.zeros(size))
        self.register_buffer("num", torch.zeros((), dtype=torch.int64))
        if config.weights == "swad":
            self.register_buffer("pending", torch.zeros(size))  # since the last look
            self.register_buffer("num_pending", torch.zeros((), dtype=torch.int64))
            # of the looks from where the valley may have begun
            losses = torch.full((config.converged_looks,), math.inf, dtype=torch.float64)
            self.register_buffer("losses", losses)
            self.register_buffer("threshold", torch.tensor(math.inf, dtype=torch.float64))
            self.register_buffer("num_above", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, module: nn.Module, progress: float) -> None:
        """Take the weights after an update at this share of the run into the average.

        Raises:
            ConfigError: the module is sharded.
        """
        if any(isinstance(p, DTensor) for p in module.parameters()):
            raise ConfigError(
                f"average.weights is {self.config.weights} and the weights are sharded; give --strategy ddp, or --average.weights last."
            )
        self.progress = progress
        if progress < self.config.begins:
            return
        weights = self._flat(module)
        if self.config.weights == "swad":
            if self.num:
                self.num_pending += 1
                self.pending.lerp_(weights, 1 / int(self.num_pending))
            return
        num, share = int(self.num), 1 / (int(self.num) + 1)
        if self.config.weights == "ema" and num:
            share = 1 - min(self.config.decay, (1 + num) / (10 + num))
        self.values.lerp_(weights, share)
        self.num += 1

    @torch.no_grad()
    def look(self, module: nn.Module, loss: float) -> None:
        """Follow swad's valley: take note of val's loss by the weights as they are."""
        if self.progress < self.config.begins:
            return
        if math.isinf(self.threshold):
            self._seek(module, loss)
        elif self.num_above < self.config.overfit_looks:
            self.num_above += 1
            if loss <= self.threshold:
                self.num_above.zero_()
                self._merge()

    def _seek(self, module: nn.Module, loss: float) -> None:
        """Begin the valley anew where its first loss is undercut; else see whether it has converged."""
        seen = int(torch.isfinite(self.losses).sum())
        if not seen or loss < self.losses[0]:
            self.losses.fill_(math.inf)
            self.values.copy_(self._flat(module))
            self.num.fill_(1)
            self.num_pending.zero_()
            seen = 0
        else:
            self._merge()
        self.losses[seen] = loss
        if seen + 1 == self.config.converged_looks:
            self.threshold.copy_(self.losses.mean() * (1 + self.config.tolerance))

    def _merge(self) -> None:
        """Take the updates since the valley was last known to hold into it."""
        self.num += self.num_pending
        self.values.lerp_(self.pending, int(self.num_pending) / int(self.num))
        self.num_pending.zero_()

    @contextmanager
    def in_place(self, module: nn.Module) -> Iterator[None]:
        """Put the average in the place of the module's weights, as long as the context lasts; nothing where there is none yet."""
        before = self._flat(module)
        if self.num:
            self._write(module, self.values)
        try:
            yield
        finally:
            self._write(module, before)

    def _averaged(self, module: nn.Module) -> list[Tensor]:
        own = {id(buffer) for buffer in self.buffers()}
        tensors = chain(module.parameters(), module.buffers())
        return [t for t in tensors if t.is_floating_point() and id(t) not in own]

    def _flat(self, module: nn.Module) -> Float32[Tensor, " n"]:
        return torch.cat([t.detach().float().flatten() for t in self._averaged(module)])

    @torch.no_grad()
    def _write(self, module: nn.Module, flat: Float32[Tensor, " n"]) -> None:
        tensors = self._averaged(module)
        for tensor, part in zip(
            tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))
