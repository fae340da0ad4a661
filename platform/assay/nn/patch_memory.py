"""What good parts look like, place by place, and how far from it another image is.

A frozen backbone describes each place of an image; a coreset of what it says of good images is the memory; the
distance to the nearest entry is the anomaly. Roth et al. 2022, "Towards total recall in industrial anomaly
detection" (PatchCore), without its re-weighting of the image's score by the neighbours' neighbours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import timm
import torch
from annotated_types import Interval, Len
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from assay.config import Settings
from assay.errors import ConfigError
from assay.nn.backbone import timm_name
from assay.nn.borders import fix_borders
from assay.nn.weights import load_features

NUM_PROJECTED = 128
"""Random dimensions in which the coreset is drawn (Johnson and Lindenstrauss 1984; section 3.2 of the paper)."""

NUM_DRAWN = 100_000
"""Places that the coreset is drawn from, at random where there are more."""

BLUR = 4.0
"""Deviation of the blur of the map (pixels), the paper's."""

Stage = Annotated[int, Interval(ge=0, le=10)]


@dataclass(frozen=True, kw_only=True)
class PatchMemoryConfig(Settings, section="model"):
    """What describes a place, and how much is remembered."""

    backbone: str = "wide_resnet50_2.tv_in1k"
    """Any convolutional network of timm; the paper's by default."""
    weights: str = "hub"
    """Its weights: none, hub (fetched by timm), or a .safetensors file."""
    stages: Annotated[tuple[Stage, ...], Len(1, 4)] = (2, 3)
    """Stages whose features describe a place, joined at the size of the first; each halves the image once more (0: by 2)."""
    memory: Annotated[int, Interval(ge=2, le=1_000_000)] = 5000
    """Places that are remembered, of all places of good images."""

    def __post_init__(self) -> None:
        """Refuse stages that do not rise."""
        super().__post_init__()
        if sorted(set(self.stages)) != list(self.stages):
            raise ConfigError(f"model.stages is {self.stages}; give each once, rising, as 2 3.")


