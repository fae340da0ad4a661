"""Adaptation moves what it may, to where numpy says."""

import numpy as np
import pytest
import torch
from torch import nn

from assay.errors import ConfigError
from assay.nn.adapt import entropy, recalibrate, tent


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(6, 4),
    ).eval()


def batches_of(num: int = 5) -> list[torch.Tensor]:
    """Images of a brighter and flatter camera."""
    generator = torch.Generator().manual_seed(1)
    return [2 + 0.3 * torch.randn(8, 3, 6, 6, generator=generator) for _ in range(num)]


def test_recalibrated_statistics_are_those_of_the_batches():
    model, batches = model_of(), batches_of()
    before = {name: p.clone() for name, p in model.named_parameters()}
    recalibrate(model, batches)
    arrays = [batch.double().numpy().transpose(1, 0, 2, 3).reshape(3, -1) for batch in batches]
    mean = np.mean([a.mean(1) for a in arrays], axis=0)
    variance = np.mean([a.var(1, ddof=1) for a in arrays], axis=0)
    np.testing.assert_allclose(model[0].running_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(model[0].running_var.numpy(), variance, rtol=1e-4)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module.training for module in model.modules())
    assert [model[i].momentum for i in (0, 2)] == [0.1, 0.1]


def test_one_batch_is_then_normalised_by_itself():
    """In eval mode its activations have mean 0 and deviation 1."""
    model, (batch,) = model_of(), batches_of(1)
    recalibrate(model, [batch])
    with torch.no_grad():
        normalised = model[0](batch)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalised.std((0, 2, 3)), torch.ones(3), rtol=1e-3, atol=0)


def test_what_ran_in_training_mode_does_so_again():
    model = model_of().train()
    model[6].eval()
    recalibrate(model, batches_of())
    assert model[0].training
    assert not model[6].training


def test_tent_lowers_the_entropy_and_moves_scales_and_shifts_alone():
    model, batches = model_of(), batches_of() * 20
    model[1].weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    entropies = tent(model, batches, lr=0.01)
    assert len(entropies) == 100
    assert np.mean(entropies[-5:]) < 0.9 * np.mean(entropies[:5])
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert [p.requires_grad for p in model[1].parameters()] == [False, True]
    assert model[7].weight.requires_grad
    # it answers as low in eval mode, where the statistics are stored ones
    with torch.no_grad():
        judged = float(torch.stack([entropy(model(batch)) for batch in batches[:5]]).mean())
    assert judged == pytest.approx(np.mean(entropies[-5:]), rel=0.1)


def test_the_first_step_is_adams():
    """Of the first step Adam's size is lr for every parameter with a gradient; its sign is the gradient's."""
    model, (batch,) = model_of(), batches_of(1)
    other = model_of()
    other[0].train()
    other[2].train()
    entropy(other(batch)).backward()
    before = other[2].weight.detach().clone()
    tent(model, [batch], lr=1e-3)
    expected = before - 1e-3 * other[2].weight.grad.sign()
    torch.testing.assert_close(model[2].weight.detach(), expected, rtol=0, atol=2e-6)


def test_entropy_of_uniform_and_of_certain_answers():
    assert float(entropy(torch.zeros(2, 4))) == pytest.approx(np.log(4))
    assert float(entropy(torch.tensor([[100.0, 0.0]]))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("change", [recalibrate, tent])
def test_nothing_to_adapt_is_refused(change):
    with pytest.raises(ConfigError, match="no batch normalisation"):
        change(nn.Linear(2, 2), batches_of())
    with pytest.raises(ConfigError, match="no image of the new domain"):
        change(model_of(), [])
