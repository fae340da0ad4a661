"""The border that a convolution adds to its image."""

from typing import Any, cast

from timm.layers import Conv2dSame
from torch import Tensor, nn


def fix_borders(net: nn.Module) -> nn.Module:
    """Give convolutions with TensorFlow's padding (timm's `Conv2dSame`) a border of constant width.

    It is the one of images whose sides are multiples of every stride up to the layer; others must not be given to it.
    By the size of the image, as timm has it, the border of each layer is an expression of those of all before it once sizes are free:
    the exporter took over ten minutes, beside other work, for a U-Net on EfficientNet-Lite0, and takes half a minute so.
    """
    for layer in net.modules():
        if isinstance(layer, Conv2dSame):
            sizes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
            height, width = (max(d * (k - 1) + 1 - s, 0) for k, s, d in sizes)
            if height % 2 or width % 2:
                layer.register_forward_pre_hook(_Border(height, width))
            else:
                layer.padding = (height // 2, width // 2)
            cast(Any, layer).__class__ = nn.Conv2d
    return net


class _Border:
    """Adds so many rows and columns of zeros, an odd one below and to the right."""

    def __init__(self, height: int, width: int) -> None:
        top, left = height // 2, width // 2
        self.widths = (left, width - left, top, height - top)

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        return (nn.functional.pad(inputs[0], self.widths),)
