"""Features of any two domains should be distributed alike: CORAL by two moments, MMD by a kernel."""

from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.nn.domains.base import Algorithm, TrainBatch, mean_of, mean_risks, rows_by_domain

BANDWIDTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""Factors of the squared distance in DomainBed's Gaussian kernels."""


class Coral(Algorithm):
    """Deep CORAL (Sun and Saenko 2016): mean and covariance of the features agree.

    loss = mean risk of the domains + weight * mean over pairs of (|mean - mean'|^2 / d +
    |cov - cov'|_F^2 / d^2), as DomainBed. Domains with one row in the batch have no covariance and are
    left out.
    """

    takes_unlabelled = True

    def distance(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
        """Return how far the moments of two sets of features are apart."""
        means = (x.mean(0) - y.mean(0)).square().mean()
        return means + (covariance(x) - covariance(y)).square().mean()

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the mean risk and the mean distance of pairs of domains."""
        vectors, domains = batch.seen
        parts = [vectors[rows].float() for rows in rows_by_domain(domains, at_least=2)]
        penalty = mean_of([self.distance(x, y) for x, y in combinations(parts, 2)], batch)
        risk = mean_risks(batch).mean() if len(batch.losses) else batch.risk
        loss = risk + self.config.value("weight") * penalty
        return {"loss": loss, "distance_loss": penalty}


class Mmd(Coral):
    """Maximum mean discrepancy (Gretton et al. 2012; Li et al. 2018, "Domain generalization with adversarial feature learning").

    The distance is E k(x, x') + E k(y, y') - 2 E k(x, y) over all pairs of rows, k a sum of Gaussians.
    """

    def distance(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
        """Return the discrepancy of two sets of features."""
        return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()


def covariance(x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Return the unbiased covariance of the columns."""
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Return the sum over bandwidths of exp(-bandwidth * |x_i - y_j|^2)."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    squares = squares.clamp_min(0)
    return torch.stack([torch.exp(-bandwidth * squares) for bandwidth in BANDWIDTHS]).sum(0)
