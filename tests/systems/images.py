"""Is there a spot? Whole images under two lamps, in alternating phases against the lamp.

A kind that the conformance suite must take in without a line of its own: domains, a second label, and
phases that take turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from assay.cli.task import main
from assay.data.dataset import Dataset
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.transforms import TransformConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.order import uniform_order
from assay.nn.optim import OptimConfig
from assay.train.classification import Classification, ClassificationConfig, pooled
from assay.train.task import Batch
from assay.train.task_config import TaskConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class SpotsConfig(ClassificationConfig):
    """Spots under lamps."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=("{lamp}/{label}/{size}-{part}",),
            group=("lamp", "label", "part"),
            domains=("lamp",),
            keep=("size",),
        )
    )
    image: ImageConfig = field(
        default_factory=lambda: ImageConfig(height_px=32, width_px=40, normalise="imagenet")
    )
    transform: TransformConfig = field(default_factory=lambda: TransformConfig(degrees=5.0))


class Spots(Classification):
    """A small net with a second head for the spot's size and a third for the lamp."""

    Config = SpotsConfig

    def __init__(self, config: SpotsConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.phases = ("lamp", "main")
        self.net = nn.Sequential(
            nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU()
        )
        self.add_head(16)
        self.size = nn.Linear(16, len(dataset.columns["size"].values))
        self.lamp = nn.Linear(16, len(dataset.domains["lamp"].values))

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the settings for CI."""
        smoke = SpotsConfig(train=TrainConfig(epochs=2, batch_size=4), optim=OptimConfig(lr=0.01))
        loss = replace(smoke.loss, class_weights="balanced", label_smoothing=0.05)
        return {"smoke": smoke, "balanced": replace(smoke, loss=loss)}

    @classmethod
    def manifest(cls, config: SpotsConfig, storage: Path) -> Manifest:
        """Draw the images where none are given."""
        data = config.data
        if data.root is None:
            data = replace(data, root=draw_spots(storage / "embedded" / "spots"))
        return read_manifest(data, storage / "hashes.sqlite")

    @classmethod
    def order(cls, config: Any, dataset: Dataset, rows: np.ndarray, epoch: int) -> list[np.ndarray]:
        """Take half of each batch from either lamp, as long as both last."""
        codes = dataset.domains["lamp"].codes
        batches = [
            uniform_order(
                rows[codes[rows] == code], config.train.batch_size // 2, config.train.seed, epoch
            )
            for code in np.unique(codes[rows])
        ]
        longest = max(map(len, batches))
        return [
            np.concatenate([lamp[i] for lamp in batches if i < len(lamp)]) for i in range(longest)
        ]

    def features(self, images: Tensor) -> Tensor:
        """Maps of features."""
        features: Tensor = self.net(images)
        return features

    def penalties(
        self, features: Tensor, logits: Tensor, batch: Batch, progress: float, phase: str
    ) -> dict[str, Tensor]:
        """Tell the size in phase main; tell the lamp in the other, from features that do not move."""
        rows, vectors = batch["row"], pooled(features)
        if phase == "main":
            codes = self.dataset.columns["size"].codes[rows]
            return {"size": self._entropy(self.size(vectors), codes)}
        lamps = self.dataset.domains["lamp"].codes[rows]
        return {"lamp": self._entropy(self.lamp(vectors.detach()), lamps)}

    def _entropy(self, logits: Tensor, codes: np.ndarray) -> Tensor:
        truth = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        return nn.functional.cross_entropy(logits, truth)


def draw_spots(folder: Path) -> Path:
    """Draw twelve parts for each lamp and label."""
    rng = np.random.default_rng(1)
    for lamp, level in (("dim", 60), ("bright", 150)):
        for label in ("clean", "spot"):
            for part in range(12):
                image = rng.integers(level, level + 40, (48, 64, 3), dtype=np.uint8)
                radius = 6 + 4 * (part % 2)
                if label == "spot":
                    centre = rng.integers(16, 40, 2).tolist()
                    cv2.circle(image, centre, radius, (240, 240, 255), -1)
                path = folder / lamp / label / f"{'large' if part % 2 else 'small'}-{part:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), image)
    return folder


if __name__ == "__main__":
    main(__file__)
