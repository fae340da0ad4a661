"""The head: how near a token is to each prototype."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from assay.config import Settings
from assay.nn.self_supervised.workers import standardise

INIT_STD = 0.02
EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Settings, section="head"):
    """What stands between a token and the prototypes."""

    num_prototypes: Annotated[int, Interval(ge=2, le=1_000_000)] = 4096
    """Prototypes that images are told apart by; about as many as there are images, at most."""
    num_layers: Annotated[int, Interval(ge=1, le=100)] = 3
    """Linear layers before the prototypes."""
    hidden: Annotated[int, Interval(ge=1, le=65_536)] = 2048
    """Width between them."""
    bottleneck: Annotated[int, Interval(ge=1, le=65_536)] = 256
    """Width in which prototypes are compared."""
    unit_length: bool = False
    """Prototypes keep their length of 1, which is steadier on few images (DINO's norm_last_layer)."""
    batch_norm: bool = False
    """Hidden layers are normalised over the batch, which tells few images apart from the start (DINO's use_bn_in_head)."""
    separate: bool = False
    """Patches have a head and prototypes of their own."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        if self.num_layers > 1:
            return {}
        return dict.fromkeys(("hidden", "batch_norm"), "head.num-layers is 1")


class PrototypeHead(nn.Module):
    """Layers with GELU between, unit length, and a linear map whose rows have a learnt length and direction.

    The head of DINO (Caron et al. 2021) with weight normalisation (Salimans and Kingma 2016); lengths
    begin at 1, and may be kept there.

    Args:
        num_features: Width of the tokens.
        config: The rest.
    """

    def __init__(self, num_features: int, config: HeadConfig) -> None:
        super().__init__()
        hidden = [config.hidden] * (config.num_layers - 1)
        layers: list[nn.Module] = []
        for before, after in pairwise([num_features, *hidden]):
            # a normalised layer has its bias after that
            layers.append(nn.Linear(before, after, bias=not config.batch_norm))
            layers += [BatchNorm(after), nn.GELU()] if config.batch_norm else [nn.GELU()]
        layers.append(nn.Linear([num_features, *hidden][-1], config.bottleneck))
        self.layers = nn.Sequential(*layers)
        self.prototypes = Prototypes(config.bottleneck, config.num_prototypes)
        self.prototypes.length.requires_grad_(not config.unit_length)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return the logits of the prototypes."""
        logits: Tensor = self.prototypes(normalize(self.layers(tokens), dim=-1, eps=1e-6))
        return logits


class BatchNorm(nn.Module):
    """Mean and deviation that are learnt, in place of those of the batch of all workers; always of the batch, never of the past."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Normalise."""
        return standardise(rows) * self.weight + self.bias


class Prototypes(nn.Module):
    """A linear map without bias, its rows of a length and a direction."""

    def __init__(self, num_features: int, num_prototypes: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(num_prototypes, num_features))
        self.length = nn.Parameter(torch.ones(num_prototypes, 1))
        nn.init.kaiming_uniform_(self.direction, a=5**0.5)  # as nn.Linear begins

    def forward(self, units: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return length times the cosine with each direction."""
        # logits are scaled, not the rows: of these there may be 65,536, and no copy of them is made
        norm = torch.linalg.vector_norm(self.direction, dim=1).clamp_min(EPS)
        return nn.functional.linear(units, self.direction) * (self.length.squeeze(1) / norm)
