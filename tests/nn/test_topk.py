"""The sparse selection against dense forms written from the definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from assay.nn import topk
from assay.nn.topk import (
    Estimator,
    draw_noise,
    expected_loss,
    hard_topk,
    mix,
    perturbed_topk,
    score_function_loss,
)

ESTIMATORS: tuple[Estimator, ...] = ("masked_loo", "plain", "diagonal")


def dense_onehots(scores: Tensor, k: int, sigma: float, noise: Tensor) -> Tensor:
    """Select (batch, n, k, d), one sample and one image at a time."""
    onehots = torch.zeros(*noise.shape[:2], k, scores.shape[1], dtype=scores.dtype)
    for image in range(len(scores)):
        for sample in range(noise.shape[1]):
            perturbed = (scores[image] + sigma * noise[image, sample]).tolist()
            best = sorted(range(len(perturbed)), key=lambda cell: -perturbed[cell])[:k]
            for rank, cell in enumerate(sorted(best)):
                onehots[image, sample, rank, cell] = 1
    return onehots


def dense_weights(cells: Tensor, weights: Tensor, num_cells: int) -> Tensor:
    dense = torch.zeros(*weights.shape[:2], num_cells, dtype=weights.dtype)
    for image, slot in (cells >= 0).nonzero().tolist():
        dense[image, :, cells[image, slot]] = weights[image, :, slot]
    return dense


def dense_gradient(onehots: Tensor, noise: Tensor, sigma: float, upstream: Tensor, estimator: str):
    """Apply the estimators of `perturbed_topk`'s docstring to materialised one-hot tensors."""
    num_samples = noise.shape[1]
    terms = onehots * upstream[:, None]  # G[j, e] [I_nj = e]
    if estimator == "diagonal":
        return (terms.sum(2) * noise).sum(1) / (num_samples * sigma)
    returns = terms.sum((2, 3))
    if estimator == "masked_loo":
        others = (returns.sum(1, keepdim=True) - returns) / (num_samples - 1)
        returns = returns - others
    grad = torch.einsum("bn,bne->be", returns, noise) / (num_samples * sigma)
    return grad * (onehots.sum((1, 2)) > 0) if estimator == "masked_loo" else grad


def problem(num_images=3, num_cells=40, num_samples=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_images, num_cells, generator=generator, dtype=torch.float64)
    noise = draw_noise(range(num_images), num_samples, num_cells).double()
    return scores, noise


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("k", "sigma"), [(1, 0.3), (4, 0.05), (7, 0.005), (40, 0.1)])
def test_sparse_values_and_gradients_equal_the_dense_form(estimator, k, sigma):
    scores, noise = problem()
    scores.requires_grad_()
    selection = perturbed_topk(scores, k, sigma, range(3), 60, estimator)
    onehots = dense_onehots(scores.detach(), k, sigma, noise)
    dense = dense_weights(selection.cells, selection.weights, 40)
    torch.testing.assert_close(dense, onehots.mean(1))

    upstream = torch.randn(3, k, 40, dtype=torch.float64)
    (grad,) = torch.autograd.grad((dense * upstream).sum(), scores)
    expected = dense_gradient(onehots, noise, sigma, upstream, estimator)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.01, 0.3])
def test_only_cells_that_were_selected_are_returned_in_order(sigma):
    scores, _ = problem(num_images=5)
    scores[0, 3:7] = 9  # one image is certain of its cells, so that it is padded
    cells, weights = perturbed_topk(scores, 4, sigma, range(5), 60)
    torch.testing.assert_close(weights.sum(2), torch.ones(5, 4, dtype=torch.float64))
    assert cells[0, :4].tolist() == [3, 4, 5, 6]
    assert (cells[0, 4:] == -1).all()
    assert (weights[0, :, 4:] == 0).all()
    for row, shares in zip(cells, weights, strict=True):
        chosen = row[row >= 0].tolist()
        assert chosen == sorted(set(chosen))
        assert (shares[:, : len(chosen)].sum(0) > 0).all()
    assert (cells[:, -1] >= 0).any()  # no wider than the widest image


