"""Residual networks for small images: no stride and no pooling before the first block.

The network of seed system 003: a 3x3 stem, basic blocks of 64 to 512 channels, a mean over 4x4
places, and all places kept apart: 16,384 features of an image of 256x128.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from assay.config import Settings
from assay.errors import ConfigError

NUM_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks of each stage, by depth."""

CHANNELS = (64, 128, 256, 512)

POOLED = 4
"""Side of the places that are averaged at the end."""

STRIDE = 8
"""Pixels of the input for each place of the last stage."""


@dataclass(frozen=True, kw_only=True)
class CifarResNetConfig(Settings, section="model"):
    """A residual network for small images."""

    depth: Literal[10, 18, 34] = 10
    """Layers with weights."""
    norm: Literal["batch", "none"] = "batch"
    """Normalisation after each convolution; without it convolutions have a bias."""
    places: Literal["flat", "maps"] = "flat"
    """What becomes of places: features of their own, as in the source, or maps whose mean is classified."""

    def build(self, height_px: int, width_px: int) -> "CifarResNet":
        """Build the network for images of one size.

        Raises:
            ConfigError: a side is no multiple of what the network divides it by.
        """
        sides = (height_px, width_px)
        if any(side % (STRIDE * POOLED) for side in sides):
            raise ConfigError(
                f"Images are {width_px}x{height_px} and the network needs sides in multiples of {STRIDE * POOLED}; "
                "change --image.width-px and --image.height-px."
            )
        return CifarResNet(self, sides)


class CifarResNet(nn.Module):
    """The network of a config, for images of `sides` (height, width)."""

    def __init__(self, config: CifarResNetConfig, sides: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(*_convolution(3, CHANNELS[0], 3, 1, config.norm), nn.ReLU())
        channels, stages = CHANNELS[0], []
        for width, num in zip(CHANNELS, NUM_BLOCKS[config.depth], strict=True):
            stride = 1 if width == CHANNELS[0] else 2
            blocks = [BasicBlock(channels, width, stride, config.norm)]
            blocks += [BasicBlock(width, width, 1, config.norm) for _ in range(num - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        places = (sides[0] // STRIDE // POOLED) * (sides[1] // STRIDE // POOLED)
        self.num_flat = channels * places
        self.num_features = self.num_flat if config.places == "flat" else channels

    def maps(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Compute the maps of the last stage."""
        maps: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))
        return maps

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d *places"]:
        """Compute features: of every place, or maps."""
        maps = nn.functional.avg_pool2d(self.maps(images), POOLED)
        return maps.flatten(1) if self.config.places == "flat" else maps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes (He et al. 2016)."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(in_chans, out_chans, 3, stride, norm),
            nn.ReLU(),
            *_convolution(out_chans, out_chans, 3, 1, norm),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or in_chans != out_chans:
            self.shortcut = nn.Sequential(*_convolution(in_chans, out_chans, 1, stride, norm))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Add both ways."""
        summed: Tensor = self.body(x) + self.shortcut(x)
        return summed.relu()


def _convolution(
    in_chans: int, out_chans: int, size: int, stride: int, norm: str
) -> list[nn.Module]:
    has_norm = norm == "batch"
    layer = nn.Conv2d(in_chans, out_chans, size, stride, size // 2, bias=not has_norm)
    return [layer, nn.BatchNorm2d(out_chans)] if has_norm else [layer]
