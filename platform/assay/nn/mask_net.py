"""Networks that draw masks: any of segmentation-models-pytorch, made from settings."""

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import segmentation_models_pytorch as smp
import torch
from annotated_types import Interval, Len
from torch import Tensor, nn

from assay.config import Settings, Share
from assay.errors import ConfigError
from assay.nn.borders import fix_borders
from assay.nn.layout import lay_channels_last
from assay.nn.mask_loss import MaskLoss, Over
from assay.nn.norms import normalise_layers
from assay.nn.weights import find_hub, find_weights, load_features, load_weights

PRIOR = 0.01
"""Share of pixels that a new network marks: rare, so that it need not first unlearn the common (Lin et al. 2017, 3.3)."""


Width = Annotated[int, Interval(ge=1, le=8192)]
"""Channels of a layer."""


@dataclass(frozen=True, kw_only=True)
class MaskNetConfig(Settings, section="model"):
    """What draws the mask, and what it learns by."""

    arch: str = "unet"
    """Any architecture of segmentation-models-pytorch: unet, unetplusplus, deeplabv3plus, fpn, segformer..."""
    encoder: str = "mobilenet_v2"
    """Any of its encoders, or tu-NAME for a timm model."""
    weights: str = "none"
    """Encoder weights: none, hub (ImageNet, fetched), or a .safetensors file: of timm's whole model for tu-NAME, else of the encoder; for tu-NAME also the folder of a run that was pretrained."""
    decoder_channels: Annotated[tuple[Width, ...], Len(0, 8)] = ()
    """Widths of a U-Net's decoder from the deepest block on; none: the architecture's own."""
    norm: Literal["batch", "sync", "group"] = "batch"
    """Normalisation: per worker's batch (so workers change the numbers a little), over all GPUs, or by groups of channels."""
    loss: MaskLoss = "combined"
    """dice, bce, focal, tversky, or dice and bce combined."""
    pos_weight: Annotated[float, Interval(ge=0, le=1_000_000)] = 1.0
    """Weight of pixels inside the mask in bce and combined."""
    over: Over = "batch"
    """What dice and tversky are taken over: each worker's batch (so workers change the numbers a little), or each image."""
    tversky_beta: Share = 0.7
    """Weight of missed pixels in tversky; falsely marked ones have the rest."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        used = {
            "pos_weight": ("bce", "combined"),
            "tversky_beta": ("tversky",),
            "over": ("dice", "tversky", "combined"),
        }
        return {
            name: f"model.loss is {self.loss}"
            for name, losses in used.items()
            if self.loss not in losses
        }


def create_mask_net(config: MaskNetConfig, num_classes: int) -> nn.Module:
    """Build a network from images (b 3 h w) to logits (b classes h w), channels last.

    Raises:
        ConfigError: there is no such architecture, encoder or file of weights.
    """
    options: dict[str, Any] = {}
    if config.decoder_channels:
        options |= {
            "decoder_channels": config.decoder_channels,
            "encoder_depth": len(config.decoder_channels),
        }
    is_timm = config.encoder.startswith("tu-")
    try:
        net: nn.Module = smp.create_model(
            config.arch,
            encoder_name=config.encoder,
            in_channels=3,
            classes=num_classes,
            encoder_weights=None,
            **options,
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"There is no network {config.arch} with encoder {config.encoder} and {options or 'its own options'} ({str(error).splitlines()[0][:120]}); "
            f"nearest names: {_nearest(config)}."
        ) from None
    head = cast(Any, net).segmentation_head
    last = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)][-1]
    nn.init.constant_(cast(Tensor, last.bias), math.log(PRIOR / (1 - PRIOR)))
    encoder = cast(Any, net).encoder
    if is_timm:
        if hasattr(encoder.model, "reset_classifier"):  # a transformer, which smp takes whole
            encoder.model.reset_classifier(0)
        load_features(encoder.model, config.encoder.removeprefix("tu-"), config.weights)
    elif config.weights != "none":
        load_weights(encoder, config.encoder, str(find_encoder(config)))
    # its images are tiles and crops, whose sides are multiples of all strides
    return lay_channels_last(normalise_layers(fix_borders(net), config.norm))


def find_encoder(config: MaskNetConfig) -> Path | None:
    """Find the file of an encoder's weights, fetching the hub's.

    Raises:
        ConfigError: there are none, or the hub cannot be reached.
    """
    if config.encoder.startswith("tu-") or config.weights != "hub":
        return find_weights(config.encoder.removeprefix("tu-"), config.weights)
    known = smp.encoders.encoders.get(config.encoder, {}).get("pretrained_settings", {})
    if "imagenet" not in known:
        raise ConfigError(
            f"There are no pretrained weights for {config.encoder}; use --model.weights FILE or --model.weights none; nearest names: {_nearest(config)}."
        )
    return find_hub(config.encoder, known["imagenet"]["repo_id"], known["imagenet"]["revision"])


def _nearest(config: MaskNetConfig) -> str:
    names = [*smp.encoders.get_encoder_names(), *smp.MODEL_ARCHITECTURES_MAPPING]
    close = [
        name
        for asked in (config.encoder, config.arch)
        for name in difflib.get_close_matches(asked, names)
    ]
    return ", ".join(dict.fromkeys(close)) or "none"


@torch.no_grad()
def try_sides(net: nn.Module, config: MaskNetConfig, sides: dict[str, int]) -> None:
    """Run a network on an image of each side once; some encoders take one size alone, and say so only then.

    Args:
        net: the network.
        config: what it was made from.
        sides: by option, the side that it asks for (pixels).

    Raises:
        ConfigError: it does not take a side.
    """
    net.eval()
    for option, side in sides.items():
        try:
            net(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{config.arch} with {config.encoder} does not take {option} {side} ({str(error).splitlines()[0][:120]}); give another size, or another --model.norm."
            ) from None
    net.train()
