"""The Gram anchor: places of an image stay as like each other as an earlier teacher saw them.

L = mean over images and pairs of places of (x_i . x_j - y_i . y_j)^2, of tokens at unit length, the student's x
and the anchor's y (Siméoni et al. 2025, "DINOv3"). What each token means may move, how they lie to each other may not.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def gram_loss(
    student: Float[Tensor, "images patches d"], anchor: Float[Tensor, "images patches e"]
) -> Float[Tensor, ""]:
    """Return the loss; the widths of student and anchor may differ."""
    with torch.autocast(student.device.type, enabled=False):
        grams = []
        for tokens in (student, anchor.detach()):
            units = normalize(tokens.float(), dim=-1)
            grams.append(units @ units.mT)
        return (grams[0] - grams[1]).square().mean()
