"""Gradients should agree between domains: that of a scale on the logits (IRM), or their scatter (Fishr)."""

import torch
from jaxtyping import Float
from torch import Tensor

from assay.nn.domains.base import Algorithm, Sizes, TrainBatch, mean_of, mean_risks, rows_by_domain
from assay.nn.domains.config import AlgorithmConfig
from assay.nn.domains.risks import annealed


class Irm(Algorithm):
    """Invariant risk minimisation, v1 (Arjovsky et al. 2019).

    loss = mean risk + weight * mean over domains of |d risk_d(s * logits) / d s|^2 at s = 1. The square
    is estimated without bias as the product of the gradients of a domain's even and odd rows. The
    weight is 1 before `anneal`; DomainBed then starts its optimiser anew, here it goes on.
    """

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the mean risk and the squared gradient by the scale."""
        # by the chain rule a row's gradient by s is its gradient by its logits times these
        by_scale = (logit_gradients(batch) * batch.logits.float()).sum(1)
        parts = [by_scale[rows] for rows in rows_by_domain(batch.domains, at_least=2)]
        penalty = mean_of([part[::2].mean() * part[1::2].mean() for part in parts], batch)
        loss = mean_risks(batch).mean() + annealed(self.config, batch.progress, 1.0) * penalty
        return {"loss": loss, "invariance_loss": penalty}


class Fishr(Algorithm):
    """Invariant gradient variances (Rame et al. 2022, "Fishr").

    v_d = variance over a domain's rows of the gradient by the linear classifier, followed by a moving
    average m_d <- decay * m_d + (1 - decay) * v_d; loss = mean risk + weight * mean over domains and
    weights of (m_d - mean m)^2 / (1 - decay)^2, and no penalty before `anneal`.
    """

    averages: Tensor

    def __init__(self, config: AlgorithmConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        num_weights = sizes.num_classes * (sizes.num_features + 1)
        self.register_buffer("averages", torch.zeros(sizes.num_domains, num_weights))

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the mean risk and how much the averages differ, having moved them."""
        decay, gradients = self.config.value("decay"), weight_gradients(batch)
        moved = []
        for rows in rows_by_domain(batch.domains, at_least=2):
            code = batch.domains[rows[0]]
            variance = gradients[rows].var(0, unbiased=False)
            average = decay * self.averages[code] + (1 - decay) * variance
            with torch.no_grad():
                self.averages[code] = average
            moved.append(average / (1 - decay))
        differences = [(average - torch.stack(moved).mean(0)).square().mean() for average in moved]
        penalty = mean_of(differences, batch)
        loss = mean_risks(batch).mean() + annealed(self.config, batch.progress, 0.0) * penalty
        return {"loss": loss, "scatter_loss": penalty}


def logit_gradients(batch: TrainBatch) -> Float[Tensor, "batch classes"]:
    """Return the gradient of each row's loss by its logits, which can be differentiated once more."""
    (gradients,) = torch.autograd.grad(batch.losses.sum(), batch.logits, create_graph=True)
    return gradients.float()


def weight_gradients(batch: TrainBatch) -> Float[Tensor, "batch weights"]:
    """Return the gradient of each row's loss by weight (classes times features) and bias of the classifier."""
    by_logits = logit_gradients(batch)
    by_weight = torch.einsum("nc,nd->ncd", by_logits, batch.vectors.float()).flatten(1)
    return torch.cat([by_weight, by_logits], 1)
