"""Residual networks for small images: no stride and no pooling before the first block.

The network of seed system 003: a 3x3 stem, basic blocks of 64 to 512 channels, a mean over 4x4
places, and all places kept apart: 16,384 features of an image of 256x128.
"""

from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import ConfigError

NUM_BLOCKS = {
    "cifar_resnet10": (1, 1, 1, 1),
    "cifar_resnet18": (2, 2, 2, 2),
    "cifar_resnet34": (3, 4, 6, 3),
}
"""Basic blocks of each stage, by name."""

FLAT = "-flat"
"""Ends the name of a network that keeps places apart, as published."""

CHANNELS = (64, 128, 256, 512)

POOLED = 4
"""Side of the places that are averaged at the end."""

STRIDE = 8
"""Pixels of the input for each place of the last stage."""


class CifarResNet(nn.Module):
    """The network of a name, for images of one size.

    Args:
        name: one of `NUM_BLOCKS`, or with `FLAT` at its end.
        height_px: of the images.
        width_px: of the images.

    Raises:
        ConfigError: a side is no multiple of what places that are kept apart divide it by.
    """

    def __init__(self, name: str, height_px: int, width_px: int) -> None:
        super().__init__()
        self.is_flat = name.endswith(FLAT)
        if self.is_flat and (height_px % (STRIDE * POOLED) or width_px % (STRIDE * POOLED)):
            raise ConfigError(
                f"Images are {width_px}x{height_px} and {name} needs sides in multiples of {STRIDE * POOLED}; "
                f"change --image.width-px and --image.height-px, or take {name.removesuffix(FLAT)}."
            )
        self.stem = nn.Sequential(*_convolution(3, CHANNELS[0], 3, 1), nn.ReLU())
        channels, stages = CHANNELS[0], []
        for width, num in zip(CHANNELS, NUM_BLOCKS[name.removesuffix(FLAT)], strict=True):
            blocks = [BasicBlock(channels, width, 1 if width == CHANNELS[0] else 2)]
            blocks += [BasicBlock(width, width, 1) for _ in range(num - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward_features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Compute the maps of the last stage."""
        maps: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))
        return maps

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Compute features: of every place, or their mean."""
        maps = self.forward_features(images)
        return (
            nn.functional.avg_pool2d(maps, POOLED).flatten(1) if self.is_flat else maps.mean((2, 3))
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Name blocks the way timm models do."""
        return {"stem": r"^stem", "blocks": r"^layer(\d+)\.(\d+)"}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes (He et al. 2016)."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(in_chans, out_chans, 3, stride),
            nn.ReLU(),
            *_convolution(out_chans, out_chans, 3, 1),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or in_chans != out_chans:
            self.shortcut = nn.Sequential(*_convolution(in_chans, out_chans, 1, stride))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Add both ways."""
        summed: Tensor = self.body(x) + self.shortcut(x)
        return summed.relu()


def _convolution(in_chans: int, out_chans: int, size: int, stride: int) -> list[nn.Module]:
    layer = nn.Conv2d(in_chans, out_chans, size, stride, size // 2, bias=False)
    return [layer, nn.BatchNorm2d(out_chans)]
