"""DINO's loss and assignments against sums written out, closed forms and Sinkhorn's fixed point."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.nn.self_supervised.dino import (
    Assignment,
    cross_entropies,
    dino_losses,
    sinkhorn_knopp,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values - values.max())
    return shares / shares.sum()


def reference(large: np.ndarray, small: np.ndarray, teacher: np.ndarray) -> tuple[float, float]:
    """DINOv2's own order of sums, crop by crop and image by image, at a temperature of .1."""
    num_large, num_images, num_prototypes = large.shape
    terms = num_large * (num_large - 1) + len(small) * num_large
    sums = []
    for crops, swapped in ((large, True), (small, False)):
        total = 0.0
        for s, student in enumerate(crops):
            for t in range(num_large):
                if swapped and s == t:
                    continue
                for i in range(num_images):
                    log_probs = np.log(softmax(student[i] / 0.1))
                    for k in range(num_prototypes):
                        total -= teacher[t, i, k] * log_probs[k] / num_images
        sums.append(total / terms)
    return sums[0], sums[1]


@pytest.mark.parametrize(("num_large", "num_small"), [(2, 0), (2, 5), (3, 1)])
def test_the_loss_is_the_sum_over_pairs_of_crops(num_large: int, num_small: int) -> None:
    large, small = drawn(num_large, 4, 6), drawn(num_small, 4, 6, seed=1)
    teacher = (drawn(num_large, 4, 6, seed=2) / 0.3).softmax(-1)
    losses = [float(loss) for loss in dino_losses(large, small, teacher, 0.1)]
    expected = reference(large.numpy(), small.numpy(), teacher.numpy())
    assert losses == pytest.approx(expected, rel=1e-5)


def test_where_nothing_is_known_the_loss_is_the_logarithm_of_the_prototypes() -> None:
    teacher = drawn(2, 3, 7).softmax(-1)
    losses = dino_losses(torch.zeros(2, 3, 7), torch.zeros(4, 3, 7), teacher, 0.1)
    assert float(losses[0]) == pytest.approx(2 / 10 * math.log(7))
    assert float(losses[1]) == pytest.approx(8 / 10 * math.log(7))


def test_the_loss_is_least_where_the_student_says_what_the_teacher_does() -> None:
    teacher = drawn(1, 5, 8).softmax(-1)
    same = (0.1 * teacher.log()).requires_grad_()
    loss = cross_entropies(same, teacher, 0.1)
    entropy = -(teacher * teacher.log()).sum(-1).mean()
    assert loss.item() == pytest.approx(entropy.item())
    (gradient,) = torch.autograd.grad(loss.sum(), same)
    assert gradient.abs().max() < 1e-6


def test_gradients_are_those_of_a_cross_entropy() -> None:
    """softmax(s / T) - t over T and the number of images; a gradient by differences agrees."""
    logits, teacher = drawn(1, 3, 5).requires_grad_(), drawn(1, 3, 5, seed=1).softmax(-1)
    loss = cross_entropies(logits, teacher, 0.5)[0, 0]
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = ((logits / 0.5).softmax(-1) - teacher) / 0.5 / 3
    assert torch.allclose(gradient, expected.detach(), atol=1e-6)
    step = torch.zeros_like(logits)
    step[0, 1, 2] = 1e-2
    with torch.no_grad():
        ends = [cross_entropies(logits + sign * step, teacher, 0.5).item() for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(gradient[0, 1, 2].item(), rel=1e-3)


def test_centring_follows_the_mean_of_what_came_before() -> None:
    assignment = Assignment(4, "centering").train()
    batches = [drawn(6, 4, seed=seed).float() for seed in range(3)]
    center = np.zeros(4)
    for batch in batches:
        probs = assignment(batch, 0.2)
        expected = [softmax((row - center) / 0.2) for row in batch.numpy()]
        np.testing.assert_allclose(probs.numpy(), expected, rtol=1e-5)
        center = 0.9 * center + 0.1 * batch.numpy().mean(0)
    np.testing.assert_allclose(assignment.center.numpy(), center, rtol=1e-5)
    # judging does not move it, nor does a batch in which nothing is hidden
    assignment.eval()(batches[0], 0.2)
    assignment.train()(torch.zeros(0, 4), 0.2)
    np.testing.assert_allclose(assignment.center.numpy(), center, rtol=1e-5)


def sinkhorn_reference(logits: np.ndarray, temperature: float) -> np.ndarray:
    """As SwAV states it: a matrix of prototypes by rows, scaled to 1/K and 1/B in turn."""
    matrix = np.exp(logits.T / temperature)
    matrix /= matrix.sum()
    num_prototypes, num_rows = matrix.shape
    for _ in range(3):
        for k in range(num_prototypes):
            matrix[k] /= matrix[k].sum() * num_prototypes
        for b in range(num_rows):
            matrix[:, b] /= matrix[:, b].sum() * num_rows
    return (matrix * num_rows).T


def test_sinkhorn_is_that_of_the_paper() -> None:
    logits = drawn(9, 5).numpy()
    probs = sinkhorn_knopp(torch.from_numpy(logits), 0.4)
    np.testing.assert_allclose(probs.numpy(), sinkhorn_reference(logits, 0.4), rtol=1e-4)


def test_after_many_rounds_all_prototypes_weigh_the_same() -> None:
    probs = sinkhorn_knopp(drawn(12, 4), 0.3, num_iterations=200)
    assert torch.allclose(probs.sum(1), torch.ones(12))
    assert torch.allclose(probs.sum(0), torch.full((4,), 3.0), atol=1e-4)


def test_of_two_rows_that_want_one_prototype_the_nearer_has_it() -> None:
    logits = torch.tensor([[1.0, 0.9], [1.0, 0.0]])
    plain = (logits / 0.01).softmax(-1)
    assert plain.argmax(1).tolist() == [0, 0]
    assert sinkhorn_knopp(logits, 0.01).argmax(1).tolist() == [1, 0]


@settings(max_examples=50)
@given(st.integers(1, 5), st.integers(2, 6), st.floats(0.02, 2), st.floats(0, 50))
def test_assignments_are_finite_probabilities(
    num: int, prototypes: int, temperature: float, scale: float
) -> None:
    logits = scale * drawn(num, prototypes)
    for centering in ("centering", "sinkhorn_knopp"):
        probs = Assignment(prototypes, centering)(logits, temperature)
        assert torch.isfinite(probs).all()
        assert probs.min() >= 0
        near = (scale / temperature) < 50  # beyond, what is left of float32 may all be 0
        assert not near or torch.allclose(probs.sum(1), torch.ones(num), atol=1e-4)


def test_there_may_be_no_row() -> None:
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.1).shape == (0, 5)
