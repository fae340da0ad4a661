"""Style and content are randomised apart, and their heads learn apart."""

import math

import torch
from torch import nn

from assay.nn.domains.sagnet import randomise


def test_randomised_style_keeps_the_content_and_the_other_way_round(close):
    torch.manual_seed(0)
    vectors = torch.randn(64, 40) * (0.5 + torch.rand(64, 1)) + torch.randn(64, 1)

    def content(x):
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    styled = randomise(vectors, "style")
    close(content(styled), content(vectors), rtol=1e-2, atol=1e-2)
    assert (styled.mean(1) - vectors.mean(1)).abs().mean() > 0.1
    assert styled.mean(1).min() >= vectors.mean(1).min()
    swapped = randomise(vectors, "content")
    close(swapped.mean(1), vectors.mean(1), rtol=1e-4, atol=1e-4)
    close(swapped.std(1), vectors.std(1), rtol=1e-3, atol=1e-3)
    assert (content(swapped) - content(vectors)).abs().mean() > 0.5


def test_sagnets_heads_learn_apart(make_batch, algorithm_of, close):
    """The network has no gradient of the style head's risk, nor the style head of the adversary."""
    batch, algorithm = make_batch(), algorithm_of("sagnet")
    outputs = algorithm(batch.seen())
    outputs["style_loss"].backward(retain_graph=True)
    assert batch.maps.grad is None
    assert algorithm.style_head.weight.grad.abs().sum() > 0
    algorithm.zero_grad(set_to_none=True)
    outputs["adversarial_loss"].backward(retain_graph=True)
    assert algorithm.style_head.weight.grad is None
    assert batch.maps.grad.abs().sum() > 0
    expected = outputs["style_loss"] + 0.1 * outputs["adversarial_loss"]
    close(outputs["loss"], batch.seen().losses.mean() + expected)


def test_a_style_head_that_knows_nothing_is_the_adversarys_minimum(make_batch, algorithm_of, close):
    """Cross-entropy with the uniform answer is at least ln of the number of classes."""
    batch, algorithm = make_batch(), algorithm_of("sagnet")
    assert algorithm(batch.seen())["adversarial_loss"] > math.log(3)
    nn.init.zeros_(algorithm.style_head.weight)
    nn.init.zeros_(algorithm.style_head.bias)
    close(algorithm(batch.seen())["adversarial_loss"], math.log(3))
