"""KoLeo: embeddings spread over the sphere.

L = - mean over i of log(|x_i - x_j| + eps), x_j the nearest other embedding at unit length: the entropy's
estimate by Kozachenko and Leonenko (Sablayrolles et al. 2019, "Spreading vectors for similarity search"). The nearest is
sought among all workers' rows, so that the loss of a batch does not depend on their number.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from assay.nn.self_supervised.workers import gather_rows

EPS = 1e-8


def koleo_loss(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the loss of one crop's embeddings, each of another image; 0 where there is no other."""
    with torch.autocast(embeddings.device.type, enabled=False):
        units = normalize(embeddings.float(), dim=1)
        everyone, first = gather_rows(units)
        if len(everyone) < 2:
            return 0 * units.sum()
        similarity = units.detach() @ everyone.detach().T
        similarity.diagonal(first).fill_(-torch.inf)
        nearest = everyone[similarity.argmax(1)]
        return -((units - nearest).norm(dim=1) + EPS).log().mean()
