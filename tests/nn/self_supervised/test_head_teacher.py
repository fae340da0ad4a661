"""The head's geometry, the teacher's mean, and what tells a collapse."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from assay.nn.self_supervised.collapse import spread_rank, uniform_divergence, usage_entropy
from assay.nn.self_supervised.head import BatchNorm, HeadConfig, PrototypeHead
from assay.nn.self_supervised.teacher import follow

HEAD = HeadConfig(num_prototypes=9, hidden=12, bottleneck=5)


def test_logits_are_cosines_with_the_prototypes_times_their_lengths() -> None:
    head = PrototypeHead(7, HEAD)
    head.prototypes.length.data[2] = 4.0
    tokens = torch.randn(3, 7)
    inner = head.layers(tokens)
    for row, token in zip(head(tokens), inner, strict=True):
        for k, logit in enumerate(row):
            direction = head.prototypes.direction[k]
            cosine = torch.dot(token, direction) / token.norm() / direction.norm()
            assert logit.item() == pytest.approx(cosine.item() * (4.0 if k == 2 else 1.0), abs=1e-5)


def test_the_prototypes_are_those_of_torchs_weight_normalisation() -> None:
    head = PrototypeHead(7, HEAD)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(5, 9, bias=False))
    theirs.parametrizations.weight.original0.data.fill_(1)
    theirs.parametrizations.weight.original1.data.copy_(head.prototypes.direction.data)
    units = nn.functional.normalize(torch.randn(4, 5))
    assert torch.allclose(head.prototypes(units), theirs(units), atol=1e-6)


@pytest.mark.parametrize(("num_layers", "widths"), [(1, [7, 5]), (3, [7, 12, 12, 5])])
def test_the_layers_are_as_many_as_asked(num_layers: int, widths: list[int]) -> None:
    head = PrototypeHead(7, HeadConfig(num_layers=num_layers, hidden=12, bottleneck=5))
    linear = [module for module in head.layers if isinstance(module, nn.Linear)]
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == widths
    assert len(head.layers) == 2 * num_layers - 1


def test_hidden_layers_are_normalised_as_torch_does_it() -> None:
    head = PrototypeHead(7, replace(HEAD, batch_norm=True))
    norms = [module for module in head.layers if isinstance(module, BatchNorm)]
    assert [norm.weight.numel() for norm in norms] == [12, 12]
    assert isinstance(head.layers[-1], nn.Linear)
    rows, theirs = torch.randn(6, 12) * 3 + 1, nn.BatchNorm1d(12)
    for norm in (norms[0], theirs):
        norm.weight.data, norm.bias.data = torch.linspace(1, 2, 12), torch.linspace(-1, 1, 12)
    gradients = []
    for norm in (norms[0], theirs):
        inputs = rows.clone().requires_grad_()
        outputs = norm(inputs)
        outputs.pow(3).sum().backward()
        gradients.append((outputs.detach(), inputs.grad, norm.weight.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_lengths_are_learnt_unless_they_are_kept() -> None:
    for kept in (False, True):
        head = PrototypeHead(7, replace(HEAD, unit_length=kept))
        head(torch.randn(3, 7)).square().sum().backward()
        assert (head.prototypes.length.grad is None) == kept
        assert head.prototypes.direction.grad is not None


def test_the_teacher_is_the_mean_of_what_the_student_was() -> None:
    teacher, student = nn.Linear(2, 1), nn.Linear(2, 1)
    expected = teacher.weight.detach().clone().numpy()
    for value, momentum in ((1.0, 0.5), (3.0, 0.9), (-2.0, 0.0), (5.0, 1.0)):
        student.weight.data.fill_(value)
        follow(teacher, student, momentum)
        expected = momentum * expected + (1 - momentum) * value
        np.testing.assert_allclose(teacher.weight.detach().numpy(), expected, rtol=1e-6)
    assert (student.weight == 5).all()


def test_usage_is_0_of_one_prototype_and_1_of_all() -> None:
    one = torch.eye(8)[[3] * 16]
    assert usage_entropy(one).item() == 0
    assert usage_entropy(torch.eye(8)).item() == pytest.approx(1)
    assert usage_entropy(torch.eye(8)[:2]).item() == pytest.approx(1)  # two rows can use two
    half = torch.eye(8)[[0, 1] * 8]
    assert usage_entropy(half).item() == pytest.approx(math.log(2) / math.log(8))
    assert usage_entropy(torch.eye(8)[:1]).item() == 1  # one row says nothing


def test_divergence_is_0_of_uniform_rows_and_1_of_sure_ones() -> None:
    assert uniform_divergence(torch.full((3, 8), 1 / 8)).item() == pytest.approx(0, abs=1e-6)
    assert uniform_divergence(torch.eye(8)).item() == 1
    probs = np.random.default_rng(0).dirichlet(np.ones(8), 5)
    expected = np.mean([(p * np.log(p * 8)).sum() for p in probs]) / math.log(8)
    assert uniform_divergence(torch.from_numpy(probs)).item() == pytest.approx(expected, rel=1e-5)


def test_rank_counts_the_directions_that_rows_differ_in() -> None:
    corners = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, 1], [1, 1, -1, 1], [1, -1, -1, 1]])
    assert spread_rank(7 * corners).item() == pytest.approx(2, abs=1e-4)
    line = torch.tensor([[1.0, 0.1 * i, 0, 0] for i in (-2, -1, 1, 2)])
    assert 1 <= spread_rank(line).item() < 1.3
    assert spread_rank(corners[:3]).item() == 4  # too few to say anything
    assert torch.isfinite(spread_rank(torch.ones(5, 4)))
    assert torch.isnan(spread_rank(torch.full((5, 4), torch.nan)))
