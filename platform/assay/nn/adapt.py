"""A trained model meets another domain: fitted to images of it that bear no label.

What was adapted to is no longer unseen: figures of an adapted model stand apart from those of one that
was not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from assay.errors import ConfigError


def recalibrate(model: nn.Module, batches: Sequence[Float[Tensor, "_ 3 h w"]]) -> None:
    """Replace the statistics of batch normalisation by those of the batches (Li et al. 2016; Schneider et al. 2020).

    Mean and (unbiased) variance are the means over batches of the batches' own. All else stays, dropout included.

    Raises:
        ConfigError: the model has no batch normalisation, or there is no batch.
    """
    norms = batch_norms(model)
    _refuse_empty(batches)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative mean
    with _batch_statistics(model, norms), torch.no_grad():
        for images in batches:
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def tent(
    model: nn.Module, batches: Sequence[Float[Tensor, "_ 3 h w"]], lr: float = 1e-3
) -> list[float]:
    """Lower the entropy of the model's answers, one step of Adam for each batch (TENT, Wang et al. 2021).

    Only scale and shift of batch normalisation move, under the statistics of each batch; at the end the
    statistics are those of all batches, so that the model answers in eval mode.

    Args:
        model: From images to logits.
        batches: Images of the new domain.
        lr: Learning rate.

    Returns:
        The mean entropy (nats) of each batch's answers before its step.

    Raises:
        ConfigError: the model has no batch normalisation, or there is no batch.
    """
    norms = batch_norms(model)
    _refuse_empty(batches)
    moved = [p for norm in norms for p in norm.parameters(recurse=False)]
    learnt = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    for parameter in moved:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(moved, lr=lr)
    entropies = []
    with _batch_statistics(model, norms):
        for images in batches:
            loss = entropy(model(images))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            entropies.append(loss.item())
    model.requires_grad_(False)
    for parameter in learnt:
        parameter.requires_grad_()
    recalibrate(model, batches)
    return entropies


def entropy(logits: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    """Return the mean entropy of answers, in nats."""
    logarithms = logits.float().log_softmax(1)
    return -(logarithms.exp() * logarithms).sum(1).mean()


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the model's layers of batch normalisation.

    Raises:
        ConfigError: there are none.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise ConfigError(
            "The model has no batch normalisation, which is all that is adapted; choose a network with it, or leave adaptation out."
        )
    return norms


def _refuse_empty(batches: Sequence[Tensor]) -> None:
    if not batches:
        raise ConfigError(
            "There is no image of the new domain to adapt to; give at least one batch."
        )


@contextmanager
def _batch_statistics(model: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Run batch normalisation by each batch's own statistics, and all else as when judging."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for module, mode in was_training.items():
            module.training = mode
