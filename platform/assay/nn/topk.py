"""Which k of d cells to look at, with a gradient for the scores that chose them.

Perturbed top-k (Cordonnier et al. 2021, "Differentiable patch selection for image recognition";
Berthet et al. 2020, "Learning with differentiable perturbed optimizers") smooths the selection
by Gaussian noise: Y[j, e] = P(the j-th selected cell, in order of position, is e). The estimate
from n samples is sparse, since only cells that some sample selected have a weight, and both it
and its gradient are computed here from the selected indices alone, without a one-hot tensor.

Memory is bounded however flat the scores are: noise is drawn for a few images at a time, and
patches are mixed a few cells at a time; what is more than one portion is made once more in the
backward pass.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Estimator = Literal["masked_loo", "plain", "diagonal"]

NOISE_NUMBERS = 1 << 24
"""Numbers of noise held at a time (64 MB), of one image at least."""

PATCH_NUMBERS = 1 << 26
"""Numbers of patches held at a time while they are mixed (256 MB), of one cell at least."""


class Selection(NamedTuple):
    """The cells that some noise sample selected, and how often each of them was the j-th.

    cells: positions in ascending order, -1 where an image has fewer than the batch's most.
    weights: share of the samples; each row sums to 1 and padding has weight 0.
    """

    cells: Int[Tensor, "batch active"]
    weights: Float[Tensor, "batch k active"]


def draw_noise(
    keys: Int[Tensor, " batch"] | Sequence[int],
    num_samples: int,
    num_cells: int,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "batch n d"]:
    """Draw standard normal noise from each image's own key.

    An image's noise depends on its key alone: not on the rest of the batch, nor on the number
    of workers. CPU and GPU draw different noise from the same key.
    """
    generator = torch.Generator(device)
    noise = torch.empty(len(keys), num_samples, num_cells, device=device)
    for row, key in zip(noise, keys, strict=True):
        generator.manual_seed(int(key))
        row.normal_(generator=generator)
    return noise


def hard_topk(scores: Float[Tensor, "*batch d"], k: int, apart: int = 1) -> Int[Tensor, "*batch k"]:
    """Select the k best cells, in ascending order of position; of equal scores the first cell wins.

    Args:
        scores: Scores of the cells.
        k: Cells to select, 1..d.
        apart: Least distance of two selected cells, in cells along a row or a column of the square
            grid, so that patches do not repeat each other: the best cell is taken, then the best
            that is far enough from it, and so on. Where no such cell is left, the best of the
            others are taken.
    """
    if apart <= 1:
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
        return best.sort(dim=-1).values
    side = math.isqrt(scores.shape[-1])
    cells = torch.arange(scores.shape[-1], device=scores.device)
    rows, columns = cells // side, cells % side
    is_near = is_chosen = torch.zeros_like(scores, dtype=torch.bool)
    lowest = scores - 1 - 2 * scores.abs().max()  # below every cell that is far enough
    for _ in range(k):
        candidates = torch.where(is_near, lowest, scores).masked_fill(is_chosen, -torch.inf)
        best = candidates.argmax(-1, keepdim=True)
        gap = (rows - rows[best]).abs().maximum((columns - columns[best]).abs())
        is_near, is_chosen = is_near | (gap < apart), is_chosen | (gap == 0)
    return is_chosen.nonzero()[:, -1].view(*scores.shape[:-1], k)


def perturbed_topk(
    scores: Float[Tensor, "batch d"],
    k: int,
    sigma: float,
    keys: Int[Tensor, " batch"] | Sequence[int],
    num_samples: int = 500,
    estimator: Estimator = "masked_loo",
    apart: int = 1,
) -> Selection:
    """Estimate the noise-averaged top-k selection, differentiable in the scores.

    With Z the noise, I[n, j] the j-th cell of sample n, G the gradient that arrives at the
    weights and w[n] = sum_j G[j, I[n, j]], the gradient of cell e is

    - "plain": sum_n w[n] Z[n, e] / (n sigma), unbiased, but mostly noise at common settings.
      (The widespread PyTorch form has a factor k more, which has no ground in the formula.)
    - "masked_loo": the same with the mean of the other samples taken from w[n] (which costs no
      bias and much variance), and 0 for cells that no sample selected (a little bias).
    - "diagonal": sum_n sum_j G[j, e] [I[n, j] = e] Z[n, e] / (n sigma), the form of the
      authors' JAX code; biased, since it sees only a cell's own weight.

    Args:
        scores: Scores of the cells, commonly scaled to 0..1.
        k: Cells to select, 1..d.
        sigma: Standard deviation of the perturbation in units of the scores, above 0.
        keys: Key of each image's noise (see `draw_noise`).
        num_samples: Samples of noise per image, at least two.
        estimator: Form of the gradient.
        apart: Least distance of two selected cells (see `hard_topk`).
    """
    assert sigma > 0
    assert 0 < k <= scores.shape[1]
    assert num_samples > 1
    keys = [int(key) for key in keys]
    cells, weights = _PerturbedTopK.apply(scores, keys, num_samples, k, sigma, estimator, apart)
    return Selection(cells, weights)


def _portions(count: int, numbers: int, most: int) -> list[slice]:
    """Split `count` images or cells, of so many numbers each, so that a slice has at most `most` numbers, or one of them."""
    step = max(1, most // numbers)
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]


class _PerturbedTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        keys: Sequence[int],
        num_samples: int,
        k: int,
        sigma: float,
        estimator: Estimator,
        apart: int,
    ) -> tuple[Tensor, Tensor]:
        num_images, num_cells = scores.shape
        picked = torch.empty(num_images, num_samples, k, dtype=torch.long, device=scores.device)
        portions = _portions(num_images, num_samples * num_cells, NOISE_NUMBERS)
        for images in portions:
            noise = draw_noise(keys[images], num_samples, num_cells, scores.device)
            perturbed = torch.add(scores[images, None], noise.to(scores.dtype), alpha=sigma)
            picked[images] = _pick(perturbed, k, apart)
        counts = scores.new_zeros(num_images, k, num_cells)
        counts.scatter_add_(2, picked.mT, torch.ones_like(picked.mT, dtype=scores.dtype))
        is_active = counts.sum(1) > 0
        slots = is_active.cumsum(1) - 1
        cells = _pack(is_active, slots)
        index = cells.clamp(min=0)[:, None].expand(-1, k, -1)
        weights = counts.gather(2, index) * (cells >= 0)[:, None] / num_samples
        ctx.save_for_backward(picked, slots, is_active, *([noise] if len(portions) == 1 else []))
        ctx.keys, ctx.sigma, ctx.estimator, ctx.portions = keys, sigma, estimator, portions
        ctx.mark_non_differentiable(cells)
        return cells, weights

    @staticmethod
    def backward(ctx: Any, _: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        picked, slots, is_active, *saved_noise = ctx.saved_tensors
        num_samples, num_cells = picked.shape[1], is_active.shape[1]
        slot = slots.gather(1, picked.flatten(1)).view_as(picked)
        terms = upstream.gather(2, slot.mT).mT  # G[j, I[n, j]] as (batch, n, k)
        grad = upstream.new_zeros(is_active.shape)
        for images in ctx.portions:
            if saved_noise:
                noise = saved_noise[0]
            else:
                noise = draw_noise(ctx.keys[images], num_samples, num_cells, grad.device)
            noise = noise.to(grad.dtype)
            if ctx.estimator == "diagonal":
                products = (terms[images] * noise.gather(2, picked[images])).flatten(1)
                grad[images] = grad[images].scatter_add(1, picked[images].flatten(1), products)
            else:
                returns = terms[images].sum(2)
                if ctx.estimator == "masked_loo":
                    returns = _minus_others(returns)
                grad[images] = (returns[:, None] @ noise)[:, 0]
        if ctx.estimator == "masked_loo":
            grad = grad * is_active
        return grad / (num_samples * ctx.sigma), None, None, None, None, None, None


def _pick(perturbed: Tensor, k: int, apart: int) -> Tensor:
    """Select by `hard_topk`; faster where cells may touch, since noise leaves hardly any equal scores."""
    if apart > 1:
        return hard_topk(perturbed, k, apart)
    return perturbed.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values


def _pack(is_active: Tensor, slots: Tensor) -> Tensor:
    """List the active cells of each image, each in its slot; -1 where an image has fewer."""
    width = int(is_active.sum(1).max())
    cells = torch.full((len(is_active), width), -1, device=is_active.device)
    image, cell = is_active.nonzero(as_tuple=True)
    cells[image, slots[image, cell]] = cell
    return cells


def mix(
    weights: Float[Tensor, "batch k active"],
    cut: Callable[[slice], Float[Tensor, "batch some *patch"]],
    shape: Sequence[int],
) -> Float[Tensor, "batch k *patch"]:
    """Mix patches, sum_m weights[:, :, m] patches[:, m], with a gradient for the weights.

    Only a part of the patches is held at a time; if they are more than one part, the backward
    pass cuts them once more. Patches get no gradient.

    Args:
        weights: As `perturbed_topk` gives them.
        cut: Patches of the active cells in a slice.
        shape: Of one patch.
    """
    mixed: Tensor = _Mix.apply(weights, cut, math.prod(shape))
    return mixed.view(*weights.shape[:2], *shape)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, cut: Callable[[slice], Tensor], numbers: int) -> Tensor:
        ctx.parts = _portions(weights.shape[2], len(weights) * numbers, PATCH_NUMBERS)
        ctx.cut = cut
        mixed = weights.new_zeros(*weights.shape[:2], numbers)
        with torch.autocast(weights.device.type, enabled=False):
            for part in ctx.parts:
                patches = cut(part).flatten(2)
                mixed.baddbmm_(weights[:, :, part], patches)
        ctx.save_for_backward(weights, *([patches] if len(ctx.parts) == 1 else []))
        return mixed

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        weights, *saved_patches = ctx.saved_tensors
        grad = torch.empty_like(weights)
        for part in ctx.parts:
            patches = saved_patches[0] if saved_patches else ctx.cut(part).flatten(2)
            grad[:, :, part] = upstream @ patches.mT
        return grad, None, None


def score_function_loss(
    scores: Float[Tensor, "batch d"],
    noise: Float[Tensor, "batch draws d"],
    sigma: float,
    cells: Int[Tensor, "batch draws k"],
    losses: Float[Tensor, "batch draws"],
) -> Float[Tensor, " batch"]:
    """Return a term of value 0 whose gradient is that of the expected loss of a hard selection.

    An image is judged under a few draws of noise, each with k whole patches, never a mixture, so
    that fine texture is not averaged away. Of E_Z[loss(top-k(scores + sigma Z))] the gradient is
    E[loss Z] / sigma (score function of the normal distribution), here estimated by
    (1 / (S sigma)) sum_s (loss_s - mean of the other losses) Z_s and set to 0 at cells that no
    draw selected. Add the term to the mean of `losses`, which trains the rest of the network.

    Args:
        scores: As given to the selection.
        noise: The draws, at least two.
        sigma: Standard deviation of the perturbation, above 0.
        cells: Cells that each draw selected, as `hard_topk(scores[:, None] + sigma * noise, k)`.
        losses: Loss of the image under each draw; no gradient flows into it from here.
    """
    assert sigma > 0
    assert noise.shape[1] > 1
    advantage = _minus_others(losses.detach())
    grad = (advantage[:, None] @ noise.to(scores.dtype))[:, 0] / (noise.shape[1] * sigma)
    is_active = torch.zeros_like(scores).scatter_(1, cells.flatten(1), 1.0)
    return ((scores - scores.detach()) * grad * is_active).sum(1)


def expected_loss(
    scores: Float[Tensor, "batch d"],
    cells: Int[Tensor, "batch m"],
    losses: Float[Tensor, "batch m"],
    temperature: float,
) -> Float[Tensor, " batch"]:
    """Return the expected loss of one cell drawn by its score, among cells whose own loss is known.

    Under Gumbel noise of scale `temperature` the best of the cells follows a softmax of their
    scores, so the expectation of the perturbed top-1, and its gradient for the scores, need no
    noise at all: sum_m softmax(scores[cells] / temperature)_m losses_m. With the loss of each
    patch classified alone at randomly drawn cells, it teaches a scorer where to look before
    its own selection is any good; each drawn cell is a lesson, whereas a selection of k cells
    gets one loss for all. The gradient flows into the losses too: a cell that the scorer favours
    teaches the classifier more than the many that show nothing, and the two find the signal
    together.

    Args:
        scores: As given to the selection.
        cells: Drawn cells, uniformly or by an earlier selection; repeats count repeatedly.
        losses: Loss of the image judged by each cell alone.
        temperature: Scale of the noise in units of the scores, above 0.
    """
    probs = (scores.gather(1, cells) / temperature).softmax(1)
    return (probs * losses).sum(1)


def _minus_others(returns: Tensor) -> Tensor:
    """Take from each value the mean of the others along dimension 1."""
    count = returns.shape[1]
    return (returns - returns.mean(1, keepdim=True)) * (count / (count - 1))