class PatchMemory(nn.Module):
    """From normalised images to logits of an anomaly at each pixel.

    Args:
        config: which.

    Raises:
        ConfigError: there is no such backbone, it has no such stages, or its weights cannot be had.
    """

    bank: Tensor

    def __init__(self, config: PatchMemoryConfig) -> None:
        super().__init__()
        self.backbone = _create(config).requires_grad_(False).eval()
        width = sum(self.backbone.feature_info.channels())
        self.register_buffer("bank", torch.zeros(config.memory, width))
        # distances of good places that the memory does not hold: half lie below the first, 1 in 1000 above the second
        self.bounds = nn.Parameter(torch.tensor([0.0, 1.0]))

    def train(self, mode: bool = True) -> "PatchMemory":
        """Stay as it is: nothing here learns by updates."""
        return super().train(False)

    def features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d i j"]:
        """Describe each place by the mean over its 3 x 3 neighbourhood, in all stages."""
        maps = [avg_pool2d(each, 3, stride=1, padding=1) for each in self.backbone(images)]
        size = maps[0].shape[2:]
        finer = [interpolate(each, size=size, mode="bilinear") for each in maps[1:]]
        return torch.cat([maps[0], *finer], dim=1)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
        """Return logits: -6 at the median distance of good places, -4 where 1 in 1000 of them lies farther, and so on straight.

        A half thus means thrice as far above the median; what is alarmed is decided on val.
        """
        return self.logits(self.features(images), images.shape[2:])

    def logits(
        self, features: Float[Tensor, "n d i j"], size: Sequence[Any]
    ) -> Float[Tensor, "n 1 h w"]:
        """Return what `forward` does, from features."""
        places = features.permute(0, 2, 3, 1)
        distances = nearest(places.flatten(0, 2), self.bank).view(places.shape[:3])
        enlarged = interpolate(distances[:, None], size=tuple(size), mode="bilinear")
        middle, high = self.bounds
        # what lies up to seven times as far above the median is told apart before levels end
        return 2 * (blur(enlarged) - middle) / (high - middle) - 6

    @torch.no_grad()
    def remember(
        self,
        good: Iterable[Float[Tensor, "n 3 h w"]],
        others: Iterable[Float[Tensor, "n 3 h w"]],
        generator: torch.Generator,
    ) -> None:
        """Fill the memory with a coreset of good images, and measure how far places of other good images lie from it.

        Args:
            good: Batches of the first.
            others: Batches of the second, of parts that are not among the first.
            generator: Of what is drawn.
        """
        places = torch.cat([self._places(batch) for batch in good])
        if len(places) > NUM_DRAWN:
            drawn = torch.randperm(len(places), generator=generator)[:NUM_DRAWN]
            places = places[drawn.to(places.device)]
        chosen = coreset(places, len(self.bank), generator)
        # fewer places than the memory holds: some stand in it more than once, which changes no distance
        self.bank.copy_(places[chosen.repeat(-(-len(self.bank) // len(chosen)))[: len(self.bank)]])
        distances = torch.cat([nearest(self._places(batch), self.bank) for batch in others])
        middle, high = _quantile(distances, 0.5), _quantile(distances, 0.999)
        self.bounds.copy_(torch.stack([middle, high.clamp_min(middle * 1.01 + 1e-6)]))

    def _places(self, images: Tensor) -> Float[Tensor, "places d"]:
        return self.features(images).permute(0, 2, 3, 1).flatten(0, 2)


def nearest(rows: Float[Tensor, "n d"], others: Float[Tensor, "k d"]) -> Float[Tensor, " n"]:
    """Return the distance of each row to the nearest of others."""
    squares = (others * others).sum(1)
    least = (squares - 2 * rows @ others.T).amin(1) + (rows * rows).sum(1)
    return least.clamp_min(0).sqrt()


def coreset(
    rows: Float[Tensor, "n d"], num: int, generator: torch.Generator
) -> Int[Tensor, " chosen"]:
    """Choose rows such that none of the others is far from them: each next one is the farthest from those before.

    At most twice as far as by the best choice (Gonzalez 1985), in `NUM_PROJECTED` random dimensions.
    """
    if len(rows) <= num:
        return torch.arange(len(rows), device=rows.device)
    draws = torch.randn(rows.shape[1], NUM_PROJECTED, generator=generator)
    projected = rows @ draws.to(rows) if rows.shape[1] > NUM_PROJECTED else rows
    projected = projected - projected.mean(0)
    squares = (projected * projected).sum(1)
    least = torch.full((len(rows),), torch.inf, device=rows.device)
    chosen = torch.zeros(num, dtype=torch.int64, device=rows.device)
    for i in range(1, num):
        last = chosen[i - 1]
        # by a product of matrix and vector, since a difference of all rows would be as large as they are
        distances = squares - 2 * (projected @ projected[last]) + squares[last]
        least = torch.minimum(least, distances)
        chosen[i] = least.argmax()
    return chosen


def blur(maps: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Blur by a Gaussian of `BLUR` pixels, cut off at three of them; beyond the edge its pixels repeat."""
    reach = round(3 * BLUR)
    offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-(offsets**2) / (2 * BLUR**2))
    weights = weights / weights.sum()
    padded = pad(maps, (reach,) * 4, mode="replicate")
    return conv2d(conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


def _quantile(values: Tensor, share: float) -> Tensor:
    """Return a quantile of any number of values (torch's own takes 16 million)."""
    return values.kthvalue(max(1, round(share * len(values)))).values


def _create(config: PatchMemoryConfig) -> Any:
    name = timm_name(config.backbone)
    try:
        network = timm.create_model(name, features_only=True, out_indices=config.stages)
    except (RuntimeError, AssertionError, IndexError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"model.backbone {config.backbone} gives no features of model.stages {config.stages} ({str(error).splitlines()[0][:120]}); take a convolutional network of timm, such as resnet18, and stages that it has."
        ) from None
    load_features(network, name, config.weights)
    return fix_borders(network)  # its images are tiles, whose sides are multiples of all strides
