"""Networks from a patch to an embedding: any timm model by name, or the house's texture net."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import timm
import torch
from annotated_types import Interval
from timm.models import group_parameters
from torch import nn

from assay.config import Settings
from assay.errors import ConfigError
from assay.nn.layout import lay_channels_last
from assay.nn.norms import Norm, normalise_layers, refuse_frozen
from assay.nn.plain_vit import create_plain_vit, form_of
from assay.nn.texture import TextureNet
from assay.nn.weights import load_weights, pretrained_config

NAMES = {
    "eva02": "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
    "convnext_xxlarge": "convnext_xxlarge.clip_laion2b_soup_ft_in12k",
    "convnext_large": "convnext_large.fb_in1k",
    "convnext_base": "convnext_base.fb_in1k",
    "convnext_small": "convnext_small.fb_in1k",
    "convnext_tiny": "convnext_tiny.fb_in1k",
    "dinov3-vits16": "vit_small_patch16_dinov3.lvd1689m",
    "dinov3-vitb16": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3-vitl16": "vit_large_patch16_dinov3.lvd1689m",
    "dinov3-vith16plus": "vit_huge_plus_patch16_dinov3.lvd1689m",
    "dinov3-vit7b16": "vit_7b_patch16_dinov3.lvd1689m",
    "dino_vits8": "vit_small_patch8_224.dino",
    "efficientnetv2_m": "tf_efficientnetv2_m.in1k",
    "efficientnet_v2_s": "tf_efficientnetv2_s.in1k",
    "efficientnet_v2_m": "tf_efficientnetv2_m.in1k",
    "efficientnet_v2_l": "tf_efficientnetv2_l.in1k",
    "vit_b_16": "vit_base_patch16_224.augreg_in1k",
    "vit_b_32": "vit_base_patch32_224.augreg_in1k",
    "vit_l_16": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in1k",
    "swin_b": "swin_base_patch4_window7_224.ms_in1k",
    "mobilenet_v2": "mobilenetv2_100.ra_in1k",
    "mobilenet_v3_small": "mobilenetv3_small_100.lamb_in1k",
    "mobilenet_v3_large": "mobilenetv3_large_100.ra_in1k",
    "mobilenetv3_large": "mobilenetv3_large_100.ra_in1k",
}
"""timm's name, and the weights meant, of what the fingerprint reference and torchvision call otherwise."""

BLOCKS = {
    "stem": r"^(?:stem|patch_embed|conv_?1|conv_stem|bn1)",
    "blocks": [
        (r"^(?:stages|layers|blocks)\.(\d+)\.(?:blocks|layers)\.(\d+)", None),
        (r"^(?:stages|layers|blocks)\.(\d+)", (0,)),
        (r"^(?:norm|head|final_conv)", (99999,)),
    ],
}
"""Blocks in order, for those of timm's models that do not name theirs."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Settings, section="model"):
    """What embeds a patch."""

    backbone: str = "efficientnetv2_rw_s"
    """Any timm model, by its name or the source's (eva02, vit_b_16), a plain vision transformer by its form (64x4x8), or texture_small (a tiny net for textures, trained from scratch)."""
    weights: str = "none"
    """Backbone weights: none, hub (fetched by timm), a .safetensors file, or the folder of a run that was pretrained."""
    norm: Norm = "group"
    """Batch normalisation: replaced by group norm, frozen (what is loaded), synced over GPUs, or per worker's batch."""
    trainable_blocks: Annotated[int, Interval(ge=-1, le=1000)] = -1
    """Blocks of the backbone that are trained, from the end; -1: all of it."""
    head: Literal["none", "linear", "mlp"] = "linear"
    """Projection from the backbone's features to the transformer's width, before the transformer's own."""
    head_depth: Annotated[int, Interval(ge=1, le=100)] = 1
    """Hidden layers of an mlp head."""
    head_width: Annotated[int, Interval(ge=0, le=65_536)] = 0
    """Their width; 0: half of the backbone's features."""
    head_norm: Literal["none", "batch", "layer"] = "none"
    """What normalises each hidden layer."""
    head_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout after each hidden layer (probability)."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        if self.head == "mlp":
            return {}
        names = ("head_depth", "head_width", "head_norm", "head_dropout")
        return dict.fromkeys(names, f"model.head is {self.head}")

    def build(self, img_size: int) -> tuple[nn.Module, int]:
        """Build the backbone for patches of this side, and say how wide its embeddings are."""
        backbone = create_backbone(
            timm_name(self.backbone),
            weights=self.weights,
            norm=self.norm,
            trainable_blocks=None if self.trainable_blocks < 0 else self.trainable_blocks,
            img_size=img_size,
        )
        try_size(backbone, self.backbone, (img_size, img_size), "patches.patch-px")
        return backbone, feature_width(backbone)


