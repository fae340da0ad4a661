"""A branch of self-distillation, student or teacher: a backbone and the heads on its tokens."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.nn.self_supervised.head import HeadConfig, PrototypeHead
from assay.nn.self_supervised.vit import MaskedVit, VitConfig


class Seen(NamedTuple):
    """What a branch makes of n images."""

    classes: Float[Tensor, "n d"]
    patches: Float[Tensor, "n patches d"]
    logits: Float[Tensor, "n k"]
    """Of the class tokens."""
    patch_logits: Float[Tensor, "places k"]
    """Of the patches that were asked for."""


class Branch(nn.Module):
    """One of the two branches.

    Args:
        model: the backbone.
        head: what stands between its tokens and prototypes.
        size: height and width that its positions are for.
    """

    def __init__(self, model: VitConfig, head: HeadConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = MaskedVit(model, size)
        self.head = PrototypeHead(self.backbone.num_features, head)
        self.patch_head: nn.Module | None = None
        if head.separate:
            self.patch_head = PrototypeHead(self.backbone.num_features, head)

    def forward(
        self,
        images: Float[Tensor, "n 3 h w"],
        places: Bool[Tensor, "n patches"] | None = None,
        hide: bool = False,
    ) -> Seen:
        """Look at images.

        Args:
            images: Normalised.
            places: Patches whose logits are wanted; none where not given.
            hide: Whether these are hidden from the backbone.
        """
        classes, patches = self.backbone(images, places if hide else None)
        wanted = classes[:0] if places is None else patches[places]
        patch_head = self.patch_head or self.head
        # a sharded module may not return views of tensors
        return Seen(classes.clone(), patches.clone(), self.head(classes), patch_head(wanted))
