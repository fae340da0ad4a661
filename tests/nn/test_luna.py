"""LUNA: layers, size, any image."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from assay.nn.export import write_graph
from assay.nn.luna import Luna
from assay.nn.networks import NetworkConfig


def as_published() -> nn.Sequential:
    """LUNA as its table of layers has it, up to the linear layer and its softmax."""
    layers: list[nn.Module] = [nn.BatchNorm2d(3)]
    for before, chans in ((3, 8), (8, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, chans, 3, 1, 1), nn.ReLU()]
        layers += [nn.Conv2d(chans, chans, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(18 * 18 * 64, 2), nn.Softmax(1))


def test_luna_is_what_was_published_at_300_px():
    torch.manual_seed(0)
    published = as_published().eval()
    nn.init.normal_(published[0].running_mean)
    config = NetworkConfig()
    network = config.build(300, 300)
    net = nn.Sequential(network, nn.Linear(network.num_features, 2), nn.Softmax(1)).eval()
    assert sum(p.numel() for p in net.parameters()) == 115_088
    state = zip(net.state_dict(), published.state_dict().values(), strict=True)
    net.load_state_dict(dict(state))
    images = torch.rand(2, 3, 300, 300)
    with torch.no_grad():
        torch.testing.assert_close(net(images), published(images))
        torch.testing.assert_close(network.maps(images), published[:-3](images))


@pytest.mark.parametrize("size", [(16, 16), (64, 96), (301, 333)])
def test_images_of_any_size_have_the_same_number_of_features(size):
    network = NetworkConfig().build(*size).eval()
    images = torch.rand(2, 3, *size)
    assert network(images).shape == (2, 18 * 18 * 64) == (2, network.num_features)
    assert network.maps(images).shape == (2, 64, size[0] // 16, size[1] // 16)


def test_other_sizes_are_averaged_also_in_the_exported_graph(tmp_path):
    torch.manual_seed(0)
    luna = Luna().eval()
    write_graph(tmp_path / "a.onnx", luna, luna, ("image", (3, 48, 80)), ["features"])
    images = np.random.default_rng(0).random((3, 3, 48, 80), np.float32)
    (features,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"image": images})
    with torch.no_grad():
        maps = luna.forward_features(torch.from_numpy(images)).numpy()

    def cells(size: int) -> list[slice]:
        return [slice(i * size // 18, -(-(i + 1) * size // 18)) for i in range(18)]

    means = [[maps[:, :, r, c].mean((2, 3)) for c in cells(5)] for r in cells(3)]
    expected = np.moveaxis(np.array(means), (2, 3), (0, 1)).reshape(3, -1)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_the_signal_of_an_untrained_net_neither_fades_nor_grows():
    """He et al. keep the mean square from layer to layer; the maxima of four pools raise it."""
    torch.manual_seed(0)
    net = Luna().eval()
    with torch.no_grad():
        maps = net.forward_features(torch.randn(4, 3, 96, 96))
    assert 0.5 < float(maps.square().mean()) < 30
