"""Images of one group, a print or a part, should be answered alike."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

TINY = 1e-12
"""Least probability of which a logarithm is taken."""


def _of_groups(values: Tensor, groups: Tensor, at_least: int) -> Sequence[Tensor]:
    parts = [values[groups == code] for code in torch.unique(groups)]
    return [part for part in parts if len(part) >= at_least]


def disagreement(
    logits: Float[Tensor, "batch classes"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Return the share of a group's answers that are not its most frequent one, averaged over groups.

    For two classes min(#0, #1) / n, the print loss of seed system 003. It has no gradient.
    """
    answers = _of_groups(logits.argmax(1), groups, 1)
    return torch.stack([1 - part.bincount().max() / len(part) for part in answers]).mean()


def logit_variance(
    logits: Float[Tensor, "batch classes"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Return the variance of the logits within a group, averaged over classes and groups of several rows."""
    parts = _of_groups(logits.float(), groups, 2)
    terms = [part.var(0, unbiased=False).mean() for part in parts]
    return torch.stack(terms).mean() if terms else 0 * logits.float().sum()


def divergence(
    logits: Float[Tensor, "batch classes"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Return mean_i KL(p_i || mean p) of each group's answers p_i, averaged over groups of several rows (nats).

    The generalised Jensen-Shannon divergence (Lin 1991) of the answers.
    """
    parts = _of_groups(logits.float().softmax(1), groups, 2)
    terms = [_entropy(part.mean(0)) - _entropy(part).mean() for part in parts]
    return torch.stack(terms).mean() if terms else 0 * logits.float().sum()


def _entropy(probs: Float[Tensor, "*rows classes"]) -> Float[Tensor, "*rows"]:
    return -(probs * probs.clamp_min(TINY).log()).sum(-1)
