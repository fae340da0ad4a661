"""Graphs for images of any size: what they answer, and which networks are refused."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from assay.errors import BundleError, ConfigError
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


@pytest.mark.parametrize("axes", [(), (4,), (4, 2), (4, 2, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_any_number_of_axes_answers_as_its_network(axes, masked, tmp_path: Path):
    mask = torch.randn(5, 5) if masked else None

    def attend(x):
        return scaled_dot_product_attention(x, x.flip(-1), x * x, mask)

    owner, shape = nn.Linear(1, 1), (*axes, 5, 3)
    write_graph(tmp_path / "a.onnx", owner, attend, ("x", shape), ["y"])
    x = torch.randn(3, *shape)
    (answer,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(answer, attend(x).numpy(), atol=1e-5)


def test_a_mask_for_each_of_several_axes_reaches_its_own(tmp_path: Path):
    mask = torch.randn(2, 1, 5, 5)

    def attend(x):
        return scaled_dot_product_attention(x, x, x, attn_mask=mask)

    feed = ("x", (2, 3, 5, 4))
    write_graph(tmp_path / "a.onnx", nn.Linear(1, 1), attend, feed, ["y"])
    x = torch.randn(3, 2, 3, 5, 4)
    (answer,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(answer, attend(x).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (torch.linalg.svdvals, "svd"),
        (
            lambda x: nn.functional.conv2d(x.double()[:, None], torch.ones(1, 1, 2, 2).double()),
            "Conv",
        ),
    ],
    ids=["the exporter", "ONNX Runtime"],
)
def test_what_cannot_be_written_as_a_graph_is_said_in_a_sentence(function, cause, tmp_path: Path):
    with pytest.raises(
        BundleError, match=rf"cannot be written as a graph \(.*{cause}.*kept\. Take"
    ):
        write_graph(tmp_path / "a.onnx", nn.Linear(1, 1), function, ("x", (4, 4)), ["y"])
