"""Adversaries against Ganin's formulas, the source and gradients by hand."""

import math

import pytest
import torch
from torch import nn

from assay.nn.domains.adversary import build_discriminator, reversal_strength, reverse
from assay.nn.domains.config import AlgorithmConfig
from assay.nn.domains.consistency import disagreement


def test_the_reversal_strength_is_ganins():
    assert reversal_strength(0.0) == 0
    assert reversal_strength(0.3) == pytest.approx(math.tanh(1.5))  # 2 sigmoid(10 p) - 1
    assert reversal_strength(0.9, ceiling=0.25) == 0.25


def test_reversal_is_the_identity_whose_gradient_is_turned(close):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = reverse(x, 0.7)
    close(y, x)
    (y**3).sum().backward()
    close(x.grad, -0.7 * 3 * x.detach() ** 2)


def test_the_discriminator_has_domainbeds_shape():
    mlp = build_discriminator(AlgorithmConfig(name="dann", width=7, depth=3), 5, 4)
    assert sum(p.numel() for p in mlp.parameters()) == (5 + 1) * 7 + (7 + 1) * 7 + (7 + 1) * 4


def test_dann_reverses_for_the_features_and_not_for_the_discriminator(
    make_batch, algorithm_of, close
):
    """Against two passes without any reversal: one for each side of the game."""
    batch, algorithm = make_batch(), algorithm_of("dann", weight=0.6)
    outputs = algorithm(batch.seen(progress=0.2))
    outputs["loss"].backward()
    vectors = batch.maps.detach().mean((2, 3)).requires_grad_()
    domain_loss = nn.functional.cross_entropy(algorithm.discriminator(vectors), batch.domains)
    risk = nn.functional.cross_entropy(batch.head(vectors), batch.truth)
    expected = torch.autograd.grad(
        risk - 0.6 * math.tanh(1.0) * domain_loss, vectors, retain_graph=True
    )
    close(batch.maps.grad.sum((2, 3)), expected[0])
    taught = torch.autograd.grad(0.6 * domain_loss, list(algorithm.discriminator.parameters()))
    for parameter, gradient in zip(algorithm.discriminator.parameters(), taught, strict=True):
        close(parameter.grad, gradient)
    close(outputs["domain_loss"], domain_loss)


def test_the_discriminators_accuracy_is_judged_late_alone(make_batch, algorithm_of, close):
    seen = make_batch().seen
    algorithm = algorithm_of("dann")
    assert "late_domain_accuracy" not in algorithm(seen(progress=0.4))
    outputs = algorithm(seen(progress=0.5))
    answers = algorithm.discriminator(make_batch().maps.mean((2, 3))).argmax(1)
    expected = (answers == make_batch().domains).float().mean()
    close(outputs["late_domain_accuracy"], expected)
    close(outputs["domain_accuracy"], expected)


def test_the_source_stands_as_it_does_there(make_batch, algorithm_of, close):
    """One linear layer on the flattened map, weights 0.6 and 4, and a print loss without a gradient."""
    batch, algorithm = make_batch(), algorithm_of("dann-source")
    seen = batch.seen()
    outputs = algorithm(seen)
    assert sum(p.numel() for p in algorithm.parameters()) == (20 + 1) * 4
    flat = batch.maps.reshape(12, 20)
    domain_loss = nn.functional.cross_entropy(algorithm.discriminator(flat), batch.domains)
    print_loss = disagreement(seen.logits, seen.groups)
    close(outputs["loss"], seen.losses.mean() + 0.6 * domain_loss + 4 * print_loss)
    assert not outputs["print_loss"].requires_grad


@pytest.mark.parametrize("name", ["dann-alternating", "cdann"])
def test_players_in_turn_move_only_their_own(make_batch, algorithm_of, name):
    batch, algorithm = make_batch(), algorithm_of(name, d_steps=2, grad_penalty=1.0)
    assert algorithm.phases == ("discriminator", "discriminator", "main")
    algorithm(batch.seen(phase="discriminator"))["loss"].backward()
    assert batch.maps.grad is None
    # a last bias does not bear on the gradient penalty, but on the loss
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in algorithm.parameters())
    algorithm.zero_grad(set_to_none=True)
    algorithm(batch.seen(phase="main"))["loss"].backward()
    assert all(p.grad is None for p in algorithm.parameters())
    assert batch.maps.grad.abs().sum() > 0


def test_the_gradient_penalty_is_that_of_a_linear_discriminator(make_batch, algorithm_of, close):
    """Of softmax regression the gradient of a row's loss by its input is (p - onehot) W."""
    batch = make_batch()
    algorithm = algorithm_of("dann-alternating", grad_penalty=0.3, weight=2.0)
    algorithm.discriminator = linear = nn.Linear(5, 4)
    seen = batch.seen()
    logits = linear(seen.vectors)
    wrong = logits.softmax(1) - nn.functional.one_hot(seen.domains, 4)
    penalty = (wrong @ linear.weight).square().sum(1).mean()
    domain_loss = nn.functional.cross_entropy(logits, seen.domains) + 0.3 * penalty
    close(algorithm(batch.seen(phase="discriminator"))["loss"], domain_loss)
    close(algorithm(seen)["loss"], seen.losses.mean() - 2.0 * domain_loss)


def test_cdann_adds_the_class_and_balances_classes(make_batch, algorithm_of, close):
    batch, algorithm = make_batch(), algorithm_of("cdann", weight=1.0)
    seen = batch.seen()
    logits = algorithm.discriminator(seen.vectors + algorithm.embeddings.weight[seen.truth])
    losses = nn.functional.cross_entropy(logits, seen.domains, reduction="none")
    by_class = torch.stack([losses[seen.truth == code].mean() for code in seen.truth.unique()])
    close(algorithm(seen)["domain_loss"], by_class.mean())