def test_masked_loo_is_nearer_the_true_gradient_than_plain():
    """A reference of 40 000 samples; means over draws of 200."""
    scores, _ = problem(num_images=1, num_cells=100)
    upstream = torch.randn(100, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def gradient(estimator: Estimator, key: int, num_samples: int) -> Tensor:
        leaf = scores.clone().requires_grad_()
        cells, weights = perturbed_topk(leaf, 4, 0.03, [key], num_samples, estimator)
        loss = (weights * upstream[cells.clamp(min=0)][:, None]).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
        return grad[0]

    reference = gradient("plain", 1000, 40_000)
    cosines = {}
    for estimator in ("masked_loo", "plain"):
        gradients = torch.stack([gradient(estimator, key, 200) for key in range(8)])
        cosines[estimator] = torch.cosine_similarity(gradients, reference, dim=1).mean().item()
    assert cosines["masked_loo"] > max(0.7, cosines["plain"] + 0.2), cosines


def test_noise_depends_on_the_key_alone():
    together = draw_noise(torch.tensor([7, 8, 9]), 6, 50)
    alone = draw_noise([8], 6, 50)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])
    many = draw_noise(range(40), 50, 100)
    assert abs(many.mean().item()) < 0.01
    assert abs(many.std().item() - 1) < 0.01
    neighbours = torch.corrcoef(many.flatten(1))
    assert (neighbours - torch.eye(40)).abs().max() < 0.08  # 5.6 standard errors


