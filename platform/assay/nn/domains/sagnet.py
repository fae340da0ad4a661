"""Style-agnostic networks: what is left of an image without its content should tell nothing."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from assay.nn.domains.base import Algorithm, Sizes, TrainBatch
from assay.nn.domains.config import AlgorithmConfig

EPS = 1e-5
"""Added to a variance before its root."""


class SagNet(Algorithm):
    """SagNet (Nam et al. 2021, "Reducing domain gap by reducing style bias"), as DomainBed: on feature vectors.

    The classifier sees features whose style (mean and deviation of a vector) is mixed with another row's.
    A second head learns the class from features whose content is another row's; and the network learns
    to leave that head nothing: weight * cross-entropy of its answer with the uniform one. DomainBed
    makes three updates of these; they move parameters apart from each other and are one loss here.
    """

    def __init__(self, config: AlgorithmConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.style_head = nn.Linear(sizes.num_features, sizes.num_classes)

    def restyle(self, vectors: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Give the classifier another style."""
        return randomise(vectors, "style")

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the classifier's risk, the style head's, and what the network does against that."""
        styles = self.style_head(randomise(batch.vectors.detach(), "content"))
        style_loss = nn.functional.cross_entropy(styles.float(), batch.truth)
        still = {name: p.detach() for name, p in self.style_head.named_parameters()}
        given_away = functional_call(self.style_head, still, (randomise(batch.vectors, "content"),))
        adversarial_loss = -given_away.float().log_softmax(1).mean()
        loss = batch.losses.mean() + style_loss + self.config.value("weight") * adversarial_loss
        return {"loss": loss, "style_loss": style_loss, "adversarial_loss": adversarial_loss}


def randomise(
    vectors: Float[Tensor, "batch d"], what: Literal["style", "content"]
) -> Float[Tensor, "batch d"]:
    """Mix each row's style with that of a random row, or replace its content by a random row's (no gradient)."""
    vectors = vectors.float()
    variance, mean = torch.var_mean(vectors, 1, keepdim=True)
    content = (vectors - mean) / (variance + EPS).sqrt()
    order = torch.randperm(len(vectors)).to(vectors.device)
    if what == "content":
        content = content[order].detach()
    else:
        share = torch.rand(len(vectors), 1).to(vectors.device)
        mean = torch.lerp(mean[order], mean, share)
        variance = torch.lerp(variance[order], variance, share)
    return content * (variance + EPS).sqrt() + mean
