"""Plain vision transformers by their form, for sizes that no name stands for."""

import re
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from assay.errors import ConfigError

HEAD_WIDTH = 32
"""Of attention."""


def form_of(name: str) -> tuple[int, int, int] | None:
    """Return width, depth and side of the patches that a name such as 64x3x8 means; None of another name."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", name)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def create_plain_vit(
    form: tuple[int, int, int], img_size: int | tuple[int, int], registers: int = 0, **options: Any
) -> VisionTransformer:
    """Build a vision transformer of this form, without weights or a last linear layer.

    Args:
        form: width, depth and side of the patches (pixels).
        img_size: side of the images, or height and width (pixels).
        registers: tokens besides class and patches.
        options: further ones of timm's.

    Raises:
        ConfigError: there is none of that form.
    """
    width, depth, patch = form
    if not (width and depth and patch) or width % HEAD_WIDTH:
        raise ConfigError(
            f"There is no vision transformer {width}x{depth}x{patch}; its form is WIDTHxDEPTHxPATCH with a width in {HEAD_WIDTH}s, such as 64x4x8."
        )
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    if patch > min(sides):
        raise ConfigError(
            f"The vision transformer {width}x{depth}x{patch} cuts patches of {patch} pixels, and images are {sides[0]} x {sides[1]}; give larger ones, or smaller patches."
        )
    return VisionTransformer(
        img_size=img_size,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // HEAD_WIDTH,
        reg_tokens=registers,
        num_classes=0,
        **options,
    )
