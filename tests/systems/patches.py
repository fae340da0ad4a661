"""Which texture do two small marks of a part bear? Patches chosen at full resolution, and a kept view number."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from assay.cli.task import main
from assay.data.dataset import Dataset
from assay.data.inputs.augment import AugmentConfig
from assay.data.inputs.patches import PatchConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.nn.optim import OptimConfig
from assay.train.patch_network import PatchClassificationConfig, PatchModelConfig
from assay.train.patches import PatchClassification
from assay.train.task import Batch
from assay.train.task_config import TaskConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TexturesConfig(PatchClassificationConfig):
    """Marked parts, photographed twice."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=("{label}/{part}-{view}",), group=("label", "part"), keep=("view",)
        )
    )


class Textures(PatchClassification):
    """Selects patches, and tells the view by the scores as a second thing to learn."""

    Config = TexturesConfig

    def __init__(self, config: TexturesConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.view = nn.Linear(self.grid**2, len(dataset.columns["view"].values))

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the settings for CI."""
        smoke = TexturesConfig(
            patches=PatchConfig(image_px=96, overview_px=32, patch_px=24, clahe_clip=0.0),
            augment=AugmentConfig(hflip=0.5),
            model=PatchModelConfig(
                k=2,
                trunk="small",
                backbone="texture_small",
                norm="group",
                head="none",
                num_layers=1,
                num_heads=2,
                embed_dim=32,
                d_inner=32,
                dropout=0.0,
                attn_dropout=0.0,
                label_smoothing=0.0,
                warmup_k=8,
            ),
            train=TrainConfig(epochs=2, batch_size=4),
            optim=OptimConfig(lr=5e-3),
        )
        return {"smoke": smoke}

    @classmethod
    def manifest(cls, config: TexturesConfig, storage: Path) -> Manifest:
        """Draw the images."""
        folder = draw_textures(storage / "embedded" / "textures")
        return read_manifest(replace(config.data, root=folder), storage / "hashes.sqlite")

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Add the view's cross-entropy to the loss of the patches."""
        outputs = super().forward(batch, progress, phase)
        views = self.dataset.columns["view"].codes[batch["row"]].astype(np.int64)
        logits = self.view(self.scores(batch))
        view_loss = 0.1 * nn.functional.cross_entropy(logits, torch.from_numpy(views))
        return outputs | {"loss": outputs["loss"] + view_loss, "view_loss": view_loss}


def draw_textures(folder: Path) -> Path:
    """Draw twelve parts of each texture, two views a part: light, with two striped marks."""
    rng = np.random.default_rng(4)
    for label, step in (("coarse", 6), ("fine", 3)):
        for part in range(12):
            for view in range(2):
                image = rng.integers(150, 170, (96, 96, 3), dtype=np.uint8)
                for y in (20, 60):
                    x = int(rng.integers(8, 60))
                    image[y : y + 18, x : x + 18] = 60
                    image[y : y + 18, x : x + 18 : step] = 220
                path = folder / label / f"{part:02d}-{view}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), image)
    return folder


if __name__ == "__main__":
    main(__file__)
