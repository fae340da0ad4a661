"""Risks of the domains should be equal (VREx), or the worst should weigh most (GroupDRO)."""

import torch
from torch import Tensor

from assay.nn.domains.base import Algorithm, Sizes, TrainBatch, mean_risks
from assay.nn.domains.config import AlgorithmConfig


class Vrex(Algorithm):
    """Risk extrapolation (Krueger et al. 2021): loss = mean of the domains' risks + weight * their variance.

    The weight is 1 before `anneal`. DomainBed then starts its optimiser anew; here it goes on.
    """

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return mean and variance of the risks."""
        risks = mean_risks(batch)
        penalty = risks.var(unbiased=False)
        loss = risks.mean() + annealed(self.config, batch.progress, 1.0) * penalty
        return {"loss": loss, "variance_loss": penalty}


class GroupDro(Algorithm):
    """Group distributionally robust optimisation (Sagawa et al. 2020), its groups being the domains.

    q_d <- q_d exp(eta * risk_d), normalised; loss = sum_d q_d risk_d. Domains that a batch lacks keep
    their weight and take no part in its loss.
    """

    weights: Tensor

    def __init__(self, config: AlgorithmConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.register_buffer("weights", torch.full((sizes.num_domains,), 1 / sizes.num_domains))

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the weighted risk, having moved the weights."""
        risks, present = mean_risks(batch), torch.unique(batch.domains)
        with torch.no_grad():
            logs = self.weights.log()  # of which no step is too large for float32
            logs[present] += self.config.value("eta") * risks
            # a domain that weighs nothing could never weigh again, nor share a batch that is all its own
            self.weights.copy_(logs.softmax(0).clamp_min(torch.finfo(logs.dtype).tiny))
        shares = self.weights[present] / self.weights[present].sum()
        return {"loss": shares @ risks, "worst_risk": risks.detach().max()}


def annealed(config: AlgorithmConfig, progress: float, before: float) -> float:
    """Return the weight of a penalty: `before`, and from `anneal` on its own."""
    return float(config.value("weight")) if progress >= config.value("anneal") else before
