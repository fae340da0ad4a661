"""Which k of d cells to look at, with a gradient for the scores that chose them.

Perturbed top-k (Cordonnier et al. 2021, "Differentiable patch selection for image recognition";
Berthet et al. 2020, "Learning with differentiable perturbed optimizers") smooths the selection
by Gaussian noise: Y[j, e] = P(the j-th selected cell, in order of position, is e). The estimate
from n samples is sparse, since only cells that some sample selected have a weight, and both it
and its gradient are computed here from the selected indices alone, without a one-hot tensor.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Estimator = Literal["masked_loo", "plain", "diagonal"]


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
    """Standard normal noise drawn from each sample's own key.

    A sample's noise depends on its key alone: not on the rest of the batch, nor on the number
    of workers. CPU and GPU draw different noise from the same key.
    """
    generator = torch.Generator(device)
    noise = torch.empty(len(keys), num_samples, num_cells, device=device)
    for row, key in zip(noise, keys, strict=True):
        generator.manual_seed(int(key))
        row.normal_(generator=generator)
    return noise


def hard_topk(scores: Float[Tensor, "*batch d"], k: int) -> Int[Tensor, "*batch k"]:
    """The k best cells in ascending order of position; of equal scores the first cell wins."""
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return best.sort(dim=-1).values


def perturbed_topk(
    scores: Float[Tensor, "batch d"],
    k: int,
    sigma: float,
    noise: Float[Tensor, "batch n d"],
    estimator: Estimator = "masked_loo",
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
        noise: Standard normal, at least two samples (see `draw_noise`).
        estimator: Form of the gradient.
    """
    assert sigma > 0
    assert 0 < k <= scores.shape[1]
    assert noise.shape[1] > 1
    cells, weights = _PerturbedTopK.apply(scores, noise, k, sigma, estimator)
    return Selection(cells, weights)


class _PerturbedTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, noise: Tensor, k: int, sigma: float, estimator: Estimator
    ) -> tuple[Tensor, Tensor]:
        num_images, num_samples, num_cells = noise.shape
        perturbed = torch.add(scores[:, None], noise.to(scores.dtype), alpha=sigma)
        picked = perturbed.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
        counts = scores.new_zeros(num_images, k, num_cells)
        counts.scatter_add_(2, picked.mT, torch.ones_like(picked.mT, dtype=scores.dtype))
        is_active = counts.sum(1) > 0
        slots = is_active.cumsum(1) - 1
        width = int(is_active.sum(1).max())
        cells = torch.full((num_images, width), -1, device=scores.device)
        image, cell = is_active.nonzero(as_tuple=True)
        cells[image, slots[image, cell]] = cell
        index = cells.clamp(min=0)[:, None].expand(-1, k, -1)
        weights = counts.gather(2, index) * (cells >= 0)[:, None] / num_samples
        ctx.save_for_backward(noise, picked, slots, is_active)
        ctx.sigma, ctx.estimator = sigma, estimator
        ctx.mark_non_differentiable(cells)
        return cells, weights

    @staticmethod
    def backward(ctx: Any, _: Tensor, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        noise, picked, slots, is_active = ctx.saved_tensors
        num_samples = noise.shape[1]
        noise = noise.to(upstream.dtype)
        slot = slots.gather(1, picked.flatten(1)).view_as(picked)
        terms = upstream.gather(2, slot.mT).mT  # G[j, I[n, j]] as (batch, n, k)
        if ctx.estimator == "diagonal":
            terms = terms * noise.gather(2, picked)
            grad = terms.new_zeros(is_active.shape)
            grad.scatter_add_(1, picked.flatten(1), terms.flatten(1))
        else:
            returns = terms.sum(2)
            if ctx.estimator == "masked_loo":
                returns = _minus_others(returns)
            grad = (returns[:, None] @ noise)[:, 0]
            if ctx.estimator == "masked_loo":
                grad = grad * is_active
        return grad / (num_samples * ctx.sigma), None, None, None, None


def score_function_loss(
    scores: Float[Tensor, "batch d"],
    noise: Float[Tensor, "batch draws d"],
    sigma: float,
    cells: Int[Tensor, "batch draws k"],
    losses: Float[Tensor, "batch draws"],
) -> Float[Tensor, " batch"]:
    """A term of value 0 whose gradient is that of the expected loss of a hard selection.

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
    """Expected loss of one cell drawn by its score, among cells whose own loss is known.

    Under Gumbel noise of scale `temperature` the best of the cells follows a softmax of their
    scores, so the expectation of the perturbed top-1, and its gradient for the scores, need no
    noise at all: sum_m softmax(scores[cells] / temperature)_m losses_m. With the loss of each
    patch classified alone at randomly drawn cells, it teaches a scorer where to look before
    its own selection is any good; each drawn cell is a lesson, whereas a selection of k cells
    gets one loss for all.

    Args:
        scores: As given to the selection.
        cells: Drawn cells, uniformly or by an earlier selection; repeats count repeatedly.
        losses: Loss of the image judged by each cell alone; no gradient flows into it from here.
        temperature: Scale of the noise in units of the scores, above 0.
    """
    probs = (scores.gather(1, cells) / temperature).softmax(1)
    return (probs * losses.detach()).sum(1)


def _minus_others(returns: Tensor) -> Tensor:
    """Each value less the mean of the others along dimension 1."""
    count = returns.shape[1]
    return (returns - returns.mean(1, keepdim=True)) * (count / (count - 1))
