"""Domain adversaries: a discriminator names the domain, and the features learn to hide it."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from assay.nn.domains.base import Algorithm, Sizes, TrainBatch
from assay.nn.domains.config import AlgorithmConfig
from assay.nn.domains.consistency import disagreement

LATE = 0.5
"""Share of the run after which the discriminator's accuracy is judged."""

SOURCE_PRINT_WEIGHT = 4.0
"""Weight of the source's print loss."""


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse(x: Tensor, strength: float) -> Tensor:
    """Return x as it is, with a gradient of the other sign and `strength` times its size."""
    turned: Tensor = _Reverse.apply(x, strength)
    return turned


def reversal_strength(progress: float, ceiling: float = 1.0) -> float:
    """Return 2 / (1 + exp(-10 p)) - 1 (Ganin et al. 2016), at most the ceiling."""
    return min(2 / (1 + math.exp(-10 * progress)) - 1, ceiling)


def build_discriminator(config: AlgorithmConfig, num_inputs: int, num_domains: int) -> nn.Module:
    """Build DomainBed's MLP: linear layers with ReLU and dropout between them."""
    width, dropout = int(config.value("width")), config.value("dropout")
    layers: list[nn.Module] = []
    for _ in range(int(config.value("depth")) - 1):
        layers += [nn.Linear(num_inputs, width), nn.Dropout(dropout), nn.ReLU()]
        num_inputs = width
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_domains))


class Dann(Algorithm):
    """Adversary by gradient reversal (Ganin et al. 2016, "Domain-adversarial training of neural networks").

    loss = risk + weight * CE(discriminator(reverse(features)), domain), whose gradient teaches the
    discriminator and, reversed, the features. It is given features without places.
    """

    is_adversarial = True
    takes_unlabelled = True

    def __init__(self, config: AlgorithmConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.discriminator = build_discriminator(config, sizes.num_features, sizes.num_domains)

    def domain_logits(self, batch: TrainBatch) -> Tensor:
        """Return the discriminator's answers to reversed features."""
        strength = reversal_strength(batch.progress, self.config.value("ceiling"))
        logits: Tensor = self.discriminator(reverse(batch.seen[0], strength))
        return logits

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the risk and the weighted domain loss."""
        logits = self.domain_logits(batch)
        domain_loss = nn.functional.cross_entropy(logits.float(), batch.seen[1])
        loss = batch.risk + self.config.value("weight") * domain_loss
        return {"loss": loss, "domain_loss": domain_loss, **accuracies(logits, batch)}


class SourceDann(Dann):
    """The adversary of seed system 003: one linear layer on the flattened map, no ceiling.

    Its print loss, 4 times the share of a print's answers that are not its most frequent one, is made
    from argmax, so no gradient flows from it; it stands here as it does there, and the monitors say so.
    """

    takes_unlabelled = False

    def __init__(self, config: AlgorithmConfig, sizes: Sizes) -> None:
        Algorithm.__init__(self, config, sizes)
        self.discriminator = nn.Linear(sizes.num_flat, sizes.num_domains)

    def domain_logits(self, batch: TrainBatch) -> Tensor:
        """Return the linear layer's answers to reversed features with their places."""
        flat = reverse(batch.features.flatten(1), reversal_strength(batch.progress))
        logits: Tensor = self.discriminator(flat)
        return logits

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the three terms of the source's loss."""
        outputs = super().forward(batch)
        print_loss = disagreement(batch.logits, batch.groups)
        return outputs | {
            "loss": outputs["loss"] + SOURCE_PRINT_WEIGHT * print_loss,
            "print_loss": print_loss,
        }


class AlternatingDann(Algorithm):
    """The adversary of Ganin et al. 2016 as DomainBed trains it: in turn, with a penalty on gradients.

    Phase `discriminator`, d_steps times: it learns CE(discriminator(z), domain) + grad_penalty *
    mean_i |d CE_i / d z_i|^2. Phase `main`: the rest learns risk - weight * the same, the discriminator
    standing still. Three things differ from DomainBed: all phases of an update have the same batch; the
    optimiser's betas are the platform's (DomainBed: beta1 0.5); and the penalty is on a row's own loss
    (DomainBed: on the probabilities that every row gives to the domains of all rows).
    """

    is_adversarial = True
    takes_unlabelled = True

    def __init__(self, config: AlgorithmConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.phases = ("discriminator",) * int(config.value("d_steps")) + ("main",)
        self.discriminator = build_discriminator(config, sizes.num_features, sizes.num_domains)

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the loss of the phase."""
        teaches = batch.phase == "discriminator"
        # of parameters that stand still, no gradient is even computed
        state = {
            name: p if teaches else p.detach() for name, p in self.discriminator.named_parameters()
        }
        inputs = self.inputs(batch, teaches)
        logits = functional_call(self.discriminator, state, (inputs,))
        losses = nn.functional.cross_entropy(logits.float(), batch.seen[1], reduction="none")
        domain_loss = (losses * self.row_weights(batch)).sum()
        adversarial = domain_loss
        if penalty := self.config.value("grad_penalty"):
            adversarial = domain_loss + penalty * gradient_penalty(losses, inputs)
        loss = adversarial
        if not teaches:
            loss = batch.risk - self.config.value("weight") * adversarial
        return {"loss": loss, "domain_loss": domain_loss, **accuracies(logits, batch)}

    def inputs(self, batch: TrainBatch, teaches: bool) -> Float[Tensor, "all d"]:
        """Return what the discriminator is given, free of the network where it alone is taught."""
        vectors, _ = batch.seen
        return vectors.detach().requires_grad_() if teaches else vectors

    def row_weights(self, batch: TrainBatch) -> Float[Tensor, " all"]:
        """Return the weight of each row in the domain loss; they sum to 1."""
        _, domains = batch.seen
        return torch.full(domains.shape, 1 / len(domains), device=domains.device)


class Cdann(AlternatingDann):
    """Conditional adversary (Li et al. 2018, "Deep domain generalization via conditional invariant adversarial networks").

    As DomainBed: an embedding of the true class is added to the features, and each class of the batch
    weighs as much as any other in the domain loss.
    """

    takes_unlabelled = False

    def __init__(self, config: AlgorithmConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.embeddings = nn.Embedding(sizes.num_classes, sizes.num_features)

    def inputs(self, batch: TrainBatch, teaches: bool) -> Float[Tensor, "batch d"]:
        """Return features plus the embedding of their class."""
        weight = self.embeddings.weight if teaches else self.embeddings.weight.detach()
        return super().inputs(batch, teaches) + nn.functional.embedding(batch.truth, weight)

    def row_weights(self, batch: TrainBatch) -> Float[Tensor, " batch"]:
        """Return weights by which the classes that the batch has share 1 equally."""
        truth = batch.truth
        counts = torch.bincount(truth)
        return 1 / (counts[truth] * (counts > 0).sum())


def gradient_penalty(
    losses: Float[Tensor, " batch"], inputs: Float[Tensor, "batch d"]
) -> Float[Tensor, ""]:
    """Return the mean over rows of the squared norm of a row's gradient by its own input."""
    (gradients,) = torch.autograd.grad(losses.sum(), inputs, create_graph=True)
    return gradients.float().square().sum(1).mean()


def accuracies(logits: Float[Tensor, "all domains"], batch: TrainBatch) -> dict[str, Tensor]:
    """Return how often the discriminator is right; under a name of its own where that is judged."""
    accuracy = (logits.argmax(1) == batch.seen[1]).float().mean()
    late = {"late_domain_accuracy": accuracy} if batch.progress >= LATE else {}
    return {"domain_accuracy": accuracy, **late}
