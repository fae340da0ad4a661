"""A head that was fitted to a table of predictions, as it is exported behind a frozen backbone."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.metrics.frozen_heads import FrozenHead


class FrozenLinear(nn.Module):
    """From features x to (x - mean) weights + bias, and to what they weigh among others of their group.

    The mean goes first, lest it hides small deviations in float32.
    """

    mean: Tensor
    weights: Tensor
    bias: Tensor
    query: Tensor

    def __init__(self, head: FrozenHead) -> None:
        super().__init__()
        self.head = head
        query = np.zeros(len(head.mean)) if head.query is None else head.query
        values = {"mean": head.mean, "weights": head.weights, "bias": head.bias, "query": query}
        for name, array in values.items():
            self.register_buffer(name, torch.tensor(array, dtype=torch.float32))

    def forward(
        self, features: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n classes"], Float[Tensor, " n"]]:
        """Return logits, and logarithms of weights."""
        centred = features - self.mean
        return centred @ self.weights + self.bias, centred @ self.query
