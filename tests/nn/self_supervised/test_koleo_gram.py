"""KoLeo and the Gram anchor against sums written out, closed forms and degenerate inputs."""

import math

import numpy as np
import pytest
import torch

from assay.nn.self_supervised.gram import gram_loss
from assay.nn.self_supervised.koleo import koleo_loss


def test_koleo_is_the_mean_logarithm_of_the_nearest_distance() -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 3))
    units = [v / math.sqrt((v**2).sum()) for v in vectors]
    total = 0.0
    for i, unit in enumerate(units):
        distances = [math.dist(unit, other) for j, other in enumerate(units) if j != i]
        total -= math.log(min(distances) + 1e-8) / 7
    assert koleo_loss(torch.from_numpy(vectors)).item() == pytest.approx(total, rel=1e-4)


def test_koleo_of_orthogonal_and_of_opposite_vectors() -> None:
    assert koleo_loss(3 * torch.eye(4)).item() == pytest.approx(-0.5 * math.log(2))
    opposite = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert koleo_loss(opposite).item() == pytest.approx(-math.log(2))


def test_koleo_drives_neighbours_apart() -> None:
    vectors = torch.randn(6, 2, generator=torch.Generator().manual_seed(3)).requires_grad_()
    before = koleo_loss(vectors)
    (gradient,) = torch.autograd.grad(before, vectors)
    for i, j in ((0, 1), (4, 0)):
        step = torch.zeros_like(vectors)
        step[i, j] = 1e-3
        with torch.no_grad():
            ends = [koleo_loss(vectors + sign * step).item() for sign in (1, -1)]
        assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(
            gradient[i, j].item(), rel=0.02, abs=1e-3
        )
    assert koleo_loss(vectors - 1e-3 * gradient) < before


@pytest.mark.parametrize("rows", [torch.ones(3, 4), torch.zeros(3, 4), torch.ones(1, 4)])
def test_koleo_of_what_is_all_the_same_or_alone_is_finite(rows: torch.Tensor) -> None:
    rows = rows.clone().requires_grad_()
    loss = koleo_loss(rows)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8) if len(rows) > 1 else 0.0, rel=1e-3)
    assert torch.isfinite(rows.grad).all()


def test_gram_is_the_mean_squared_difference_of_cosines() -> None:
    rng = np.random.default_rng(1)
    student, anchor = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 5))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    gaps = [
        cosine(student[i, a], student[i, b]) - cosine(anchor[i, a], anchor[i, b])
        for i in range(2)
        for a in range(3)
        for b in range(3)
    ]
    loss = gram_loss(torch.from_numpy(student), torch.from_numpy(anchor))
    assert loss.item() == pytest.approx(np.square(gaps).mean(), rel=1e-5)


def test_gram_sees_no_rotation_and_no_scale() -> None:
    tokens = torch.randn(2, 6, 4)
    turn, _ = torch.linalg.qr(torch.randn(4, 4))
    assert gram_loss(3 * tokens @ turn, tokens).item() < 1e-9


def test_gram_of_places_alike_against_places_apart() -> None:
    """All cosines are 1 against the identity: 12 of 16 pairs differ by 1."""
    student = torch.ones(1, 4, 2, requires_grad=True)
    loss = gram_loss(student, torch.eye(4)[None])
    assert loss.item() == pytest.approx(12 / 16)
    loss.backward()
    assert torch.isfinite(student.grad).all()


def test_gram_gives_its_anchor_no_gradient() -> None:
    anchor = torch.randn(1, 3, 4, requires_grad=True)
    student = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(gram_loss(student, anchor), anchor, allow_unused=True) == (None,)
    (gradient,) = torch.autograd.grad(gram_loss(student, anchor), student)
    step = torch.zeros_like(student)
    step[0, 1, 2] = 1e-2
    with torch.no_grad():
        ends = [gram_loss(student + sign * step, anchor).item() for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(gradient[0, 1, 2].item(), rel=0.02, abs=1e-4)
