"""The repeated blocks of a network: what is sharded piece by piece, compiled, and recomputed rather than kept."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the innermost repeated blocks: members of a list or sequence of two or more of one class.

    Blocks have modules below them: a list of linear layers is none. Where stages repeat and hold
    blocks, these are returned.
    """
    children = list(module.children())
    inner = [block for child in children for block in blocks_of(child)]
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    if inner or not is_list or len(children) < 2 or len({type(child) for child in children}) > 1:
        return inner
    return [child for child in children if _is_block(child)]


def _is_block(module: nn.Module) -> bool:
    is_container = isinstance(module, nn.ModuleList | nn.Sequential)
    has_weights = any(True for _ in module.parameters())
    return not is_container and has_weights and any(True for _ in module.children())


def recompute(module: nn.Module) -> int:
    """Let each block that is trained keep its input alone, and compute the rest once more in the backward pass; return how many do.

    Gradients, dropout and running statistics are what they are without.
    """
    blocks = [b for b in blocks_of(module) if any(p.requires_grad for p in b.parameters())]
    for block in blocks:
        block.forward = _Recomputed(block, block.forward)
    return len(blocks)


def compile_blocks(module: nn.Module) -> int:
    """Let torch compile each block, or each child that has none, at rest or not; return how many are.

    Names of weights stay. Blocks of one class share what is compiled; what is recomputed is compiled inside.
    """
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    parts = [part for child in children for part in blocks_of(child) or [child]]
    for part in parts:
        if isinstance(part.forward, _Recomputed):
            part.forward.forward = torch.compile(part.forward.forward)
        else:
            part.compile()
    return len(parts)


class _Recomputed:
    """The forward of a block, recomputed where a gradient is wanted."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        self.block, self.forward = block, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        contexts = partial(_contexts, self.block)
        return checkpoint(self.forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return what surrounds a forward pass, and its repetition."""
    return nullcontext(), _statistics_rest(block)


@contextmanager
def _statistics_rest(block: nn.Module) -> Iterator[None]:
    """Keep batch norms from counting a batch twice."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counts = [cast(Tensor, norm.num_batches_tracked).clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            cast(Tensor, norm.num_batches_tracked).copy_(count)
