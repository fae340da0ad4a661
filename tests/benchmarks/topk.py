"""Perturbed top-k, forward and backward: from indices alone against materialised one-hot tensors.

python tests/benchmarks/topk.py
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench import peak_mb, seconds, table, write
from torch import Tensor

from assay.nn.topk import draw_noise, perturbed_topk

BATCH, K, NUM_NOISE, SIGMA = 1, 8, 500, 0.05
CELLS = (400, 1024, 2704)


class _Materialised(torch.autograd.Function):
    """The widespread form: one-hot tensors forward, a (k, d, d) product backward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, noise: Tensor) -> Tensor:
        picked = (scores[:, None] + SIGMA * noise).topk(K).indices.sort(-1).values
        onehots = torch.nn.functional.one_hot(picked, scores.shape[1]).float()
        ctx.save_for_backward(onehots, noise)
        return onehots.mean(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        onehots, noise = ctx.saved_tensors
        spread = torch.einsum("bnkd,bne->bkde", onehots, noise) / (NUM_NOISE * SIGMA)
        return torch.einsum("bkde,bkd->be", spread, upstream), None


def materialised(scores: Tensor, upstream: Tensor) -> Callable[[], Tensor]:
    """A step of the dense form."""

    def step() -> Tensor:
        leaf = scores.clone().requires_grad_()
        noise = draw_noise(range(BATCH), NUM_NOISE, scores.shape[1])
        (_Materialised.apply(leaf, noise) * upstream).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return step


def indexed(scores: Tensor, upstream: Tensor) -> Callable[[], Tensor]:
    """A step of Assay's form."""

    def step() -> Tensor:
        leaf = scores.clone().requires_grad_()
        cells, weights = perturbed_topk(leaf, K, SIGMA, range(BATCH), NUM_NOISE, "plain")
        held = upstream.gather(2, cells.clamp(min=0)[:, None].expand(-1, K, -1))
        (weights * held).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return step


STEPS = {"materialised": materialised, "indexed": indexed}


def problem(num_cells: int) -> tuple[Tensor, Tensor]:
    """Scores and the gradient that arrives at the weights."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(BATCH, num_cells, generator=generator)
    return scores, torch.randn(BATCH, K, num_cells, generator=generator)


def measured(kind: str, num_cells: int) -> Iterator[None]:
    """One step for its peak memory."""
    step = STEPS[kind](*problem(num_cells))
    yield
    step()


def main() -> None:
    """Measure each number of cells."""
    rows = []
    for num_cells in CELLS:
        steps = {kind: make(*problem(num_cells)) for kind, make in STEPS.items()}
        gap = (steps["materialised"]() - steps["indexed"]()).abs().max().item()
        noise = partial(draw_noise, range(BATCH), NUM_NOISE, num_cells)
        taken = seconds({**steps, "noise": noise}, 20)
        less = (taken["materialised"] - taken["noise"]) / (taken["indexed"] - taken["noise"])
        memory = {kind: peak_mb(measured, kind, num_cells) for kind in steps}
        cells = [
            str(num_cells),
            f"{1000 * taken['materialised']:.0f} ms",
            f"{1000 * taken['indexed']:.1f} ms",
            f"{taken['materialised'] / taken['indexed']:.0f}x",
            f"{1000 * taken['noise']:.1f} ms",
            f"{less:.0f}x",
            f"{memory['materialised']:.0f} MB",
            f"{memory['indexed']:.0f} MB",
            f"{gap:.0e}",
        ]
        rows.append(cells)
    write(
        __file__,
        f"One image, k = {K}, {NUM_NOISE} samples of noise drawn within the step, sigma {SIGMA}, float32, forward and backward. Goal: 50 times faster at 1024 cells.",
        table(
            [
                "cells",
                "materialised",
                "indexed",
                "faster",
                "of each the noise",
                "faster but for it",
                "materialised peak",
                "indexed peak",
                "largest difference",
            ],
            rows,
        ),
        "Both draw the same noise, of one image by one thread: half of the indexed form's time at 1024 cells. The other half is the perturbed scores and their top-k, so that the goal is missed without the noise too.",
    )


if __name__ == "__main__":
    main()
