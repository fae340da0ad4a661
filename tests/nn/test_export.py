"""Graphs for images of any size: what they answer, and which networks are refused."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from assay.errors import ConfigError
from assay.nn.export import check_any_size, write_graph
from assay.nn.mask_net import MaskNetConfig, create_mask_net
from assay.nn.patch_memory import PatchMemory, PatchMemoryConfig

SHAPES = [(1, 3, 64, 64), (3, 3, 64, 160), (2, 3, 96, 64), (1, 3, 256, 224)]


def unet(arch: str = "unet") -> nn.Module:
    torch.manual_seed(0)
    widths = (16, 16, 8, 8, 8) if arch == "unet" else ()
    config = MaskNetConfig(arch=arch, encoder="tu-mobilenetv3_small_050", decoder_channels=widths)
    return create_mask_net(config, 2)


def memory() -> nn.Module:
    torch.manual_seed(0)
    net = PatchMemory(PatchMemoryConfig(backbone="resnet18", weights="none", memory=50))
    net.bank.normal_()
    return net


@pytest.mark.parametrize("create", [unet, memory])
def test_a_graph_for_any_size_answers_as_its_network(create, tmp_path: Path):
    net = create().eval()
    write_graph(tmp_path / "a.onnx", net, net, ("tiles", (3, None, None)), ["logits"], 32)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for shape in SHAPES:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = net(images).numpy()
        (answer,) = session.run(None, {"tiles": images.numpy()})
        np.testing.assert_allclose(answer, expected, atol=1e-3)


@pytest.mark.parametrize("arch", ["unet", "fpn", "linknet", "deeplabv3plus"])
def test_networks_of_convolutions_take_any_size(arch):
    net = unet(arch)
    check_any_size(net, 32, "--tiles.size fixed")
    assert net.training


@pytest.mark.parametrize("arch", ["pspnet", "upernet"])
def test_a_network_that_pools_to_a_grid_is_refused_before_it_learns(arch):
    assert arch in smp.MODEL_ARCHITECTURES_MAPPING
    with pytest.raises(ConfigError, match=r"pools to a grid of .*; give --tiles\.size fixed"):
        check_any_size(unet(arch), 32, "--tiles.size fixed")


def test_a_network_of_one_size_is_refused():
    class Flat(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.view(len(images), 3, 64, 64)

    with pytest.raises(ConfigError, match=r"any size .*; give --tiles\.size fixed"):
        check_any_size(Flat(), 32, "--tiles.size fixed")
