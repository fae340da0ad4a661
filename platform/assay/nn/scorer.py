"""Scores for the cells of an image, from its overview alone."""

from functools import lru_cache, partial
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from assay.errors import ConfigError
from assay.nn.backbone import timm_name
from assay.nn.layout import step_outside
from assay.nn.norms import Norm, normalise_layers, refuse_frozen
from assay.nn.weights import load_features

FINEST = 8
"""Pixels of the overview for each place of the maps that a timm trunk is cut at."""


class Scorer(nn.Module):
    """A fully convolutional net from an overview to one score for each cell of a grid.

    Scores are scaled per image to 0..1, (s - min) / (max - min + 1e-5), so that the sigma of a
    perturbation means the same for every image and at every stage of training.

    Args:
        trunk: a timm model up to its maps of 1/8 of the overview, then a 3x3 convolution without padding
            and a 2x2 max pooling, a grid of about 1/16; of resnet18 (850 px to 52 cells) that is the scorer
            of the fingerprint reference. Or "small", four convolutions with GroupNorm for
            overviews of 96 to 256 px, a grid of 1/4 (128 px to 32 cells) and a field of 47 px.
        norm: What to make of a timm trunk's batch normalisation (see `normalise_layers`).
        weights: Of a timm trunk: "none", "hub", or a file that holds the whole model.

    Raises:
        ConfigError: there is no such trunk, its weights cannot be had, or what is frozen was never trained.
    """

    def __init__(self, trunk: str = "small", norm: Norm = "group", weights: str = "none") -> None:
        super().__init__()
        self.trunk = trunk
        self.net = _small() if trunk == "small" else _of_timm(timm_name(trunk), norm, weights)

    def forward(
        self, overviews: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols"]:
        """Score the cells of each image, 0..1."""
        scores: Tensor = self.net(overviews)[:, 0]
        low, high = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
        return (scores - low) / (high - low + 1e-5)


@lru_cache(maxsize=16)
def grid_side(trunk: str, overview_px: int) -> int:
    """Count the cells along a side that a scorer of this trunk makes of `overview_px` pixels.

    Raises:
        ConfigError: there is no such trunk, or the overview is too small for it.
    """
    with torch.random.fork_rng(
        devices=[]
    ):  # whoever asks first draws the same numbers as the others
        scorer = Scorer(trunk, "batch").eval()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            return int(scorer(torch.zeros(1, 3, overview_px, overview_px)).shape[1])
    except RuntimeError as error:
        raise ConfigError(
            f"An overview of {overview_px} pixels is too small for the scorer {trunk} "
            f"({str(error).splitlines()[0][:80]}); raise --patches.overview-px."
        ) from None


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


def _of_timm(name: str, norm: Norm, weights: str) -> nn.Sequential:
    features: Any
    try:
        # cut behind those maps: what lies deeper would be held and never learn
        parts = partial(timm.create_model, name, features_only=True, feature_cls="getter")
        levels = parts().feature_info.reduction()
        index = max(i for i, step in enumerate(levels) if step <= FINEST)
        features = parts(out_indices=(index,))
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} is no trunk of a scorer ({str(error).splitlines()[0][:80]}); take --model.trunk small, resnet18 or another "
            f"timm model that gives maps of 1/{FINEST} of the image."
        ) from None
    load_features(features, name, weights, "--model.scorer-weights")
    if weights == "none":
        refuse_frozen(features, norm, f"--model.scorer-weights none with the trunk {name}")
    chans: int = features.feature_info.channels()[0]
    head = [nn.Conv2d(chans, 1, 3, bias=False), nn.MaxPool2d(2)]
    return nn.Sequential(_Only(step_outside(normalise_layers(features, norm))), *head)


class _Only(nn.Module):
    """The one map of features that a part of a timm model gives."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        [maps] = self.features(images)
        return maps
