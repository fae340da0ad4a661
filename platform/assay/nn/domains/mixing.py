"""Between domains: images mixed (Mixup), or the statistics of feature maps (MixStyle)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Beta

from assay.errors import ConfigError
from assay.nn.domains.base import Algorithm, Sizes
from assay.nn.domains.config import AlgorithmConfig

MIXED_SHARE = 0.5
"""Share of training passes in which MixStyle mixes."""

EPS = 1e-6
"""Added to a variance before its root."""


class Mixup(Algorithm):
    """Mixup between domains (Yan et al. 2020; Zhang et al. 2018), as DomainBed.

    x = s x_i + (1 - s) x_j with j of another domain; the answer is to be s y_i + (1 - s) y_j, whose
    cross-entropy is the mixture of both. One s of Beta(alpha, alpha) for each domain of the batch.
    """

    def mix(
        self,
        images: Float[Tensor, "batch 3 h w"],
        targets: Float[Tensor, "batch classes"],
        domains: Int[Tensor, " batch"],
    ) -> tuple[Tensor, Tensor]:
        """Mix each image with one of another domain."""
        partner = draw_partners(domains)
        alpha = float(self.config.value("alpha"))
        by_domain = Beta(alpha, alpha).sample((self.sizes.num_domains,)).to(images.device)
        share = by_domain[domains]
        mixed = torch.lerp(images[partner], images, share[:, None, None, None])
        return mixed, torch.lerp(targets[partner], targets, share[:, None])


class MixStyle(Algorithm):
    """MixStyle (Zhou et al. 2021, "Domain generalization with MixStyle"), across domains.

    After some early modules, in half of the training passes, a map's mean and deviation over places
    give way to a mixture with those of a map of another domain; its content stays.
    """

    def __init__(self, config: AlgorithmConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        if not config.mix_after:
            raise ConfigError(
                "algorithm.name is mixstyle and algorithm.mix-after names no module; "
                "name early ones, such as network.layer1."
            )

    def refuse_strangers(self, network: nn.Module) -> None:
        """Refuse modules that the network does not have, and the network as a whole.

        Raises:
            ConfigError: one is named.
        """
        modules = {name for name, _ in network.named_modules()} - {""}
        if missing := [name for name in self.config.mix_after if name not in modules]:
            allowed = ", ".join(name for name, _ in network.named_children())
            raise ConfigError(
                f"algorithm.mix-after names {missing[0]!r}, which the network does not have; "
                f"name modules that give maps, in or below {allowed}."
            )

    @contextmanager
    def inside(self, network: nn.Module, domains: Int[Tensor, " batch"]) -> Iterator[None]:
        """Mix behind the named modules, as long as the context lasts."""
        modules = dict(network.named_modules())
        handles = [
            modules[name].register_forward_hook(
                lambda _, __, output: self.mix_maps(self.maps_of(output), domains)
            )
            for name in self.config.mix_after
            if torch.rand(()) < MIXED_SHARE
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def maps_of(self, output: Any) -> Float[Tensor, "batch d h w"]:
        """Return what a module gave.

        Raises:
            ConfigError: it is no maps.
        """
        if isinstance(output, Tensor) and output.ndim == 4:
            return output
        raise ConfigError(
            f"algorithm.mix-after names {', '.join(self.config.mix_after)}, not all of which give maps (images, channels, height, width); "
            "name early modules of a convolutional network."
        )

    def mix_maps(
        self, maps: Float[Tensor, "batch d h w"], domains: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d h w"]:
        """Mix the statistics of each image's maps with those of an image of another domain."""
        variance, mean = torch.var_mean(maps, (2, 3), keepdim=True)
        mean, deviation = mean.detach(), (variance + EPS).sqrt().detach()
        partner = draw_partners(domains)
        alpha = float(self.config.value("alpha"))
        share = Beta(alpha, alpha).sample((len(maps), 1, 1, 1)).to(maps)
        return (maps - mean) / deviation * torch.lerp(
            deviation[partner], deviation, share
        ) + torch.lerp(mean[partner], mean, share)


def draw_partners(domains: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Draw for each row a row of another domain, of the same one for a domain's rows; of one domain alone, itself."""
    codes = torch.unique(domains)
    codes = codes[torch.randperm(len(codes)).to(codes.device)]
    partner = torch.arange(len(domains), device=domains.device)
    if len(codes) == 1:
        return partner
    for code, other in zip(codes, codes.roll(1), strict=True):
        rows, others = torch.nonzero(domains == code)[:, 0], torch.nonzero(domains == other)[:, 0]
        partner[rows] = others[torch.randint(len(others), (len(rows),)).to(others.device)]
    return partner
