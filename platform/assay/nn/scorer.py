"""Scores for the cells of an image, from its overview alone."""

from collections import OrderedDict
from typing import Literal

import timm
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.backbone import Norm, normalise_layers

Trunk = Literal["small", "resnet18"]


class Scorer(nn.Module):
    """A fully convolutional net from an overview to one score for each cell of a grid.

    Scores are scaled per image to 0..1, (s - min) / (max - min + 1e-5), so that the sigma of a
    perturbation means the same for every image and at every stage of training.

    Args:
        trunk: "resnet18" is its layers up to layer2, a 3x3 convolution without padding and a
            2x2 max pooling, a grid about 1/16 of the overview (850 px to 52 cells), the scorer
            of the fingerprint reference; "small" is four convolutions with GroupNorm for
            overviews of 96 to 256 px, a grid of 1/4 (128 px to 32 cells) and a field of 47 px.
        norm: What to make of the batch normalisation of "resnet18" (see `normalise_layers`).
    """

    def __init__(self, trunk: Trunk = "small", norm: Norm = "group") -> None:
        super().__init__()
        self.trunk = trunk
        self.net = _small() if trunk == "small" else _resnet18(norm)

    def forward(
        self, overviews: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols"]:
        """Score the cells of each image, 0..1."""
        scores: Tensor = self.net(overviews)[:, 0]
        low, high = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
        return (scores - low) / (high - low + 1e-5)

    def grid(self, overview_px: int) -> int:
        """Count the cells along a side of `overview_px` pixels."""
        return grid_side(self.trunk, overview_px)


def grid_side(trunk: Trunk, overview_px: int) -> int:
    """Count the cells along a side that a scorer of this trunk makes of `overview_px` pixels."""
    halvings = 2 if trunk == "small" else 3
    side = overview_px
    for _ in range(halvings):
        side = (side + 1) // 2
    return side if trunk == "small" else (side - 2) // 2


def _small() -> nn.Sequential:
    def block(in_chans: int, chans: int, stride: int, dilation: int) -> list[nn.Module]:
        conv = nn.Conv2d(
            in_chans, chans, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        return [conv, nn.GroupNorm(4, chans), nn.SiLU()]

    return nn.Sequential(
        *block(3, 16, 2, 1),
        *block(16, 32, 2, 1),
        *block(32, 32, 1, 2),
        *block(32, 32, 1, 3),
        nn.Conv2d(32, 1, 1, bias=False),  # the scaling to 0..1 would cancel a bias
    )


def _resnet18(norm: Norm) -> nn.Sequential:
    net = timm.create_model("resnet18", num_classes=0)
    names = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2")
    layers = OrderedDict((name, net.get_submodule(name)) for name in names)
    trunk = normalise_layers(nn.Sequential(layers), norm)
    return nn.Sequential(trunk, nn.Conv2d(128, 1, 3, bias=False), nn.MaxPool2d(2))
