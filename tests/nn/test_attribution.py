"""Evidence against autograd, against the networks' own attention, and against its exported graph."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import timm.layers
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from assay.nn.attribution import (
    RollOut,
    activation_maps,
    attention,
    explain,
    grad_cam,
    is_plain_transformer,
    layers_after_maps,
)
from assay.nn.export import write_graph
from assay.nn.networks import Network, NetworkConfig


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def by_autograd(maps: Tensor, layers: list[nn.Module], head: nn.Linear) -> Tensor:
    """Grad-CAM as published (eqs. 1 and 2 of Selvaraju et al. 2017), without its positive part."""
    maps = maps.clone().requires_grad_()
    logits = head(nn.Sequential(*layers)(maps).flatten(1))
    evidence = []
    for logit in logits.unbind(1):
        (gradient,) = torch.autograd.grad(logit.sum(), maps, retain_graph=True)
        evidence.append((gradient.mean((2, 3), keepdim=True) * maps.detach()).sum(1))
    return torch.stack(evidence, 1)


def mlp(cells: int) -> list[nn.Module]:
    """As in AlexNet."""
    return [
        nn.AdaptiveAvgPool2d((cells, cells)),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(5 * cells**2, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 7),
        nn.ReLU(),
    ]


def normed(kind: type[nn.LayerNorm], dim: int) -> nn.LayerNorm:
    layer = kind(dim, eps=1e-3)
    nn.init.uniform_(layer.weight, 0.5, 2)
    nn.init.uniform_(layer.bias, -1, 1)
    return layer


TAILS: dict[str, Callable[[], tuple[list[nn.Module], int]]] = {
    "mean": lambda: ([nn.AdaptiveAvgPool2d(1), nn.Flatten()], 5),
    "alexnet": lambda: (mlp(3), 7),
    "alexnet, cells that overlap": lambda: (mlp(4), 7),
    "alexnet, cells in several places": lambda: (mlp(9), 7),
    "convnext": lambda: ([nn.AdaptiveAvgPool2d(1), normed(LayerNorm2d, 5), nn.Flatten()], 5),
    "mobilenet": lambda: (
        [
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(5, 64, 1),
            nn.Hardswish(inplace=True),
            nn.Flatten(),
            nn.Linear(64, 9),
            nn.ReLU(inplace=True),
        ],
        9,
    ),
    "a norm at each place": lambda: ([normed(LayerNorm2d, 5), nn.Flatten()], 5 * 42),
    "a norm of all": lambda: ([nn.Flatten(), normed(nn.LayerNorm, 5 * 42)], 5 * 42),
    "luna": lambda: ([nn.Flatten()], 5 * 42),
}


@pytest.mark.parametrize("name", TAILS)
def test_grad_cam_is_that_of_autograd(name: str) -> None:
    layers, num_features = TAILS[name]()
    head = nn.Linear(num_features, 3)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=9.0)  # beyond both knees of Hardswish
    tail = nn.Sequential(*layers, head).double().eval()
    maps = torch.randn(4, 5, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        features, evidence = grad_cam(maps, list(tail)[:-1], head)
        torch.testing.assert_close(features, tail[:-1](maps))
    torch.testing.assert_close(evidence / 42, by_autograd(maps, list(tail)[:-1], head))


def test_of_a_mean_grad_cam_is_the_class_activation_map() -> None:
    """The positive parts of both differ from the published ones by the number of places alone."""
    maps, head = torch.randn(4, 5, 6, 7), nn.Linear(5, 3)
    layers = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    _, evidence = grad_cam(maps, layers, head)
    torch.testing.assert_close(evidence, activation_maps(maps, head.weight))
    torch.testing.assert_close(evidence.mean((2, 3)) + head.bias, head(maps.mean((2, 3))))


# Attention


def vit(**options: Any) -> nn.Module:
    sizes = {"image_size": 24, "patch_size": 8, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
    return torchvision.models.VisionTransformer(num_layers=3, **sizes, **options).eval()


def timm_vit(name: str = "vit_small_patch8_224", **options: Any) -> nn.Module:
    sizes = {"img_size": (16, 24), "depth": 3, "embed_dim": 32, "num_heads": 4, "num_classes": 0}
    return timm.create_model(name, **(sizes | options)).eval()


def attention_of(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Attention as the layers themselves compute it."""
    maps = []
    if isinstance(network, torchvision.models.VisionTransformer):

        def ask(layer: Any, inputs: Any) -> None:
            x = inputs[0]
            maps.append(nn.MultiheadAttention.forward(layer, x, x, x, average_attn_weights=False))

        for block in network.encoder.layers:
            block.self_attention.register_forward_pre_hook(ask)
        network(images)
        return [weights for _, weights in maps]
    for block in network.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, output: maps.append(output))
    network(images)
    return maps


def row_of_product(maps: list[Tensor]) -> Tensor:
    """Roll-out as published: the product of all layers' matrices (eq. 1), from the last to the first."""
    product = torch.eye(maps[0].shape[-1])
    for weights in maps:
        layer = (weights.mean(1) + torch.eye(weights.shape[-1])) / 2
        product = layer @ product
    return product[:, 0, 1:]


