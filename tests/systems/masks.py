"""Where is the spot? Masks beside a label of the whole image, which is a second thing to learn."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from assay.bundle.quantize import QuantizeConfig
from assay.cli.task import main
from assay.data.dataset import Dataset
from assay.data.inputs.crops import CropConfig
from assay.data.inputs.tiles import TileConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.masks.prepare import add_masks, prepare
from assay.data.masks.rules import MaskConfig
from assay.nn.optim import OptimConfig
from assay.train.segmentation import Segmentation, SegmentationConfig
from assay.train.task import Batch
from assay.train.task_config import TaskConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class MarksConfig(SegmentationConfig):
    """Spots and their masks."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=("{lamp}/{label}-{part}",), group=("lamp", "part"), domains=("lamp",)
        )
    )
    masks: MaskConfig = field(
        default_factory=lambda: MaskConfig(files="../masks/{folder}/{name}.png")
    )


class Encoder(nn.Module):
    """An encoder whose output is a list of maps, as those of segmentation-models-pytorch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps from the finest to the deepest."""
        return [images, self.body(images)]


class Net(nn.Module):
    """One encoder, one decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = nn.Conv2d(12, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the size of the images."""
        logits: Tensor = self.decoder(self.encoder(images)[-1])
        return nn.functional.interpolate(logits, scale_factor=2.0)


class Marks(Segmentation):
    """Marks spots and tells by them whether the part has one."""

    Config = MarksConfig

    def __init__(self, config: MarksConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset, Net())

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the settings for CI."""
        smoke = MarksConfig(
            crops=CropConfig(crop_px=32),
            tiles=TileConfig(tile_px=64, overlap_px=16),
            train=TrainConfig(epochs=2, batch_size=4),
            optim=OptimConfig(lr=0.02),
            quantize=QuantizeConfig(variant="none"),
        )
        return {"smoke": smoke}

    @classmethod
    def manifest(cls, config: MarksConfig, storage: Path) -> Manifest:
        """Draw images and masks."""
        folder = storage / "embedded" / "marks"
        draw_marks(folder)
        data = replace(config.data, root=folder / "images")
        manifest = read_manifest(data, storage / "hashes.sqlite")
        masks = prepare(manifest, folder / "images", config.masks, storage / "masks")
        return add_masks(manifest, {"label": masks}, ("spot",), storage / "hashes.sqlite")

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Masks, and the label that stands beside them."""
        scalars = super().forward(batch, progress, phase)
        has_spot = self.dataset.truth[batch["row"]] == self.dataset.classes.index("spot")
        marked = torch.from_numpy(batch["mask"]).flatten(1).amax(1) > 0
        scalars["agrees"] = (marked <= torch.from_numpy(has_spot)).float().mean()
        return scalars


def draw_marks(folder: Path) -> None:
    """Draw eight parts for each lamp and label, and the masks of their spots."""
    rng = np.random.default_rng(2)
    for lamp, level in (("dim", 60), ("bright", 110)):
        for label in ("clean", "spot"):
            for part in range(8):
                image = rng.integers(level, level + 30, (64, 64, 3), dtype=np.uint8)
                mask = np.zeros((64, 64), np.uint8)
                if label == "spot":
                    cv2.circle(mask, rng.integers(14, 50, 2).tolist(), 8, 255, -1)
                    image[mask > 0] = 230
                name = f"{label}-{part if label == 'clean' else part + 8:02d}.png"
                for kind, pixels in (("images", image), ("masks", mask)):
                    path = folder / kind / lamp / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(path), pixels)


if __name__ == "__main__":
    main(__file__)
