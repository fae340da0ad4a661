"""What do unlabelled images teach? A vision transformer learns from views of each image (DINOv2's method).

    python tasks/pretrain.py                                       # the synthetic units
    python tasks/pretrain.py --preset files --data.root images/    # images of one's own, in folders by class
    python tasks/pretrain.py --preset fork --data.root set/        # set/annotations/train.json and the like
    python tasks/pretrain.py --preset files --data.root labelled/ --model.weights RUN --train.epochs 0 --ship logistic

Labels are judged by and never learnt from. The baseline, judged beside it, is the same backbone as it begins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
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
from assay.nn.self_supervised.head import HeadConfig
from assay.nn.self_supervised.schedules import RatesConfig, TeacherConfig
from assay.nn.self_supervised.vit import VitConfig
from assay.train.self_distillation import (
    DistillationLossConfig,
    SelfDistillation,
    SelfDistillationConfig,
)
from assay.train.task_config import TaskConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(SelfDistillationConfig):
    """Self-supervision on images of units, of which several photos may exist."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=("{label}/{unit}-{view}",), group=("unit",), domains=("view",)
        )
    )
    units: UnitsConfig = field(default_factory=UnitsConfig)
    """The synthetic units, drawn where data.root is not given."""
    _drawn: ClassVar[str] = "units"


class Pretrain(SelfDistillation):
    """Embeddings of images, learnt without labels."""

    Config = PretrainConfig
    config: PretrainConfig

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the synthetic demo (default), its short form for CI, settings for images of one's own, DINOv2's recipe and the source's."""
        demo = PretrainConfig(
            units=UnitsConfig(contrast=2.0),
            split=SplitConfig(val=0.15, test=0.3),
            image=ImageConfig(height_px=48, width_px=48),
            # without blur, which few pixels do not survive; units lie as they fall
            views=ViewConfig(
                degrees=180.0,
                global_px=48,
                local_px=24,
                num_local=2,
                vflip=0.5,
                grey=1.0,
                blur=0.0,
                blur_global=(0.0, 0.0),
                solarise=0.0,
                global_area=(0.4, 1.0),
            ),
            model=VitConfig(backbone="64x3x8", drop_path=0.0),
            # prototypes that stay where they are cannot make all answers alike, as few images let them
            head=HeadConfig(
                num_prototypes=64, hidden=256, bottleneck=16, unit_length=True, batch_norm=True
            ),
            loss=DistillationLossConfig(centering="sinkhorn_knopp"),
            teacher=TeacherConfig(momentum=0.98, temperature=0.04),
            rates=RatesConfig(
                layer_decay=1.0,
                patch_embed_lr=1.0,
                final_weight_decay=0.1,
                freeze_prototypes=0.95,
            ),
            train=TrainConfig(epochs=40, batch_size=32, val_every=10),
            optim=OptimConfig(
                lr=2e-3, schedule="cosine", warmup=0.1, start_factor=0.0, weight_decay=0.04
            ),
        )
        few = replace(demo.units, num_units=24, num_views=2)
        smoke = replace(
            demo,
            units=few,
            split=SplitConfig(val=0.2, test=0.2),
            image=replace(demo.image, height_px=32, width_px=32),
            views=replace(demo.views, global_px=32, local_px=16),
            model=replace(demo.model, backbone="32x2x8"),
            head=HeadConfig(num_prototypes=32, hidden=64, bottleneck=8),
            loss=DistillationLossConfig(),
            teacher=TeacherConfig(momentum=0.98, start_temperature=0.01),
            rates=replace(demo.rates, freeze_prototypes=0.01),
            train=TrainConfig(epochs=2, batch_size=8),
            optim=replace(demo.optim, lr=3e-3),
        )
        return {
            "demo": demo,
            "smoke": smoke,
            "files": files(),
            "official": official(),
            "fork": fork(),
        }

    @classmethod
    def manifest(cls, config: PretrainConfig, storage: Path) -> Manifest:
        """Read the images under data.root, or draw the synthetic units."""
        data = config.data
        if data.root is None:
            folder = folder_of(storage, "units", config.units)
            draw_units(folder, config.units)
            data = replace(data, root=folder)
        return read_manifest(data, storage / "hashes.sqlite")

    @classmethod
    def baselines(cls, config: PretrainConfig) -> Mapping[str, PretrainConfig]:
        """Give the backbone as it begins: untrained, or with the weights that it was given."""
        if not config.train.epochs:
            return {}
        return {"start": replace(config, train=replace(config.train, epochs=0))}


def official() -> PretrainConfig:
    """Return DINOv2's default recipe (a ViT-L/16 on 32 GPUs of 64 images).

    Its 100 epochs of 1,250 updates are 200 passes over the 1,281,167 images of ImageNet-1k; what it counts
    in epochs stands here as a share of them.
    """
    batch_size = 32 * 64
    lr = 4e-3 * sqrt(batch_size / 1024)
    return PretrainConfig(
        data=DataConfig(),
        image=ImageConfig(height_px=224, width_px=224, fit="crop", normalise="imagenet"),
        views=ViewConfig(local_px=96),
        model=VitConfig(backbone="vit_large_patch16_224", drop_path=0.3, layer_scale=1e-5),
        head=HeadConfig(num_prototypes=65_536),
        train=TrainConfig(epochs=200, batch_size=batch_size, precision="fp16", val_every=20),
        optim=OptimConfig(
            lr=lr,
            weight_decay=0.04,
            schedule="cosine",
            warmup=0.1,
            start_factor=0.0,
            final_factor=1e-6 / lr,
            grad_clip=3.0,
        ),
    )


def fork() -> PretrainConfig:
    """Return the source's configuration: a ViT-B/14 from DINOv2's weights, at their size, on 6 GPUs of 64 images.

    Its 100 epochs are of 2,500 updates, however many images there are; here they are passes over them.
    """
    base, batch_size = official(), 6 * 64
    lr = 1e-4 * sqrt(batch_size / 1024)
    return replace(
        base,
        data=DataConfig(group=("group_id",)),
        image=replace(base.image, height_px=518, width_px=518),
        views=ViewConfig(global_px=518, local_px=98),
        model=VitConfig(backbone="vit_base_patch14_dinov2", weights="hub", drop_path=0.3),
        train=replace(base.train, epochs=100, batch_size=batch_size, seed=17, val_every=3),
        optim=replace(base.optim, lr=lr, final_factor=1e-6 / lr),
    )


def files() -> PretrainConfig:
    """Return settings for some thousand images of one's own: DINOv2's small backbone goes on from its weights."""
    base = official()
    return replace(
        base,
        views=ViewConfig(),
        model=VitConfig(weights="hub", drop_path=0.1),
        head=HeadConfig(),
        loss=DistillationLossConfig(centering="sinkhorn_knopp"),
        teacher=TeacherConfig(momentum=0.994),
        train=TrainConfig(epochs=50, batch_size=64, precision="bf16", val_every=5),
        optim=replace(base.optim, lr=1e-4, final_factor=0.01),
    )


if __name__ == "__main__":
    main(__file__)
