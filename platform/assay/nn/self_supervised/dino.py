"""DINO: the student names, from any crop, the prototype that the teacher gives to another crop of the image.

H(t, s) = - sum over prototypes k of p_t[k] log softmax(s / student temperature)[k], summed over every
pair of a teacher's and a student's crop but a crop with itself, over the number of pairs (Caron et al. 2021,
"Emerging properties in self-supervised vision transformers"; Oquab et al. 2023, "DINOv2").

What the teacher gives is sharpened by its temperature, and kept from giving all to one prototype:

    centering         softmax((t - c) / temperature); c follows the mean of t at a rate of 1 - momentum
    sinkhorn_knopp    shares of exp(t / temperature) that give all prototypes the same weight over the
                      batch (Caron et al. 2020, "SwAV"; Cuturi 2013)
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.self_supervised.workers import max_over_workers, sum_over_workers

Centering = Literal["centering", "sinkhorn_knopp"]

NUM_ITERATIONS = 3
"""Of Sinkhorn-Knopp."""


def cross_entropies(
    student: Float[Tensor, "s n k"], teacher: Float[Tensor, "t n k"], temperature: float
) -> Float[Tensor, "s t"]:
    """Return the mean cross-entropy of each student's crop with each teacher's.

    Args:
        student: Logits of each crop of n images.
        teacher: Probabilities of each crop of them.
        temperature: Of the student.
    """
    with torch.autocast(student.device.type, enabled=False):
        log_probs = (student.float() / temperature).log_softmax(-1)
        return -torch.einsum("snk,tnk->st", log_probs, teacher.float()) / student.shape[1]


def dino_losses(
    large: Float[Tensor, "g n k"],
    small: Float[Tensor, "l n k"],
    teacher: Float[Tensor, "g n k"],
    temperature: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the parts of the loss over the large crops, each with the others, and over the small ones.

    Args:
        large: Student's logits of the large crops, of which there are two at least.
        small: Its logits of the small ones.
        teacher: Probabilities of the large crops.
        temperature: Of the student.
    """
    num_pairs = len(teacher) * (len(large) - 1 + len(small))
    among_large = cross_entropies(large, teacher, temperature)
    small_sum = cross_entropies(small, teacher, temperature).sum()
    return (among_large.sum() - among_large.trace()) / num_pairs, small_sum / num_pairs


class Assignment(nn.Module):
    """Gives each of the teacher's logits its probabilities over prototypes, without a gradient.

    Args:
        num_prototypes: k.
        centering: How no prototype comes to be given all.
        momentum: Of the centre.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, centering: Centering, momentum: float = 0.9) -> None:
        super().__init__()
        self.centering, self.momentum = centering, momentum
        if centering == "centering":
            self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
        """Return the probabilities; in training the centre then follows the logits of all workers."""
        logits = logits.detach().float()
        if self.centering == "sinkhorn_knopp":
            return sinkhorn_knopp(logits, temperature)
        probs = ((logits - self.center) / temperature).softmax(-1)
        if self.training:
            num = sum_over_workers(torch.tensor(float(len(logits)), device=logits.device))
            mean = sum_over_workers(logits.sum(0)) / num.clamp_min(1)
            # where no worker has a row there is no mean
            self.center.lerp_(mean, (1 - self.momentum) * float(num > 0))
        return probs


def sinkhorn_knopp(
    logits: Float[Tensor, "n k"], temperature: float, num_iterations: int = NUM_ITERATIONS
) -> Float[Tensor, "n k"]:
    """Return probabilities (rows sum to 1) whose sum over all workers' rows is nearly the same for each prototype.

    exp(logits / temperature) is scaled in turn so that prototypes have the same sum, and rows have.
    """
    scores = logits.float() / temperature
    lowest = torch.finfo(scores.dtype).min
    peak = max_over_workers(scores.max() if scores.numel() else scores.new_tensor(lowest))
    shares = (scores - peak).exp()
    tiny = torch.finfo(shares.dtype).tiny
    for _ in range(num_iterations):
        shares = shares / sum_over_workers(shares.sum(0)).clamp_min(tiny)
        shares = shares / shares.sum(1, keepdim=True).clamp_min(tiny)
    return shares
