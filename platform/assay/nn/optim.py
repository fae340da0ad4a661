"""Optimisers and schedules: pure functions of the step, so that resuming needs no scheduler state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Interval
from timm.optim import Lamb
from torch import nn

from assay.config import Settings, Share
from assay.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings, section="optim"):
    """How parameters are updated."""

    optimizer: Literal["adamw", "adam", "lamb"] = "adamw"
    """Update rule: AdamW, Adam with its L2 penalty, or LAMB (You et al. 2020) for very large batches."""
    lr: Annotated[float, Interval(gt=0, le=10)] = 5e-4
    """Highest learning rate (per update)."""
    weight_decay: Annotated[float, Interval(ge=0, le=10)] = 0.01
    """Decoupled weight decay (per update, times lr); with adam a part of the gradient (L2)."""
    decays: Literal["weights", "all"] = "weights"
    """What decays: weights, without norms and biases, or every parameter."""
    schedule: Literal["onecycle", "cosine", "exponential", "constant"] = "onecycle"
    """Learning rate over the run: cosine up and down, linear up and cosine down, linear up and by the same share in each update down, or flat."""
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.3
    """Share of the run in which the learning rate rises."""
    start_factor: Share = 0.04
    """First learning rate as a share of the highest."""
    final_factor: Share = 4e-5
    """Learning rate at the very end as a share of the highest."""
    grad_clip: Annotated[float, Interval(ge=0, le=1_000_000)] = 1.0
    """Largest gradient norm; 0: no clipping."""

    def __post_init__(self) -> None:
        """Refuse to fall to 0 by equal shares, which is to be there at once."""
        super().__post_init__()
        if self.schedule == "exponential" and not self.final_factor:
            raise ConfigError(
                "optim.schedule is exponential and optim.final-factor 0, which no share of the rate in each update comes to; give a factor above 0, or take the schedule cosine."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        if self.schedule == "constant":
            names = ("warmup", "start_factor", "final_factor")
            return dict.fromkeys(names, "optim.schedule is constant")
        return {} if self.warmup else {"start_factor": "optim.warmup is 0"}


class Multiplier(NamedTuple):
    """Factors on the learning rate and weight decay of some parameters; lr 0 freezes them."""

    lr: float = 1.0
    weight_decay: float = 1.0


def lr_factor(config: OptimConfig, progress: float) -> float:
    """Return the learning rate at `progress` in [0, 1] as a share of the highest."""
    if config.schedule == "constant":
        return 1.0
    if progress < config.warmup:
        rise = progress / config.warmup
        rise = (1 - math.cos(math.pi * rise)) / 2 if config.schedule == "onecycle" else rise
        return config.start_factor + (1 - config.start_factor) * rise
    fallen = (progress - config.warmup) / (1 - config.warmup)
    if config.schedule == "exponential":
        return float(config.final_factor**fallen)
    fall = (1 + math.cos(math.pi * fallen)) / 2
    return config.final_factor + (1 - config.final_factor) * fall


def build_optimizer(
    module: nn.Module, config: OptimConfig, prefixes: Mapping[str, Multiplier]
) -> torch.optim.Optimizer:
    """Group parameters by longest matching prefix, with and without weight decay.

    Raises:
        ConfigError: no parameter requires a gradient.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default="")
        groups.setdefault((prefix, config.decays == "all" or parameter.ndim > 1), []).append(
            parameter
        )
    if not groups:
        raise ConfigError("No parameter is left to train; unfreeze the backbone or its head.")
    param_groups: list[dict[str, Any]] = [
        {"params": members, "prefix": prefix, "decays": decays}
        for (prefix, decays), members in groups.items()
    ]
    if config.optimizer == "lamb":
        # the loop clips; timm's Lamb would clip once more
        return Lamb(
            param_groups, lr=config.lr, weight_decay=config.weight_decay, max_grad_norm=None
        )
    rule = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return rule(param_groups, lr=config.lr, weight_decay=config.weight_decay)


def set_rates(
    optimizer: torch.optim.Optimizer,
    config: OptimConfig,
    prefixes: Mapping[str, Multiplier],
    progress: float,
) -> float:
    """Set every group's learning rate and weight decay for this step; return the base rate."""
    base = config.lr * lr_factor(config, progress)
    for group in optimizer.param_groups:
        multiplier = prefixes.get(group["prefix"], Multiplier())
        group["lr"] = base * multiplier.lr
        group["weight_decay"] = (
            config.weight_decay * multiplier.weight_decay if group["decays"] else 0.0
        )
    return base
