"""Counts against those that torchvision publishes, and against closed forms."""

import pytest
import torch
import torchvision
from torch import nn

from assay.nn.macs import count_macs


@pytest.mark.parametrize("name", ["ResNet18", "ViT_B_16"])
def test_counts_are_the_published_ones(name):
    published = getattr(torchvision.models, f"{name}_Weights").IMAGENET1K_V1.meta["_ops"]
    net = getattr(torchvision.models, name.lower())().eval().requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    total, trained = count_macs(net, torch.zeros(1, 3, 224, 224))
    assert total / 1e9 == pytest.approx(published, abs=5e-4)
    assert trained == 0
    assert torch.backends.mha.get_fastpath_enabled() == fast


class Attention(nn.Module):
    """Products of a module's own beside those of its children, one of which is without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(8, 8), nn.Linear(8, 8)
        self.inner = Product()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, tokens):
        weights = self.keys(tokens) @ tokens.transpose(1, 2)
        return self.norm(self.inner(weights, self.values(tokens)))


class Product(nn.Module):
    def forward(self, weights, values):
        return weights @ values


def test_a_product_is_of_the_innermost_module_that_has_parameters():
    net = Attention().eval()
    linear, product = 6 * 8 * 8, 6 * 6 * 8
    total = 2 * linear + 2 * product
    tokens = torch.zeros(1, 6, 8)
    assert count_macs(net, tokens) == (total, total)
    net.keys.requires_grad_(False)
    assert count_macs(net, tokens) == (total, total - linear)
    net.values.requires_grad_(False)
    assert count_macs(net, tokens) == (total, 2 * product)  # the norm is trained still
    net.norm.requires_grad_(False)
    assert count_macs(net, tokens) == (total, 0)