@pytest.mark.parametrize("name", ["torchvision", "timm", "qk_norm"])
def test_attention_is_the_layers_own(name: str) -> None:
    network = vit() if name == "torchvision" else timm_vit(qk_norm=name == "qk_norm")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=1.0)
    sizes = (24, 24) if name == "torchvision" else (16, 24)
    images, roll_out = torch.randn(2, 3, *sizes), RollOut(network)
    with torch.no_grad():
        with roll_out.watch():
            network(images)
        expected = attention_of(copy.deepcopy(network), images)
    assert len(roll_out.queries_keys) == len(expected) == 3
    for (queries, keys), weights in zip(roll_out.queries_keys, expected, strict=True):
        assert weights.std() > 0.01
        torch.testing.assert_close(attention(queries, keys), weights, atol=1e-4, rtol=1e-4)
    shares = row_of_product(expected)
    torch.testing.assert_close(roll_out.map(*sizes)[:, 0].flatten(1), shares, atol=1e-4, rtol=1e-4)
    assert roll_out.map(*sizes).shape == (2, 1, sizes[0] // 8, sizes[1] // 8)
    network(images)
    assert len(roll_out.queries_keys) == 3  # nobody watches any more


def test_a_transformer_of_another_attention_is_not_rolled_out() -> None:
    swin = torchvision.models.SwinTransformer([4, 4], 16, [2], [2], [2, 2])
    assert not is_plain_transformer(swin)
    assert not is_plain_transformer(timm_vit(global_pool="map"))
    assert not is_plain_transformer(timm.create_model("vit_small_patch16_rope_224", depth=1))
    assert is_plain_transformer(vit())
    assert is_plain_transformer(timm_vit())


# The eight networks


def network_of(name: str) -> Network:
    """Build a network for tiny images, of fewer blocks where they are many and alike."""
    sides = {"vit_b_16": 32, "dino_vits8": 24}
    network = NetworkConfig(network=name).build(*[sides.get(name, 64)] * 2)
    net: Any = network.net
    if name == "vit_b_16":
        net.encoder.layers = net.encoder.layers[:2]
    if name == "dino_vits8":
        net.blocks = net.blocks[:2]
    if name == "resnet18":
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            del stage[1]
    if name in ("swin_t", "efficientnet_v2_s", "convnext_tiny"):
        for stage in net.features[1:]:
            if type(stage) is nn.Sequential and len({type(block) for block in stage}) == 1:
                del stage[1:]
    return network.eval()


KINDS = {
    "luna": "Grad-CAM",
    "alexnet": "Grad-CAM",
    "resnet18": "class activation",
    "efficientnet_v2_s": "class activation",
    "convnext_tiny": "Grad-CAM",
    "vit_b_16": "roll-out",
    "swin_t": "class activation",
    "dino_vits8": "roll-out",
}
OTHERS = ("mobilenet_v3_small", "mobilenetv3_small_050", "test_convnext")


@pytest.mark.parametrize("name", OTHERS)
def test_what_comes_behind_the_maps_of_other_networks_is_told(name: str) -> None:
    network = NetworkConfig(network=name).build(64, 64).eval()
    layers, images = layers_after_maps(network.net), torch.randn(2, 3, 64, 64)
    assert layers is not None
    with torch.no_grad():
        features, evidence = explain(network, nn.Linear(network.num_features, 3), images)
        torch.testing.assert_close(features, network(images))
    assert evidence is not None


def test_a_network_of_which_nothing_is_known_gives_no_evidence() -> None:
    network = NetworkConfig(network="test_vit", weights="none").build(64, 64).eval()
    network.net.blocks[0].attn.__class__ = type("Other", (timm.layers.Attention,), {})
    features, evidence = explain(network, nn.Linear(64, 2), torch.randn(2, 3, 64, 64))
    assert features.dim() == 2
    assert evidence is None


@pytest.mark.parametrize("name", KINDS)
def test_the_graph_of_each_network_gives_its_evidence(name: str, tmp_path: Path) -> None:
    network = network_of(name)
    head = nn.Linear(network.num_features, 3)
    images = torch.randn(3, 3, *[{"vit_b_16": 32, "dino_vits8": 24}.get(name, 64)] * 2)

    def describe(images: Tensor) -> tuple[Tensor, Tensor]:
        features, evidence = explain(network, head, images)
        assert evidence is not None
        return features, evidence

    with torch.no_grad():
        features, evidence = describe(images)
        torch.testing.assert_close(features, network(images))
        maps = network.maps(images)
    assert evidence.shape == (3, 3, *maps.shape[2:])
    assert evidence.shape[2:] == {"vit_b_16": (2, 2), "dino_vits8": (3, 3), "alexnet": (1, 1)}.get(
        name, (4, 4) if name == "luna" else (2, 2)
    )
    if KINDS[name] == "roll-out":
        assert (evidence[:, 0] == evidence[:, 2]).all()
        assert ((evidence > 0) & (evidence < 1)).all()
    else:
        layers = layers_after_maps(network.net) or [nn.AdaptiveAvgPool2d(1)]
        expected = maps[0, 0].numel() * by_autograd(maps, layers, head)
        torch.testing.assert_close(evidence, expected, atol=1e-6, rtol=1e-3)
    owner = nn.ModuleList([network, head])
    write_graph(tmp_path / "graph.onnx", owner, describe, ("image", images.shape[1:]), ["a", "b"])
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx")
    outputs = session.run(None, {"image": images.numpy()})
    scale = float(evidence.abs().max())
    np.testing.assert_allclose(outputs[1], evidence.numpy(), atol=1e-4 * scale)
