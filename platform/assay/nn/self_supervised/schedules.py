"""What changes over a run: functions of progress (0 to 1) alone, so that a resumed run needs no state.

Shares of the run stand for what DINOv2 (Oquab et al. 2023) counts in epochs, so that a short run on few images
has the same course.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from assay.config import Settings, Share
from assay.errors import ConfigError
from assay.nn.optim import Multiplier

Temperature = Annotated[float, Interval(ge=1e-4, le=10)]
"""Far below what teaches; float32 still holds a logit that is divided by it."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Settings, section="teacher"):
    """How the teacher follows the student, and how sure it is."""

    momentum: Share = 0.992
    """Share of itself that it keeps in the first update."""
    final_momentum: Share = 1.0
    """The same in the last one, by half a cosine."""
    start_temperature: Temperature = 0.04
    """Of its probabilities at the start."""
    temperature: Temperature = 0.07
    """The same after the warm-up."""
    warmup: Share = 0.3
    """Share of the run in which the temperature goes from one to the other."""

    def __post_init__(self) -> None:
        """Refuse a teacher that never follows: it is what is embedded and judged."""
        super().__post_init__()
        if self.momentum == self.final_momentum == 1:
            raise ConfigError(
                "teacher.momentum and teacher.final-momentum are 1, so that the teacher stays as it begins and nothing that is judged learns; give one below 1."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        return {} if self.warmup else {"start_temperature": "teacher.warmup is 0"}

    def momentum_at(self, progress: float) -> float:
        """Return the momentum."""
        return cosine(self.momentum, self.final_momentum, progress)

    def temperature_at(self, progress: float) -> float:
        """Return the temperature."""
        if progress >= self.warmup:
            return self.temperature
        rise = progress / self.warmup
        return self.start_temperature + rise * (self.temperature - self.start_temperature)


@dataclass(frozen=True, kw_only=True)
class RatesConfig(Settings, section="rates"):
    """How rates differ between parts of the student, and over the run."""

    final_weight_decay: Annotated[float, Interval(ge=0, le=10)] = 0.4
    """Weight decay at the end, by half a cosine from optim.weight-decay."""
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 0.9
    """Learning rate of each block as a share of the next one's."""
    patch_embed_lr: Share = 0.2
    """Further share of the learning rate for the layer that cuts patches."""
    freeze_prototypes: Share = 0.01
    """Share of the run, at its start, in which prototypes do not move."""

    def multipliers(
        self,
        backbone: str,
        num_blocks: int,
        prototypes: Iterable[str],
        decay: float,
        progress: float,
    ) -> dict[str, Multiplier]:
        """Return the multipliers by prefix of the parameters' names.

        Args:
            backbone: Prefix of a `MaskedVit`.
            num_blocks: Its blocks.
            prototypes: Prefixes of the prototypes.
            decay: Weight decay at the start.
            progress: Share of the run that is done.
        """
        share = cosine(decay, self.final_weight_decay, progress) / decay if decay else 0.0
        first = self.layer_decay ** (num_blocks + 1)
        inputs = ("mask_token", "vit.cls_token", "vit.pos_embed")
        groups = {"": 1.0} | {f"{backbone}.{name}": first for name in inputs}
        groups[f"{backbone}.vit.patch_embed."] = first * self.patch_embed_lr
        for block in range(num_blocks):
            groups[f"{backbone}.vit.blocks.{block}."] = self.layer_decay ** (num_blocks - block)
        held = 0.0 if progress < self.freeze_prototypes else 1.0
        groups |= dict.fromkeys(prototypes, held)
        return {name: Multiplier(lr, share) for name, lr in groups.items()}


def cosine(start: float, end: float, progress: float) -> float:
    """Return what lies between start and end by half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
