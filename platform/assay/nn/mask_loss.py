"""Losses of masks.

Overlap losses are taken over each image, so that a batch may be shared out over workers in any way, or
over each worker's whole batch, where an image with few pixels of a class weighs little. They have one pixel
of smoothing in numerator and denominator, so that where there is no pixel of a class they still ask for
nothing to be marked; without it their gradient there is 0 and a batch of clean layers teaches nothing.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

MaskLoss = Literal["dice", "bce", "focal", "tversky", "combined"]

Over = Literal["image", "batch"]

SMOOTHING = 1.0
"""Pixels."""


def mask_loss(
    kind: MaskLoss,
    logits: Float[Tensor, "batch classes h w"],
    masks: Float[Tensor, "batch classes h w"],
    pos_weight: float = 1.0,
    beta: float = 0.7,
    over: Over = "image",
    judged: Float[Tensor, "batch 1 h w"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return the loss of each image, the mean over its classes.

    - dice: 1 - (2 tp + s) / (2 tp + fp + fn + s), of probabilities (Milletari et al., V-Net, 2016)
    - tversky: with fn weighted by `beta` and fp by 1 - `beta` (Salehi et al., 2017)
    - bce: binary cross-entropy, pixels inside weighted by `pos_weight`
    - focal: of strength 2, alpha 1/4 (Lin et al., 2017), times 4 / alpha, so that at the start it is
      of bce's size
    - combined: dice + bce

    Args:
        kind: Which of these.
        logits: Of every pixel.
        masks: 1 inside, 0 outside.
        pos_weight: For bce and combined.
        beta: For tversky.
        over: What dice and tversky sum over; of a batch all images have the same.
        judged: 0 where nobody knows the class, else 1; None: 1 everywhere. Those pixels have no part in
            any sum; means stay over all pixels.
    """
    logits = logits.float()
    judged = torch.ones_like(logits[:, :1]) if judged is None else judged
    losses: dict[MaskLoss, Callable[[], Tensor]] = {
        "dice": lambda: _overlap(logits, masks, 0.5, over, judged),
        "tversky": lambda: _overlap(logits, masks, beta, over, judged),
        "bce": lambda: _cross_entropy(logits, masks, pos_weight, judged),
        "focal": lambda: 16 * (sigmoid_focal_loss(logits, masks) * judged).mean((1, 2, 3)),
        "combined": lambda: (
            _overlap(logits, masks, 0.5, over, judged)
            + _cross_entropy(logits, masks, pos_weight, judged)
        ),
    }
    return losses[kind]()


def _cross_entropy(logits: Tensor, masks: Tensor, pos_weight: float, judged: Tensor) -> Tensor:
    weight = torch.tensor(pos_weight, device=logits.device)
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, masks, pos_weight=weight, reduction="none"
    )
    return (losses * judged).mean((1, 2, 3))


def _overlap(logits: Tensor, masks: Tensor, beta: float, over: Over, judged: Tensor) -> Tensor:
    probs = logits.sigmoid() * judged
    dims = (2, 3) if over == "image" else (0, 2, 3)
    hits = (probs * masks).sum(dims)
    alarms, missed = probs.sum(dims) - hits, masks.sum(dims) - hits
    wrong = (1 - beta) * alarms + beta * missed
    return (1 - (hits + SMOOTHING) / (hits + wrong + SMOOTHING)).mean(-1).expand(len(logits))
