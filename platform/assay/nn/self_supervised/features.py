"""Feature distillation: a network learns the features of another on the same views, without labels.

L = mean of smooth L1 (beta 2) between a projection of the student's features and the teacher's, which are freed of their
own mean and deviation by a layer normalisation without weights (Wei et al. 2022, "Contrastive learning rivals masked
image modeling in fine-tuning via feature distillation").
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm, smooth_l1_loss

BETA = 2.0
"""Where the loss goes from a parabola to a line (deviations of the teacher's features)."""


def feature_loss(
    projected: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """Return the loss; the teacher has no gradient."""
    target = layer_norm(teacher.detach().float(), teacher.shape[1:])
    return smooth_l1_loss(projected.float(), target, beta=BETA)
