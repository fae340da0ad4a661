"""iBOT's loss against sums written out, and its masks against what they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.nn.self_supervised.ibot import draw_mask, draw_masks, ibot_loss


def test_the_loss_weighs_images_alike() -> None:
    """Three crops with 1, 3 and no hidden places; crop by crop, place by place."""
    rng = np.random.default_rng(0)
    mask = np.array([[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]], bool)
    student, teacher = rng.normal(size=(4, 5)), rng.dirichlet(np.ones(5), 4)
    expected, place = 0.0, 0
    for crop in mask:
        losses = []
        for _ in range(crop.sum()):
            shares = np.exp(student[place] / 0.1)
            losses.append(-(teacher[place] * np.log(shares / shares.sum())).sum())
            place += 1
        expected += np.mean(losses) / 3 if losses else 0.0
    tensors = [torch.from_numpy(array) for array in (student, teacher, mask)]
    assert ibot_loss(*tensors, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_one_hidden_place_of_each_crop_and_no_knowledge_cost_the_logarithm_of_the_prototypes() -> (
    None
):
    teacher = torch.eye(6)[:4]
    loss = ibot_loss(torch.zeros(4, 6), teacher, torch.eye(4, dtype=torch.bool), 0.1)
    assert loss.item() == pytest.approx(math.log(6))


def test_where_nothing_is_hidden_the_loss_is_0_and_has_a_gradient() -> None:
    student = torch.zeros(0, 6, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 6), torch.zeros(2, 9, dtype=torch.bool), 0.1)
    assert loss.item() == 0
    loss.backward()


def test_gradients_agree_with_differences() -> None:
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64).softmax(-1)
    mask = torch.tensor([[True, True, False], [False, False, True]])
    (gradient,) = torch.autograd.grad(ibot_loss(student, teacher, mask, 0.5), student)
    # each row: (softmax - teacher) / temperature by its image's weight, over two images
    weight = torch.tensor([1 / 2, 1 / 2, 1.0]).double()[:, None] / 2
    expected = ((student / 0.5).softmax(-1) - teacher) / 0.5 * weight
    assert torch.allclose(gradient, expected.detach(), atol=1e-6)


@settings(max_examples=150)
@given(st.integers(1, 16), st.integers(1, 16), st.floats(0, 0.5), st.integers(0, 2**64 - 1))
def test_a_mask_hides_no_more_than_was_asked(h: int, w: int, share: float, key: int) -> None:
    num = int(share * h * w)
    mask = draw_mask(h, w, num, np.random.default_rng(key))
    assert mask.shape == (h, w)
    assert mask.sum() <= num
    assert np.array_equal(mask, draw_mask(h, w, num, np.random.default_rng(key)))


def test_of_large_images_nearly_all_that_was_asked_is_hidden_in_blocks() -> None:
    rng = np.random.default_rng(1)
    shares, lone = [], []
    for _ in range(200):
        mask = draw_mask(16, 16, 77, rng)
        shares.append(mask.sum() / 77)
        around = np.pad(mask, 1)
        neighbours = around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]
        lone.append((mask & ~neighbours).sum() / mask.sum())
    assert np.mean(shares) > 0.95
    # of 77 places drawn one by one (1 - .3)^4 = .24 would stand alone
    assert np.mean(lone) < 0.03


def test_half_of_the_crops_are_masked_by_a_tenth_to_a_half() -> None:
    rng = np.random.default_rng(2)
    masks = draw_masks(1000, (14, 14), 0.5, (0.1, 0.5), rng)
    shares = masks.mean((1, 2))
    masked = shares[shares > 0]
    assert len(masked) / 1000 == pytest.approx(0.5, abs=0.05)
    assert masked.max() <= 0.5
    # a uniform share has the mean .3, and boxes leave a little undone
    assert masked.mean() == pytest.approx(0.29, abs=0.02)
    assert not draw_masks(3, (4, 4), 0.0, (0.1, 0.5), rng).any()
