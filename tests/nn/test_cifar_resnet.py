"""The source's network: weights and shapes counted by hand."""

import pytest
import torch

from assay.errors import ConfigError
from assay.nn.cifar_resnet import CifarResNetConfig

# 3x3 convolutions: stem; stage 1; then of each stage the first (half the channels in), the rest, the shortcut
STAGES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
WEIGHTS_10 = (
    9 * 3 * 64
    + (2 * 9 * 64 * 64)
    + (9 * 64 * 128 + 9 * 128 * 128 + 64 * 128)
    + (9 * 128 * 256 + 9 * 256 * 256 + 128 * 256)
    + (9 * 256 * 512 + 9 * 512 * 512 + 256 * 512)
)
CHANNELS_10 = 64 + 2 * 64 + 3 * (128 + 256 + 512)
"""Outputs of all convolutions."""


def more(depth: int) -> tuple[int, int]:
    """Weights and outputs of what a deeper network has beyond ten layers."""
    extra = [num - 1 for num in STAGES[depth]]
    widths = (64, 128, 256, 512)
    weights = sum(num * 2 * 9 * w * w for num, w in zip(extra, widths, strict=True))
    return weights, sum(num * 2 * w for num, w in zip(extra, widths, strict=True))


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("depth", [10, 18, 34])
def test_parameters_are_those_counted_by_hand(depth, norm):
    """A norm has a scale and a shift for each output; without it a convolution has a bias."""
    network = CifarResNetConfig(depth=depth, norm=norm).build(128, 256)
    weights, outputs = (a + b for a, b in zip((WEIGHTS_10, CHANNELS_10), more(depth), strict=True))
    expected = weights + outputs * (2 if norm == "batch" else 1)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_ten_layers_have_4_9_million_parameters():
    assert WEIGHTS_10 == 4_892_352 + 0 * CHANNELS_10


def test_features_of_the_sources_images_are_16384():
    network = CifarResNetConfig().build(128, 256).eval()
    assert network.num_features == network.num_flat == 16_384
    with torch.no_grad():
        assert network(torch.randn(1, 3, 128, 256)).shape == (1, 16_384)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_maps_and_flat_features_are_the_same_numbers(norm):
    torch.manual_seed(0)
    flat = CifarResNetConfig(norm=norm).build(32, 64).eval()
    maps = CifarResNetConfig(norm=norm, places="maps").build(32, 64).eval()
    maps.load_state_dict(flat.state_dict())
    images = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        assert flat.maps(images).shape == (2, 512, 4, 8)
        expected = flat.maps(images).reshape(2, 512, 1, 4, 2, 4).mean((3, 5))
        torch.testing.assert_close(maps(images), expected)
        torch.testing.assert_close(flat(images), expected.flatten(1))
    assert (maps.num_features, maps.num_flat, flat.num_features) == (512, 1024, 1024)


def test_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="60x32 and the network needs sides in multiples of 32"):
        CifarResNetConfig().build(32, 60)
