"""What shows that a network has stopped to tell images apart, whatever its loss says.

Each is a share or a number that does not depend on the scale of embeddings, and says "no collapse" of
batches that are too small to show one.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

MIN_ROWS = 4
"""Of which a rank says something."""


def usage_entropy(probs: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Return the entropy of the mean assignment as a share, 1 at most, of what n sure rows can have, min(log n, log k): 0 where one prototype is given to all."""
    most = math.log(min(probs.shape))
    entropy = torch.special.entr(probs.float().mean(0)).sum()
    return (entropy / most).clamp_max(1) if most else torch.ones_like(entropy)


def uniform_divergence(probs: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Return the mean Kullback-Leibler divergence of the rows from the uniform distribution over log k: 0 where nothing is told apart, 1 where each row is sure."""
    return 1 - torch.special.entr(probs.float()).sum(1).mean() / math.log(probs.shape[1])


def spread_rank(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the effective rank of unit embeddings about their mean: how many directions they differ in.

    The exponential of the entropy of the singular values' shares (Roy and Vetterli 2007). Of less than
    MIN_ROWS rows, d; of embeddings that are not finite, not a number.
    """
    num, width = embeddings.shape
    if num < MIN_ROWS:
        return embeddings.new_tensor(float(width))
    with torch.autocast(embeddings.device.type, enabled=False):
        units = torch.nn.functional.normalize(embeddings.float(), dim=1)
        if not torch.isfinite(
            units
        ).all():  # the monitors have a sentence for it, and svdvals has none
            return units.new_tensor(math.nan)
        values = torch.linalg.svdvals(units - units.mean(0))
        share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
        return torch.special.entr(share).sum().exp()
