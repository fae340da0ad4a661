"""The base of tasks that learn masks from masks: crops to train on, their loss, and its limits."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from assay.data.dataset import Dataset
from assay.data.inputs.crops import CropConfig, draw_crop
from assay.data.inputs.normalise import EPS
from assay.levels import VOID
from assay.nn.mask_loss import mask_loss
from assay.nn.mask_net import MaskNetConfig, find_encoder
from assay.train.mask_task import MaskTask, MaskTaskConfig
from assay.train.monitor import Limit
from assay.train.task import Batch, BatchRows
from assay.train.task_config import TaskConfig, doubt_constants


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(MaskTaskConfig):
    """What every segmentation holds; a task adds its own fields."""

    crops: CropConfig = field(default_factory=CropConfig)
    model: MaskNetConfig = field(default_factory=MaskNetConfig)

    def doubts(self) -> list[str]:
        """Say so where an encoder's weights were trained on other values than they are shown."""
        name = self.model.encoder.removeprefix("tu-")
        return doubt_constants(name, self.model.weights, self.tiles)

    def idle(self) -> dict[str, str]:
        """Name settings without effect: light that normalisation by the image takes away again."""
        names = super().idle()
        if self.tiles.normalise == "image":
            lit = ("crops.brightness", "crops.contrast")
            names |= dict.fromkeys(lit, "tiles.normalise is image, which takes light away")
        return names


class Segmentation(MaskTask):
    """A network over crops in training and over tiles in use; its `encoder` gives features."""

    Config: ClassVar[type[TaskConfig]] = SegmentationConfig
    config: Any

    @classmethod
    def fetch(cls, config: Any) -> None:
        """Fetch the encoder's weights."""
        find_encoder(config.model)

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
        """Return crops and their masks to train on; of images to be judged the rows alone, as tiles are cut later."""
        batch = super().prepare(config, dataset, samples)
        if not samples.train:
            return batch
        pixels, drawn = dataset.pixels, config.crops
        if config.tiles.normalise == "image":  # which takes light away again
            drawn = replace(drawn, brightness=0.0, contrast=0.0)
        crops = [
            draw_crop(pixels, row, drawn, key)
            for row, key in zip(samples.rows.tolist(), samples.keys.tolist(), strict=True)
        ]
        images, marks = (np.stack(arrays) for arrays in zip(*crops, strict=True))
        images_of = [pixels[row] for row in samples.rows.tolist()]
        statistics = [config.tiles.statistics(image.mean, image.std) for image in images_of]
        mean, std = (np.stack(values) for values in zip(*statistics, strict=True))
        return batch | {"image": images, "mask": marks, "mean": mean, "std": std}

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Return the loss of the crops' masks."""
        model = self.config.model
        image = self.to_device(batch["image"]).permute(0, 3, 1, 2).float()
        mean, std = (self.to_device(batch[name])[:, :, None, None] for name in ("mean", "std"))
        logits = self.logits((image / 255 - mean) / (std + EPS))
        numbers = torch.arange(1, len(self.classes) + 1, device=self.device)[:, None, None]
        mask = self.to_device(batch["mask"])[:, None]
        inside, judged = (mask == numbers).float(), (mask != VOID).float()
        losses = mask_loss(
            model.loss, logits, inside, model.pos_weight, model.tversky_beta, model.over, judged
        )
        marked, share = logits.detach().float().sigmoid().mean(), inside.mean()
        scalars = {"loss": losses.mean(), "marked_share": marked}
        # of a batch without a pixel inside nothing can be said
        return scalars | ({"marked_ratio": marked / share} if share > 0 else {})

    def limits(self) -> Sequence[Limit]:
        """Warn of a network that marks nothing, or everything: it has learnt the share of the mask and no more."""
        nothing = (
            "nothing is marked any more: raise --model.pos-weight, or take --model.loss combined"
        )
        everything = "nearly everything is marked: lower --model.pos-weight, or see whether the masks are inverted (--masks.dark)"
        return [
            Limit("marked_ratio", low=0.01, for_updates=100, why=nothing),
            Limit("marked_share", high=0.95, for_updates=100, why=everything),
        ]

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, and the encoder's deepest features, averaged over each tile."""
        features: list[Any] = []
        encoder = cast(nn.Module, self.net.encoder)
        hook = encoder.register_forward_hook(lambda _, __, output: features.append(output))
        logits = self.net(images)
        hook.remove()
        # of transformers (dpt) the encoder gives prefix tokens beside the feature maps
        maps = features[0][0] if isinstance(features[0], tuple) else features[0]
        return logits, maps[-1].mean((2, 3))
