"""The border that a layer adds to its image."""

import math
from typing import Any

from timm.layers import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn

_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    Conv2dSame: nn.Conv2d,
    MaxPool2dSame: nn.MaxPool2d,
    AvgPool2dSame: nn.AvgPool2d,
}
"""Layers of timm with TensorFlow's padding, and what they are without; those that standardise weights have an attribute `same_pad`."""


def fix_borders(net: nn.Module) -> nn.Module:
    """Give layers with TensorFlow's padding (timm's `Conv2dSame` and its like) a border of constant width.

    It is the one of images whose sides are multiples of every stride up to the layer; others must not be given to it.
    By the size of the image, as timm has it, the border of each layer is an expression of those of all before it once sizes are free:
    the exporter took over ten minutes, beside other work, for a U-Net on EfficientNet-Lite0, and takes half a minute so.
    """
    layer: Any
    for layer in net.modules():
        plain = next((plain for kind, plain in _PLAIN.items() if isinstance(layer, kind)), None)
        if plain is None and not getattr(layer, "same_pad", False):
            continue
        dilation = getattr(layer, "dilation", (1, 1))
        sizes = zip(layer.kernel_size, layer.stride, dilation, strict=True)
        height, width = (max(d * (k - 1) + 1 - s, 0) for k, s, d in sizes)
        if height % 2 or width % 2 or plain is nn.AvgPool2d:  # whose own border may not count
            value = -math.inf if plain is nn.MaxPool2d else 0.0
            layer.register_forward_pre_hook(_Border(height, width, value))
        else:
            layer.padding = (height // 2, width // 2)
        if plain is None:
            layer.same_pad = False
        else:
            layer.__class__ = plain
    return net


class _Border:
    """Adds so many rows and columns of a value, an odd one below and to the right."""

    def __init__(self, height: int, width: int, value: float) -> None:
        top, left = height // 2, width // 2
        self.widths, self.value = (left, width - left, top, height - top), value

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        return (nn.functional.pad(inputs[0], self.widths, value=self.value),)
