"""What an algorithm of domain generalisation sees of a batch, and where it may step in.

In the order of a training pass: `mix` changes the images, `inside` the maps within the network,
`restyle` the features before the classifier; then the algorithm, called with all that was computed,
returns the loss. Where it has several phases each makes an update of its own.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.nn.domains.config import AlgorithmConfig


class Sizes(NamedTuple):
    """What the modules of an algorithm are built for."""

    num_features: int
    """Features of an image before the classifier."""
    num_flat: int
    """Features of an image with their places, where the network gives maps; else the same."""
    num_classes: int
    num_domains: int


@dataclass(frozen=True)
class TrainBatch:
    """One batch in training, as the network sees it."""

    features: Float[Tensor, "batch ..."]
    """As the network gives them: vectors or maps."""
    vectors: Float[Tensor, "batch d"]
    """Their mean over places."""
    logits: Float[Tensor, "batch classes"]
    losses: Float[Tensor, " batch"]
    """Cross-entropy of each row."""
    truth: Int[Tensor, " batch"]
    domains: Int[Tensor, " batch"]
    """Code of each row's domain, below `Sizes.num_domains`."""
    groups: Int[Tensor, " batch"]
    """Code of each row's group."""
    progress: float
    """Share of the run that is done."""
    phase: str
    unlabelled: tuple[Float[Tensor, "more d"], Int[Tensor, " more"]] | None = None
    """Vectors and domains of further rows, for the domain loss of an algorithm that takes any."""

    @property
    def risk(self) -> Float[Tensor, ""]:
        """Mean loss of the rows; where none has a label a 0 that a gradient passes."""
        return self.losses.mean() if len(self.losses) else self.losses.sum()

    @property
    def seen(self) -> tuple[Float[Tensor, "all d"], Int[Tensor, " all"]]:
        """Vectors and domains of all rows, those without labels last."""
        if self.unlabelled is None:
            return self.vectors, self.domains
        vectors, domains = self.unlabelled
        return torch.cat([self.vectors, vectors]), torch.cat([self.domains, domains])


class Algorithm(nn.Module):
    """Empirical risk minimisation (Vapnik 1998): the mean loss of the rows, whatever their domain."""

    is_adversarial = False
    """Whether a discriminator works against the network and logs `domain_loss` and `domain_accuracy`."""
    takes_unlabelled = False
    """Whether its loss of domains needs no labels, so that rows without them may enter it (`TrainBatch.seen`)."""

    def __init__(self, config: AlgorithmConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.phases: tuple[str, ...] = ("main",)
        """In any but `main` the network gives features without a gradient."""

    def refuse_strangers(self, network: nn.Module) -> None:
        """Refuse settings that name what the whole network does not have, before it learns.

        Raises:
            ConfigError: they do.
        """

    def mix(
        self,
        images: Float[Tensor, "batch 3 h w"],
        targets: Float[Tensor, "batch classes"],
        domains: Int[Tensor, " batch"],
    ) -> tuple[Tensor, Tensor]:
        """Change images and, with them, the probabilities that are to be answered."""
        return images, targets

    def inside(
        self, network: nn.Module, domains: Int[Tensor, " batch"]
    ) -> AbstractContextManager[None]:
        """Return a context in which the network's training pass runs."""
        return nullcontext()

    def restyle(self, vectors: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Change the features that the classifier learns from."""
        return vectors

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return `loss` and scalars worth logging."""
        return {"loss": batch.losses.mean()}


def rows_by_domain(
    domains: Int[Tensor, " batch"], at_least: int = 1
) -> Sequence[Int[Tensor, " rows"]]:
    """Return the rows of each domain that the batch has, in the order of codes, of those with enough rows."""
    rows = [torch.nonzero(domains == code)[:, 0] for code in torch.unique(domains)]
    return [r for r in rows if len(r) >= at_least]


def mean_risks(batch: TrainBatch) -> Float[Tensor, " present"]:
    """Return the mean loss of each domain that the batch has."""
    return torch.stack([batch.losses[rows].mean() for rows in rows_by_domain(batch.domains)])


def mean_of(terms: Sequence[Tensor], batch: TrainBatch) -> Tensor:
    """Return the mean of terms; of none a 0 that a gradient passes."""
    return torch.stack(list(terms)).mean() if terms else 0 * batch.losses.sum()
