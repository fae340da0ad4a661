"""Where in an image the evidence for each class lies, by operations that export with the graph.

    maps, then a mean     class activation maps (Zhou et al. 2016): the head at each place
    maps, then layers     Grad-CAM (Selvaraju et al. 2017): the gradient, summed over places, in
                          the place of the head; of a mean the two are equal
    tokens and attention  attention roll-out (Abnar and Zuidema 2020): of no class, so each class
                          has the same map
    anything else         no evidence

The published Grad-CAM is the positive part of ours over the number of places: whoever draws or judges
a map takes its positive part, on its own scale. Gradients are written out, since torch's own do not
export.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import timm.layers
import torch
import torchvision
from jaxtyping import Float
from timm.models import vision_transformer
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

from assay.nn.luna import Luna
from assay.nn.networks import Network

POOLS = (nn.AdaptiveAvgPool2d,)
INERT = (nn.Identity, nn.Dropout)
"""Layers that change nothing when a network answers."""
KNOWN = (nn.Linear, nn.Conv2d, nn.ReLU, nn.Hardswish, nn.Flatten, nn.LayerNorm, *INERT)
"""Layers whose gradient is written out here; a convolution is one of single places."""


def activation_maps(
    maps: Float[Tensor, "n d h w"], weights: Float[Tensor, "*n classes d"]
) -> Float[Tensor, "n classes h w"]:
    """Weigh maps by what each channel speaks for each class."""
    classes = "cd" if weights.dim() == 2 else "ncd"
    return torch.einsum(f"ndhw,{classes}->nchw", maps, weights)


def explain(
    network: Network, head: nn.Module, images: Float[Tensor, "n 3 height width"]
) -> tuple[Float[Tensor, "n d ..."], Float[Tensor, "n classes h w"] | None]:
    """Return a network's features as it answers, and the evidence for each class at each place.

    Args:
        network: In evaluation mode.
        head: The linear layer behind it, or what begins with one.
        images: What is answered for.
    """
    linear = next(module for module in head.modules() if isinstance(module, nn.Linear))
    if network.is_mean:
        maps = network(images)
        return maps, activation_maps(maps, linear.weight)
    if is_plain_transformer(network.net):
        roll_out = RollOut(network.net)
        with roll_out.watch():
            features = network(images)
        shares = roll_out.map(*images.shape[2:])
        return features, shares.expand(-1, linear.out_features, -1, -1)
    layers = layers_after_maps(network.net)
    if layers is None:
        return network(images), None
    return grad_cam(network.maps(images), layers, linear)


def layers_after_maps(net: nn.Module) -> list[nn.Module] | None:
    """Return what makes features of a net's last maps; None where no gradient is known of it."""
    if isinstance(net, Luna):
        return [net.pool, nn.Flatten()]
    models = torchvision.models
    if isinstance(net, models.AlexNet | models.MobileNetV3):
        return [net.avgpool, nn.Flatten(), *net.classifier]
    if isinstance(net, models.ConvNeXt):
        return [net.avgpool, *net.classifier]
    ends: list[Any] = []
    if isinstance(net, MobileNetV3):
        ends = [net.global_pool, net.conv_head, net.norm_head, net.act2, net.flatten]
    elif isinstance(getattr(net, "head", None), timm.layers.NormMlpClassifierHead):
        ends = [net.head]
    layers = [m for end in ends for m in end.modules() if not list(m.children())]
    is_known = layers and all(isinstance(layer, (*POOLS, *KNOWN)) for layer in layers)
    return layers if is_known else None


def grad_cam(
    maps: Float[Tensor, "n d h w"], layers: Sequence[nn.Module], head: nn.Linear
) -> tuple[Float[Tensor, "n features"], Float[Tensor, "n classes h w"]]:
    """Return features, and maps weighed by the gradient of each logit, summed over places.

    Args:
        maps: The last maps of a network.
        layers: What makes them features, in order: an average pool, if any, and layers that have a
            gradient here.
        head: From features to logits.
    """
    is_pooled = isinstance(layers[0], POOLS)
    inner, features = layers[is_pooled:], layers[0](maps) if is_pooled else maps
    inputs = []
    for layer in inner:
        inputs.append(features)
        features = layer(features.clone())  # some change what they are given
    gradient = head.weight.expand(maps.shape[0], -1, -1)  # len() would fix it in a graph
    for layer, x in zip(reversed(inner), reversed(inputs), strict=True):
        gradient = _pull_back(layer, x, gradient)
    # the weights of each cell of a pool sum to 1, so the sum over cells is that over places
    sums = gradient.reshape(*gradient.shape[:2], maps.shape[1], -1).sum(-1)
    return features, activation_maps(maps, sums)


