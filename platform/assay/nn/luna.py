"""LUNA: a convolutional network of 115,088 parameters, as two-class classifiers of castings used it."""

from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

CHANNELS = (3, 8, 16, 32, 64)
SIDE = 18
"""Side of the last map of an image of 300 px, for which the net was drawn."""


class Luna(nn.Module):
    """LUNA without its last linear layer.

    Batch normalisation of the image; four blocks of two 3x3 convolutions, each with a ReLU, and a
    maximum over 2x2; all 64 * 18 * 18 values of the last map are features. The two-dimensional form
    of the net that Stevens, Antiga and Viehmann (Deep Learning with PyTorch, 2020, part 2) draw for
    nodules of the lung. Maps of images of another size than 300 px are averaged to 18 x 18 places,
    which leaves one of 18 x 18 as it is.

    Convolutions begin as He et al. (Delving Deep into Rectifiers, 2015) draw them. As torch draws them the signal
    fades through eight layers without normalisation, and small sets are not learnt at all.
    """

    num_features: ClassVar[int] = CHANNELS[-1] * SIDE**2

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS[0])
        self.blocks = nn.Sequential(*(_block(*pair) for pair in pairwise(CHANNELS)))
        self.pool = nn.AdaptiveAvgPool2d(SIDE)
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward_features(
        self, images: Float[Tensor, "n 3 h w"]
    ) -> Float[Tensor, "n 64 rows columns"]:
        """Compute the last maps, of a sixteenth of the sides; images are of 16 px and more."""
        maps: Tensor = self.blocks(self.norm(images))
        return maps

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n features"]:
        """Compute the features."""
        features: Tensor = self.pool(self.forward_features(images)).flatten(1)
        return features

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Name blocks the way timm models do."""
        return {"stem": r"^norm", "blocks": r"^blocks\.(\d+)"}


def _block(in_chans: int, chans: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chans, chans, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(chans, chans, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
