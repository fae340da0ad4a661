"""iBOT: the student names, at places that it was not shown, the prototype that the teacher gives to them.

The mean over images of the mean over an image's hidden places of H(teacher, student) (Zhou et al. 2022, "iBOT:
image BERT pre-training with online tokenizer"), so that each image weighs the same however much of it is
hidden; those without a hidden place count in the number of images, as in DINOv2 (Oquab et al. 2023).

What is hidden are boxes of random area and ratio (Bao et al. 2022, "BEiT").
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

MIN_PATCHES = 4
"""Smallest area of a box that is drawn (patches)."""

MAX_RATIO = 1 / 0.3
"""Largest ratio of a box's sides, either way."""

NUM_TRIES = 10
"""Boxes that are tried before a mask stays as it is."""


def ibot_loss(
    student: Float[Tensor, "hidden k"],
    teacher: Float[Tensor, "hidden k"],
    mask: Bool[Tensor, "images patches"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the loss.

    Args:
        student: Its logits at hidden places, in the order of the mask's.
        teacher: Its probabilities there.
        mask: What is hidden of each crop.
        temperature: Of the student.
    """
    log_probs = (student.float() / temperature).log_softmax(-1)
    losses = -(teacher.float() * log_probs).sum(-1)
    num_hidden = mask.sum(1, keepdim=True).clamp_min(1)
    weights = (1 / num_hidden).expand(mask.shape)[mask]
    return (losses * weights).sum() / len(mask)


def draw_mask(
    height: int, width: int, num_hidden: int, rng: np.random.Generator
) -> Bool[np.ndarray, "height width"]:
    """Hide `num_hidden` of these patches, or a little less, by boxes that may overlap."""
    mask = np.zeros((height, width), dtype=bool)
    while left := num_hidden - int(mask.sum()):
        box = next((b for _ in range(NUM_TRIES) if (b := _draw_box(mask, left, rng))), None)
        if box is None:
            break
        mask[box] = True
    return mask


def _draw_box(mask: np.ndarray, most: int, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Draw a box that hides 1 to `most` further patches; None where what is drawn does not."""
    area = rng.uniform(min(MIN_PATCHES, most), most)
    ratio = math.exp(rng.uniform(-1, 1) * math.log(MAX_RATIO))
    sides = np.rint(np.sqrt([area * ratio, area / ratio])).astype(int)
    if (sides >= mask.shape).any():
        return None
    top, left = rng.integers(0, np.array(mask.shape) - sides, endpoint=True)
    box = slice(top, top + sides[0]), slice(left, left + sides[1])
    return box if 0 < np.count_nonzero(~mask[box]) <= most else None


def draw_masks(
    num: int,
    grid: tuple[int, int],
    probability: float,
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Bool[np.ndarray, "num height width"]:
    """Draw a mask for each of an image's crops; each has one with a probability, of an area drawn between two shares."""
    height, width = grid
    shares = rng.uniform(*ratio, num) * (rng.random(num) < probability)
    numbers = (shares * height * width).astype(int).tolist()
    return np.stack([draw_mask(height, width, number, rng) for number in numbers])