def _pull_back(
    layer: nn.Module, x: Float[Tensor, "n *inner"], gradient: Float[Tensor, "n classes *outer"]
) -> Float[Tensor, "n classes *inner"]:
    """Return the gradient by a layer's input from that by its output."""
    if isinstance(layer, nn.Linear):
        return gradient @ layer.weight
    if isinstance(layer, nn.Conv2d):
        return torch.einsum("nco...,oi->nci...", gradient, layer.weight.flatten(1))
    if isinstance(layer, nn.ReLU):
        return gradient * (x > 0)[:, None]
    if isinstance(layer, nn.Hardswish):
        slope = (x / 3 + 0.5).where(x.abs() < 3, (x >= 3).to(x.dtype))
        return gradient * slope[:, None]
    if isinstance(layer, nn.Flatten):
        return gradient.reshape(*gradient.shape[:2], *x.shape[1:])
    if isinstance(layer, nn.LayerNorm):
        return _pull_back_norm(layer, x, gradient)
    assert isinstance(layer, INERT), layer
    return gradient


def _pull_back_norm(layer: nn.LayerNorm, x: Tensor, gradient: Tensor) -> Tensor:
    """Do so for a LayerNorm (Ba et al. 2016); of maps it is over their channels."""
    if x.dim() == 4:
        x, gradient = x.movedim(1, -1), gradient.movedim(2, -1)
    is_maps = x.dim() == 4
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    unit, deviation = (centred / deviation)[:, None], deviation[:, None]
    scaled = gradient * layer.weight
    along = unit * (scaled * unit).mean(-1, keepdim=True)
    inner = (scaled - scaled.mean(-1, keepdim=True) - along) / deviation
    return inner.movedim(-1, 2) if is_maps else inner


class RollOut:
    """The attention of a vision transformer's answer to its patches, through all layers.

    Args:
        transformer: One that `is_plain_transformer`.
    """

    def __init__(self, transformer: Any) -> None:
        self.layers = _attention_layers(transformer)
        if isinstance(transformer, torchvision.models.VisionTransformer):
            self.num_prefix, self.patch_px = 1, (transformer.patch_size,) * 2
        else:
            self.num_prefix = transformer.num_prefix_tokens
            self.patch_px = transformer.patch_embed.patch_size
        self.queries_keys: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the queries and keys of what is computed within."""

        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.queries_keys.append(queries_keys(layer, inputs[0]))

        hooks = [layer.register_forward_pre_hook(note) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def map(self, height_px: int, width_px: int) -> Float[Tensor, "n 1 h w"]:
        """Return each patch's share in the answer, of the images that were watched.

        Each layer passes on half of its input and half of what its heads attend to, on average. Only
        the row of the answer is carried, from the last layer to the first.
        """
        queries, _ = self.queries_keys[-1]
        shares = queries.new_zeros(queries.shape[0], 1, 1, queries.shape[2])
        shares[..., 0] = 1
        for queries, keys in reversed(self.queries_keys):
            attended = (shares @ attention(queries, keys)).mean(1, keepdim=True)
            shares = (shares + attended) / 2
        grid = height_px // self.patch_px[0], width_px // self.patch_px[1]
        return shares[..., self.num_prefix :].reshape(-1, 1, *grid)


def attention(
    queries: Float[Tensor, "n heads t d"], keys: Float[Tensor, "n heads t d"]
) -> Float[Tensor, "n heads t t"]:
    """Return how much each token attends to each (Vaswani et al. 2017, eq. 1)."""
    return (queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5).softmax(-1)


def queries_keys(
    layer: Any, tokens: Float[Tensor, "n t d"]
) -> tuple[Float[Tensor, "n heads t e"], Float[Tensor, "n heads t e"]]:
    """Compute the queries and keys of an attention layer again, from its input."""
    sizes = *tokens.shape[:2], 3, layer.num_heads, -1
    if isinstance(layer, nn.MultiheadAttention):
        weight, bias = layer.in_proj_weight, layer.in_proj_bias
        both = nn.functional.linear(tokens, weight, bias).reshape(*sizes)
        return both[:, :, 0].transpose(1, 2), both[:, :, 1].transpose(1, 2)
    assert isinstance(layer, timm.layers.Attention)
    both = layer.qkv(tokens).reshape(*sizes)
    queries, keys = both[:, :, 0].transpose(1, 2), both[:, :, 1].transpose(1, 2)
    return layer.q_norm(queries), layer.k_norm(keys)


def is_plain_transformer(net: nn.Module) -> bool:
    """Tell whether a net is a vision transformer of plain attention that answers by its class token."""
    if isinstance(net, vision_transformer.VisionTransformer):
        layers = _attention_layers(net)
        plain = all(type(layer) is timm.layers.Attention for layer in layers)
        return plain and net.global_pool == "token"
    return isinstance(net, torchvision.models.VisionTransformer)


def _attention_layers(transformer: Any) -> list[nn.Module]:
    if isinstance(transformer, torchvision.models.VisionTransformer):
        return [block.self_attention for block in transformer.encoder.layers]
    return [block.attn for block in transformer.blocks]
