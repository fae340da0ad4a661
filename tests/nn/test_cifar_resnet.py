"""The source's network: weights and shapes counted by hand."""

import pytest
import torch

from assay.errors import ConfigError
from assay.nn.cifar_resnet import CifarResNet
from assay.nn.networks import NetworkConfig

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


@pytest.mark.parametrize("depth", [10, 18, 34])
def test_parameters_are_those_counted_by_hand(depth):
    """A norm has a scale and a shift for each output."""
    network = CifarResNet(f"cifar_resnet{depth}", 32, 64)
    weights, outputs = (a + b for a, b in zip((WEIGHTS_10, CHANNELS_10), more(depth), strict=True))
    assert sum(p.numel() for p in network.parameters()) == weights + 2 * outputs


def test_features_of_the_sources_images_are_16384():
    network = NetworkConfig(network="cifar_resnet10-flat").build(128, 256).eval()
    assert network.num_features == 16_384
    assert not network.is_mean
    with torch.no_grad():
        assert network(torch.randn(1, 3, 128, 256)).shape == (1, 16_384)


def test_places_kept_apart_and_their_mean_are_of_the_same_maps():
    torch.manual_seed(0)
    flat = NetworkConfig(network="cifar_resnet10-flat").build(32, 64).eval()
    mean = NetworkConfig(network="cifar_resnet10").build(32, 64).eval()
    mean.load_state_dict(flat.state_dict())
    images = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        maps = mean(images)
        assert maps.shape == (2, 512, 4, 8)
        expected = maps.reshape(2, 512, 1, 4, 2, 4).mean((3, 5))
        torch.testing.assert_close(flat(images), expected.flatten(1))
    assert (mean.is_mean, mean.num_features, flat.num_features) == (True, 512, 1024)


def test_blocks_are_the_stem_and_each_residual_block():
    blocks = NetworkConfig(network="cifar_resnet18").build(32, 32).blocks()
    assert len(blocks) == 1 + 8
    assert all(name.startswith("net.stem") for name in blocks[0])


def test_other_sizes_are_refused_where_places_are_kept_apart():
    with pytest.raises(
        ConfigError, match="60x32 and cifar_resnet10-flat needs sides in multiples of 32"
    ):
        NetworkConfig(network="cifar_resnet10-flat").build(32, 60)
    assert NetworkConfig(network="cifar_resnet10").build(32, 60).num_features == 512
