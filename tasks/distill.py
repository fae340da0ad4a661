"""What of a large network fits into a small one? Its features are learnt from unlabelled images.

    python tasks/distill.py --data.root images/                            # DINOv2's features into a MobileNet
    python tasks/distill.py --data.root images/ --model.backbone resnet18
    python tasks/distill.py --data.root images/ --model.backbone vit_small_patch14_dinov2 --model.weights hub --model.keep-blocks 6
    python tasks/distill.py                                                # the synthetic units

Labels are judged by and never learnt from. The baseline, judged beside it, is the same backbone as it begins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from assay.cli.task import main
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.views import ViewConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.split_config import SplitConfig
from assay.data.synthetic.draw_once import folder_of
from assay.data.synthetic.units import UnitsConfig, draw_units
from assay.nn.optim import OptimConfig
from assay.train.feature_distillation import (
    FeatureDistillation,
    FeatureDistillationConfig,
    FrozenConfig,
    StudentConfig,
)
from assay.train.task_config import TaskConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class DistillConfig(FeatureDistillationConfig):
    """Features of a frozen network on images of one's own."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=("{label}/{unit}-{view}",), group=("unit",), domains=("view",)
        )
    )
    units: UnitsConfig = field(default_factory=UnitsConfig)
    """The synthetic units, drawn where data.root is not given."""
    _drawn: ClassVar[str] = "units"


class Distill(FeatureDistillation):
    """Embeddings of images, learnt from a frozen network."""

    Config = DistillConfig
    config: DistillConfig

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give settings for some thousand images (default), and the short form for CI, whose teacher knows nothing."""
        files = DistillConfig(
            data=DataConfig(),
            image=ImageConfig(fit="crop", normalise="imagenet"),
            train=TrainConfig(epochs=50, batch_size=64, val_every=5),
            optim=OptimConfig(lr=1e-3, schedule="cosine", warmup=0.05, weight_decay=0.05),
        )
        smoke = DistillConfig(
            units=UnitsConfig(num_units=24, num_views=2),
            split=SplitConfig(val=0.2, test=0.2),
            image=ImageConfig(height_px=64, width_px=64),
            views=ViewConfig(num_global=1, num_local=0, global_px=64),
            model=StudentConfig(backbone="texture_small"),
            teacher=FrozenConfig(backbone="test_resnet", weights="none"),
            train=TrainConfig(epochs=2, batch_size=8),
            optim=OptimConfig(lr=5e-3, schedule="cosine", warmup=0.1),
        )
        return {"files": files, "smoke": smoke}

    @classmethod
    def manifest(cls, config: DistillConfig, storage: Path) -> Manifest:
        """Read the images under data.root, or draw the synthetic units."""
        data = config.data
        if data.root is None:
            folder = folder_of(storage, "units", config.units)
            draw_units(folder, config.units)
            data = replace(data, root=folder)
        return read_manifest(data, storage / "hashes.sqlite")

    @classmethod
    def baselines(cls, config: DistillConfig) -> Mapping[str, DistillConfig]:
        """Give the backbone as it begins: untrained, or with the weights that it was given."""
        if not config.train.epochs:
            return {}
        return {"start": replace(config, train=replace(config.train, epochs=0))}


if __name__ == "__main__":
    main(__file__)