def test_hard_topk_takes_the_first_of_equals_in_order_of_position():
    scores = torch.tensor([[0.5, 1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    assert hard_topk(scores, 3).tolist() == [[0, 1, 2], [0, 1, 4]]
    drawn = hard_topk(scores[:, None].expand(2, 6, 5), 2)
    assert drawn.shape == (2, 6, 2)
    assert drawn[1, 5].tolist() == [0, 4]


def greedy(scores: list[float], k: int, apart: int, side: int) -> list[int]:
    """Select by the definition, one cell after the other."""
    chosen: list[int] = []

    def distance(cell: int, other: int) -> int:
        return max(abs(cell // side - other // side), abs(cell % side - other % side))

    while len(chosen) < k:
        free = [c for c in range(len(scores)) if c not in chosen]
        far = [c for c in free if all(distance(c, other) >= apart for other in chosen)]
        chosen.append(max(far or free, key=lambda c: (scores[c], -c)))
    return sorted(chosen)


@given(
    scores=st.lists(st.integers(-3, 3).map(float), min_size=36, max_size=36),
    k=st.integers(1, 36),
    apart=st.integers(1, 7),
)
def test_cells_are_taken_apart_from_each_other_as_long_as_there_are_any(scores, k, apart):
    assert hard_topk(torch.tensor([scores]), k, apart)[0].tolist() == greedy(scores, k, apart, 6)


def test_perturbed_selections_are_apart_too():
    scores = torch.rand(2, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cells, weights = perturbed_topk(scores, 3, 0.2, [5, 6], 40, apart=3)
    noise = draw_noise([5, 6], 40, 64).double()
    perturbed = (scores[:, None] + 0.2 * noise).flatten(0, 1).tolist()
    picked = torch.tensor([greedy(sample, 3, 3, 8) for sample in perturbed]).view(2, 40, 3)
    onehots = torch.nn.functional.one_hot(picked, 64).double()
    torch.testing.assert_close(dense_weights(cells, weights, 64), onehots.mean(1))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_selections_in_portions_are_the_selections_at_once(monkeypatch, estimator):
    def selected():
        scores, _ = problem(num_images=5)
        scores.requires_grad_()
        cells, weights = perturbed_topk(scores, 4, 0.05, range(5), 60, estimator)
        (weights * torch.arange(weights.numel()).view_as(weights)).sum().backward()
        return cells, weights, scores.grad

    whole = selected()
    monkeypatch.setattr(topk, "NOISE_NUMBERS", 2 * 60 * 40)  # two images at a time
    torch.testing.assert_close(selected(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("numbers", "width"), [(1, 1), (3 * 75 * 4, 4), (10**6, 11)])
def test_mixtures_and_their_gradients_are_the_dense_ones(monkeypatch, numbers, width):
    """With one cell at a time, with a part left over, and all at once."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 11, 3, 5, 5, generator=generator, dtype=torch.float64)
    weights = torch.rand(3, 4, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 4, 3, 5, 5, generator=generator, dtype=torch.float64)
    expected = torch.einsum("bkm,bmchw->bkchw", weights, patches)
    (gradient,) = torch.autograd.grad((expected * upstream).sum(), weights)
    monkeypatch.setattr(topk, "PATCH_NUMBERS", numbers)
    widths = []

    def cut(part: slice) -> Tensor:
        widths.append(patches[:, part].shape[1])
        return patches[:, part]

    mixed = mix(weights, cut, (3, 5, 5))
    torch.testing.assert_close(mixed, expected.detach(), rtol=1e-12, atol=1e-12)
    (sparse,) = torch.autograd.grad((mixed * upstream).sum(), weights)
    torch.testing.assert_close(sparse, gradient, rtol=1e-12, atol=1e-12)
    assert max(widths) == width  # never more at a time
    assert sum(widths) == (11 if width == 11 else 22)  # cut again for the gradient unless all fit


def test_perturbation_vanishes_with_sigma():
    scores, _ = problem()
    cells, weights = perturbed_topk(scores, 5, 1e-9, range(3), 60)
    assert torch.equal(cells, hard_topk(scores, 5))
    assert torch.equal(weights, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))


def test_score_function_gradient_equals_the_closed_form():
    scores, noise = problem(num_samples=6)
    scores.requires_grad_()
    cells = hard_topk(scores[:, None] + 0.1 * noise, 4)
    losses = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)
    surrogate = score_function_loss(scores, noise, 0.1, cells, losses)
    assert surrogate.shape == (3,)
    assert surrogate.abs().max() == 0
    surrogate.sum().backward()
    expected = torch.zeros_like(scores)
    for image in range(3):
        for draw in range(6):
            others = [losses[image, other].item() for other in range(6) if other != draw]
            advantage = losses[image, draw].item() - sum(others) / 5
            expected[image] += advantage * noise[image, draw] / (6 * 0.1)
        for cell in set(range(40)) - set(cells[image].flatten().tolist()):
            expected[image, cell] = 0
    torch.testing.assert_close(scores.grad, expected)
    assert losses.grad is None


def test_score_function_gradient_is_that_of_the_expected_loss():
    """Two cells and k = 1: the first wins with probability Phi((s0 - s1) / (sigma sqrt 2))."""
    sigma, costs = 0.5, torch.tensor([1.0, 3.0], dtype=torch.float64)
    scores = torch.tensor([[0.2, 0.5]], dtype=torch.float64, requires_grad=True)
    probability = torch.special.ndtr((scores[0, 0] - scores[0, 1]) / (sigma * 2**0.5))
    (expected,) = torch.autograd.grad(costs[0] * probability + costs[1] * (1 - probability), scores)
    num_images = 4000  # each an independent estimate from 16 draws
    many = scores.detach().expand(num_images, 2).clone().requires_grad_()
    noise = torch.randn(
        num_images, 16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    cells = hard_topk(many[:, None] + sigma * noise, 1)
    score_function_loss(many, noise, sigma, cells, costs[cells[..., 0]]).sum().backward()
    standard_error = many.grad.std(0) / num_images**0.5
    assert (standard_error < 0.03 * expected.abs()).all()
    assert ((many.grad.mean(0) - expected[0]).abs() < 4 * standard_error).all()


def test_expected_loss_is_the_mean_under_gumbel_noise():
    scores = torch.tensor([[0.1, 0.9, 0.4, 0.7]], dtype=torch.float64, requires_grad=True)
    cells = torch.tensor([[0, 1, 3]])
    losses = torch.tensor([[2.0, 1.0, 5.0]], dtype=torch.float64, requires_grad=True)
    loss = expected_loss(scores, cells, losses, 0.3)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(200_000, 3, generator=generator, dtype=torch.float64)
    best = (scores[0, cells[0]] - 0.3 * (-uniform.log()).log()).argmax(1)
    drawn = losses.detach()[0][best]
    assert abs(drawn.mean() - loss.item()) < 4 * drawn.std() / 200_000**0.5
    loss.sum().backward()
    assert scores.grad[0, 2] == 0  # its loss is not known
    assert scores.grad[0, 1] < 0 < scores.grad[0, 3]  # cheap cells rise
    assert abs(scores.grad.sum()) < 1e-12
    shares = torch.bincount(best, minlength=3) / 200_000  # each teaches as often as it is drawn
    assert torch.allclose(losses.grad[0], shares.double(), atol=5e-3)