def create_backbone(
    name: str,
    *,
    weights: str = "none",
    norm: Norm = "group",
    trainable_blocks: int | None = None,
    drop_path: float = 0.0,
    img_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Build a network from patches (n 3 p p) to embeddings (n f).

    Args:
        name: A timm model, a form (see `plain_vit`), or "texture_small".
        weights: "none", "hub" (timm's weights for this model, or what lies in its local cache), a
            file of them, or a run's folder (see `weights`).
        norm: What to make of batch normalisation (see `normalise_layers`).
        trainable_blocks: None trains all, 0 nothing, n only the last n blocks.
        drop_path: Rate of stochastic depth.
        img_size: Side of the patches, or height and width; for models whose input size is fixed when they are built.

    Raises:
        ConfigError: The name is unknown, the weights cannot be had or do not fit, the model lacks
            the option or the number of blocks, or what is frozen was never trained.
    """
    model = _build(name, drop_path, img_size)
    if weights == "none":
        refuse_frozen(model, norm, f"--model.weights none with the backbone {name}")
    model = lay_channels_last(normalise_layers(model, norm))
    # of a run that learnt in groups there are no statistics of batches
    load_weights(model, name, weights)
    if trainable_blocks is not None:
        _freeze(model, name, trainable_blocks)
    return model


@torch.no_grad()
def try_size(model: nn.Module, name: str, size: tuple[int, int], option: str) -> None:
    """Show a network one image; some take one size alone, and say so only then.

    Args:
        model: the network.
        name: what it is called.
        size: height and width (pixels).
        option: the setting that asks for them.

    Raises:
        ConfigError: it does not take them.
    """
    model.eval()
    try:
        model(torch.zeros(1, 3, *size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{name} does not take images of {size[0]} x {size[1]} px, as {option} asks ({str(error).splitlines()[0][:120]}); give another size, or another network."
        ) from None
    model.train()


def feature_width(backbone: nn.Module) -> int:
    """Say how wide a backbone's embeddings are.

    `num_features` is the width before a timm model's own last layers, which some have (inception_next,
    mobilenetv3, vgg); `head_hidden_size` is the width behind them.
    """
    behind: Any = getattr(backbone, "head_hidden_size", None)
    return int(behind or cast(Any, backbone).num_features)


def doubt_groups(name: str, weights: str, norm: Norm) -> list[str]:
    """Say so where weights begin with other features than they have learnt, as group norm takes the place of batch norm.

    A run's own folder is not doubted, which learnt by its own norm.
    """
    if norm != "group" or weights == "none" or Path(weights).is_dir():
        return []
    with torch.device("meta"):
        model = _build(name, 0.0, None)
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return []
    return [
        f"The weights of {name} were trained with batch normalisation, whose statistics --model.norm group leaves out, so that its features begin as others; give --model.norm frozen."
    ]


def create_head(config: BackboneConfig, num_features: int, num_outputs: int) -> nn.Module:
    """Build the head, or the projection, on embeddings of this width that the settings ask for.

    "mlp" has `head_depth` hidden layers, each with its normalisation, a ReLU and its dropout; one of half
    the features is the first recipe of the fingerprint reference, two of 2048 with batch
    normalisation and dropout .1 the second.
    """
    layers: list[nn.Module] = []
    width = num_features
    for _ in range(config.head_depth if config.head == "mlp" else 0):
        hidden = config.head_width or num_features // 2
        layers.append(nn.Linear(width, hidden))
        if config.head_norm != "none":
            layers.append(
                {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[config.head_norm](hidden)
            )
        layers += [nn.ReLU(), nn.Dropout(config.head_dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, num_outputs))


def timm_name(name: str) -> str:
    """Return timm's name of a model that is called otherwise elsewhere."""
    return NAMES.get(name.rpartition("/")[2].removesuffix("-pretrain-lvd1689m"), name)


def check_name(name: str, names: Sequence[str], noun: str) -> None:
    """Refuse a name that is not among these.

    Raises:
        ConfigError: it is not.
    """
    if name not in names:
        nearest = difflib.get_close_matches(name, {*names}, n=3, cutoff=0.0)
        raise ConfigError(
            f"There is no {noun} {name!r}; the closest are {', '.join(nearest)} "
            "(timm.list_models() names them all)."
        )


def blocks_of(model: nn.Module, matcher: Mapping[str, Any] | None = None) -> list[list[str]]:
    """Name the parameters of each block of a model, from input to output.

    Args:
        model: a network.
        matcher: tells blocks in the form of timm's; None: the model's own, or that for those of timm's
            which have none.
    """
    if matcher is None:
        named = getattr(model, "group_matcher", None)
        matcher = BLOCKS if named is None else named(coarse=False)
    blocks = group_parameters(model, matcher)
    return [blocks[block] for block in sorted(blocks)]


def _build(name: str, drop_path: float, img_size: int | tuple[int, int] | None) -> nn.Module:
    if name == "texture_small":
        return TextureNet()
    form = form_of(name)
    if form is not None:
        return create_plain_vit(form, img_size or 224)
    names = ["texture_small", *timm.list_models(pretrained="." in name)]
    check_name(name, names, "backbone")
    options: dict[str, Any] = {}
    if img_size is not None and pretrained_config(name).fixed_input_size:
        options["img_size"] = img_size
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, num_classes=0, **options)
    except TypeError as error:
        raise ConfigError(
            f"The backbone {name} does not take {' and '.join(options)} ({error}); "
            "leave it out or take another backbone."
        ) from error


def _freeze(model: nn.Module, name: str, trainable_blocks: int) -> None:
    blocks = blocks_of(model)
    if not 0 <= trainable_blocks <= len(blocks):
        raise ConfigError(
            f"--model.trainable-blocks {trainable_blocks} is not possible: {name} has "
            f"{len(blocks)} blocks; give 0 to {len(blocks)}."
        )
    trainable = {key for block in blocks[len(blocks) - trainable_blocks :] for key in block}
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trainable)
