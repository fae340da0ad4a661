"""The house's own small backbone, for texture alone."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d


class TextureNet(nn.Module):
    """A very small net for fine texture, to be trained from scratch on a CPU: "texture_small".

    Grey values less their local mean (light, colour and most of an outline are no texture); the
    local energy in 24 bands, by pairs of filters that start as Gabor wavelets in quadrature,
    eight directions of three periods (Gabor 1946; Bovik et al. 1990 for textures), and are
    trained like all else; two convolutions; the mean and the maximum over positions.
    """

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        wavelets = nn.Conv2d(1, 48, 9, stride=2, padding=4, bias=False)
        with torch.no_grad():
            wavelets.weight.copy_(_gabor(9, directions=8, periods=(2.8, 4.0, 5.6)))
        self.blocks = nn.ModuleList(
            [
                wavelets,
                nn.Sequential(nn.GroupNorm(1, 24), _convolution(24, 48)),
                _convolution(48, 64),
            ]
        )

    def forward(self, patches: Float[Tensor, "n 3 p p"]) -> Float[Tensor, "n features"]:
        """Embed patches of any size from 16 px on."""
        wavelets, *rest = self.blocks
        grey = patches.mean(1, keepdim=True)
        texture = grey - avg_pool2d(grey, 5, 1, 2, count_include_pad=False)
        even, odd = wavelets(texture).chunk(2, dim=1)
        features = (even.square() + odd.square() + 1e-6).sqrt()
        for block in rest:
            features = block(features)
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Name blocks the way timm models do."""
        return {"blocks": r"^blocks\.(\d+)"}


def _convolution(in_chans: int, chans: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chans, chans, 3, 2, 1, bias=False), nn.GroupNorm(chans // 8, chans), nn.SiLU()
    )


def _gabor(side: int, directions: int, periods: tuple[float, ...]) -> Tensor:
    """Draw the even, then the odd wavelets (2 * directions * periods, 1, side, side), each of norm 1."""
    reach = torch.arange(side) - side // 2
    angle = torch.arange(directions)[:, None, None, None] * math.pi / directions
    along = reach * angle.cos() + reach[:, None] * angle.sin()
    phase = 2 * math.pi * along / torch.tensor(periods)[:, None, None]
    envelope = torch.exp(-(reach.square() + reach[:, None].square()) / (2 * (side / 4) ** 2))
    waves = torch.stack([phase.cos(), phase.sin()]) * envelope
    waves = waves - waves.mean((-2, -1), keepdim=True)
    waves = waves / waves.square().sum((-2, -1), keepdim=True).sqrt()
    return waves.reshape(-1, 1, side, side)
