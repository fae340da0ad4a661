"""Which images show the same kind of part? Views of one image are near, of others far (SimCLR's loss)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from assay.cli.task import main
from assay.data.dataset import Dataset
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.views import ViewConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.nn.optim import OptimConfig
from assay.train.embedding import Embedding, EmbeddingConfig
from assay.train.task import Batch
from assay.train.task_config import TaskConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class KindsConfig(EmbeddingConfig):
    """Kinds of parts, whose labels are judged by and never learnt from."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=("{label}/{part}-{view}",), group=("label", "part")
        )
    )
    image: ImageConfig = field(default_factory=lambda: ImageConfig(height_px=32, width_px=32))
    views: ViewConfig = field(
        default_factory=lambda: ViewConfig(global_px=32, local_px=16, num_local=1)
    )


class Kinds(Embedding):
    """A small encoder."""

    Config = KindsConfig

    def __init__(self, config: KindsConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the settings for CI."""
        train = TrainConfig(epochs=2, batch_size=4)
        return {"smoke": KindsConfig(train=train, optim=OptimConfig(lr=0.01))}

    @classmethod
    def manifest(cls, config: KindsConfig, storage: Path) -> Manifest:
        """Draw the images."""
        folder = draw_kinds(storage / "embedded" / "kinds")
        return read_manifest(replace(config.data, root=folder), storage / "hashes.sqlite")

    def embed(self, images: Tensor) -> Tensor:
        """Vectors of 32 entries."""
        vectors: Tensor = self.net(images)
        return vectors

    def losses(self, batch: Batch, progress: float, phase: str) -> tuple[dict[str, Tensor], Tensor]:
        """Cross-entropy of finding the other view of one's own image in the batch."""
        views = torch.from_numpy(batch["global"]).to(self.device)
        first, second = (
            nn.functional.normalize(self.embed(views[:, i]).float(), dim=1) for i in (0, 1)
        )
        own = torch.arange(len(views), device=self.device)
        return {"contrast": nn.functional.cross_entropy(first @ second.T / 0.2, own)}, first


def draw_kinds(folder: Path) -> Path:
    """Draw stripes, discs and noise: ten parts of each, two views a part."""
    rng = np.random.default_rng(3)
    for label in ("discs", "noise", "stripes"):
        for part in range(10):
            for view in range(2):
                image = rng.integers(80, 120, (48, 48, 3), dtype=np.uint8)
                if label == "stripes":
                    image[:, :: 4 + part % 3] = 220
                elif label == "discs":
                    cv2.circle(image, rng.integers(12, 36, 2).tolist(), 9, (30, 40, 200), -1)
                path = folder / label / f"{part:02d}-{view}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), image)
    return folder


if __name__ == "__main__":
    main(__file__)
