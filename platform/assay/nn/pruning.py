"""Structured pruning by depth: some blocks of a vision transformer stay, with their weights, and the others go.

Those that stay lie evenly from the first to the last, as in DistilBERT, which begins with layers 0, 2, 4, 7, 9 and 11 of
BERT's twelve (Sanh et al. 2019, "DistilBERT, a distilled version of BERT", and its published code); what is lost is then
learnt from the whole network.
"""

import numpy as np
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from assay.errors import ConfigError


def kept_blocks(depth: int, num_kept: int) -> list[int]:
    """Return which of so many blocks stay, evenly from the first to the last; a single one is the first."""
    kept: list[int] = np.linspace(0, depth - 1, num_kept).round().astype(int).tolist()
    return kept


def prune_blocks(backbone: nn.Module, name: str, num_kept: int) -> None:
    """Keep so many blocks of a vision transformer.

    Args:
        backbone: the network, changed in place; its blocks are numbered anew.
        name: what it is called.
        num_kept: blocks.

    Raises:
        ConfigError: it has fewer, or is no vision transformer, or one whose positions are learnt block by block.
    """
    if not isinstance(backbone, VisionTransformer | Eva) or getattr(backbone, "rope_mixed", False):
        raise ConfigError(
            f"--model.keep-blocks prunes vision transformers, and {name} is none; leave it out, or name one, such as vit_small_patch14_dinov2."
        )
    blocks = list(backbone.blocks)
    if num_kept > len(blocks):
        raise ConfigError(
            f"--model.keep-blocks is {num_kept}, and {name} has {len(blocks)} blocks; give 1 to {len(blocks)}."
        )
    kept = [blocks[index] for index in kept_blocks(len(blocks), num_kept)]
    is_sequence = isinstance(backbone.blocks, nn.Sequential)
    backbone.blocks = nn.Sequential(*kept) if is_sequence else nn.ModuleList(kept)
