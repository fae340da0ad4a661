"""Where to look: settings of patch selection, how its noise falls, and what shows that it works."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from assay.config import Settings, Share
from assay.nn.topk import hard_topk

LEARNING = (
    "estimator",
    "num_noise",
    "sigma",
    "sigma_final",
    "warmup",
    "guide",
    "guide_temperature",
)
"""Settings of the scorer's learning."""


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(Settings, section="model"):
    """Which patches are looked at, and what the scorer learns by."""

    mode: Literal["dps", "ips", "random", "grid", "all"] = "dps"
    """Patches chosen by the scorer (differentiable patch selection), by the aggregator's own attention (iterative patch selection), at random on the part, evenly spread, or all that tile the canvas."""
    k: Annotated[int, Interval(ge=1, le=10_000)] = 8
    """Patches per image (all: as many as tile the canvas)."""
    spacing: Annotated[float, Interval(ge=0, le=100)] = 0.0
    """Least distance of two chosen patches along x or y (patch sides; dps only); 0: they may repeat each other."""
    ips_chunk: Annotated[int, Interval(ge=1, le=100_000)] = 32
    """Patches that ips looks at together."""
    trunk: str = "resnet18"
    """Scorer: any timm model up to its maps of 1/8 (grid 1/16 of the overview; resnet18 is the reference's), or small (grid 1/4)."""
    scorer_weights: str = "none"
    """Weights of a timm trunk: none, hub (fetched by timm), or a .safetensors file of the whole model."""
    estimator: Literal["score_function", "masked_loo", "plain", "diagonal"] = "score_function"
    """Gradient of the selection: score function over hard draws, or perturbed top-k in three forms."""
    num_noise: Annotated[int, Interval(ge=1, le=10_000)] = 4
    """Noise samples per image (score_function: hard draws, each k patches; perturbed top-k: 500)."""
    sigma: Annotated[float, Interval(ge=1e-4, le=10)] = 0.1
    """Standard deviation of the noise on scores in [0, 1], at the end of the warm-up."""
    sigma_final: Annotated[float, Interval(ge=0, le=10)] = 0.005
    """Standard deviation of the noise at the end of the run; falls by a half cosine."""
    warmup: Share = 0.5
    """Share of the run that learns from random patches before the scorer decides."""
    warmup_k: Annotated[int, Interval(ge=1, le=10_000)] = 16
    """Random patches per image in the warm-up and for the baseline, in sets of k: as many whole sets as it holds, at least one."""
    alone: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Weight of the loss of each patch's own answer; 0: patches answer only together."""
    guide: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Weight, in that, of the guide: scores rise where a patch alone answers well; 0: none."""
    guide_temperature: Annotated[float, Interval(ge=1e-4, le=100)] = 0.3
    """Temperature of the guide's softmax over scores (units of the scores)."""
    scorer_lr: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Learning rate of the scorer as a multiple of optim.lr."""

    @property
    def num_drawn(self) -> int:
        """Random patches per image: whole sets of k."""
        return self.k * max(self.warmup_k // self.k, 1)

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        mode, names = self.mode, dict[str, str]()
        if mode != "dps":
            learning = (*LEARNING, "scorer_lr", "scorer_weights", "spacing")
            names |= dict.fromkeys(learning, f"model.mode is {mode}")
        elif self.warmup == 1:
            never = ("estimator", "num_noise", "sigma", "sigma_final")
            names |= dict.fromkeys(
                never, "model.warmup is 1, so the scorer never decides in training"
            )
        elif self.warmup == 0 and self.estimator != "score_function":
            why = f"model.warmup is 0 and model.estimator {self.estimator}"
            names |= dict.fromkeys(("alone", "guide", "guide_temperature"), why)
        if mode != "ips":
            names["ips_chunk"] = f"model.mode is {mode}"
        if mode == "all":
            names["k"] = "model.mode is all"
        if not self.alone:
            names |= dict.fromkeys(("guide", "guide_temperature"), "model.alone is 0")
        elif not self.guide:
            names["guide_temperature"] = "model.guide is 0"
        if self.trunk == "small":
            names["scorer_weights"] = "model.trunk is small"
        return names

    def sigma_at(self, progress: float) -> float:
        """Return the noise's deviation at this share (0 to 1) of what follows the warm-up."""
        share = 0.5 * (1 + float(np.cos(np.pi * progress)))
        return self.sigma * share + self.sigma_final * (1 - share)


def selection_entropy(scores: Tensor, k: int) -> Tensor:
    """Return the entropy of which cells a batch selects, without noise: 0 where all images have the same k, 1 where no two share one.

    1 for a single image, of which nothing can be said.
    """
    counts = torch.bincount(hard_topk(scores.detach(), k).flatten()).float()
    most = min(scores.shape[1], k * len(scores))
    if most <= k:
        return torch.ones(())
    share = counts / counts.sum()
    return (-torch.xlogy(share, share).sum() - np.log(k)) / (np.log(most) - np.log(k))
