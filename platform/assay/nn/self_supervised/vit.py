"""timm's vision transformers, as self-supervision needs them: images of any size, places hidden, tokens given back."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

import timm
import torch
from annotated_types import Interval
from jaxtyping import Bool, Float
from timm.layers import DropPath
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from assay.config import Settings
from assay.errors import ConfigError
from assay.nn.backbone import timm_name
from assay.nn.plain_vit import create_plain_vit, form_of
from assay.nn.weights import load_weights


@dataclass(frozen=True, kw_only=True)
class VitConfig(Settings, section="model"):
    """What embeds an image."""

    backbone: str = "vit_small_patch14_dinov2"
    """A vision transformer of timm by its name (DINOv2's and DINOv3's are among them), or its form: WIDTHxDEPTHxPATCH, such as 64x4x8, of heads 32 wide."""
    weights: str = "none"
    """Weights that student and teacher begin with: none, hub (fetched by timm), a .safetensors file, or the folder of a run that was pretrained."""
    drop_path: Annotated[float, Interval(ge=0, lt=1)] = 0.3
    """Probability, the same in each block, that the student leaves out a branch of it (stochastic depth)."""
    layer_scale: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Factors that branches begin with; none: as the backbone has them."""
    registers: Annotated[int, Interval(ge=0, le=1000)] | None = None
    """Tokens besides class and patches (Darcet et al. 2024); none: as many as the backbone has."""

    @property
    def form(self) -> tuple[int, int, int] | None:
        """Width, depth and side of the patches, where the backbone is named by them."""
        return form_of(self.backbone)

    @property
    def patch_px(self) -> int:
        """Side of a patch (pixels)."""
        name = re.search(r"patch(\d+)", timm_name(self.backbone))
        side = self.form[2] if self.form else int(name[1] if name else 0)
        if not side:
            raise _unknown(self)
        return side


class MaskedVit(nn.Module):
    """A vision transformer that takes images of any size in whole patches, some of their places hidden.

    Args:
        config: which.
        size: height and width that its positions are for; those of others are interpolated.

    Raises:
        ConfigError: there is none of that name, it has no class token, or its weights cannot be had.
    """

    def __init__(self, config: VitConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.vit = _create(config, size)
        self.num_features = int(self.vit.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, self.num_features))
        self.mask: Tensor | None = None
        self.vit.patch_embed.register_forward_hook(self._hide)

    def forward(
        self,
        images: Float[Tensor, "n 3 h w"],
        mask: Bool[Tensor, "n patches"] | None = None,
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n patches d"]]:
        """Return the class token and those of the patches, row by row, after the last normalisation.

        Args:
            images: Normalised.
            mask: Patches in whose place the mask token stands.
        """
        self.mask = mask
        tokens = self.vit.forward_features(images)
        self.mask = None
        return tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :]

    def last_tokens(
        self, images: Float[Tensor, "n 3 h w"], num_blocks: int
    ) -> Float[Tensor, "n parts d"]:
        """Return the class tokens of the last blocks, first to last, and the mean patch token of the last, all normalised.

        Args:
            images: Normalised.
            num_blocks: Blocks; all where there are fewer.
        """
        layers = self.vit.forward_intermediates(
            images,
            indices=min(num_blocks, len(self.vit.blocks)),
            return_prefix_tokens=True,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        classes = [prefix[:, 0] for _, prefix in layers]
        return torch.stack([*classes, layers[-1][0].mean(1)], dim=1)

    def _hide(self, module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        """Put the mask token in the place of hidden patches (n h w d), before positions are added."""
        if self.mask is None:
            return tokens
        hidden = self.mask.view(*tokens.shape[:3], 1)
        return torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)


def _create(config: VitConfig, size: tuple[int, int]) -> Any:
    for side in size:
        if side % config.patch_px:
            raise ConfigError(
                f"model.backbone {config.backbone} cuts patches of {config.patch_px} pixels, and the frame is {size[0]} x {size[1]}; give image.height-px and image.width-px multiples of it."
            )
    options: dict[str, Any] = {"img_size": size, "dynamic_img_size": True, "global_pool": "token"}
    if config.layer_scale is not None:
        options["init_values"] = config.layer_scale
    vit = _of_name(config, options) if config.form is None else _of_form(config, options)
    if config.drop_path:
        for block in vit.blocks:
            block.drop_path1 = DropPath(config.drop_path)
            block.drop_path2 = DropPath(config.drop_path)
    return vit


def _of_form(config: VitConfig, options: dict[str, Any]) -> VisionTransformer:
    assert config.form is not None
    vit = create_plain_vit(config.form, registers=config.registers or 0, **options)
    load_weights(vit, config.backbone, config.weights)
    return vit


def _of_name(config: VitConfig, options: dict[str, Any]) -> Any:
    name = timm_name(config.backbone)
    if name.partition(".")[0] not in timm.list_models("vit_*"):
        raise _unknown(config)
    if config.registers is not None:
        of_eva = timm.models.model_entrypoint(name).__module__.endswith(".eva")
        options["num_reg_tokens" if of_eva else "reg_tokens"] = config.registers
    try:
        vit = timm.create_model(name, num_classes=0, **options)
    except (TypeError, AssertionError) as error:
        raise ConfigError(
            f"The backbone {config.backbone} cannot be had with these settings ({error}); take one with a class token."
        ) from None
    if not isinstance(vit, VisionTransformer | Eva) or vit.cls_token is None:
        raise ConfigError(
            f"The backbone {config.backbone} has no class token that embeds an image; take another, such as vit_small_patch14_dinov2."
        )
    load_weights(vit, name, config.weights)
    return vit


def _unknown(config: VitConfig) -> ConfigError:
    return ConfigError(
        f"model.backbone is {config.backbone}; give a vision transformer of timm, such as vit_small_patch14_dinov2 or vit_small_patch16_dinov3, or a form such as 64x4x8."
    )
