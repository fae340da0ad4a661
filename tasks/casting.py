"""Is this casting sound? Any network, from scratch or from weights, as much of it trained as asked for.

    python tasks/casting.py                                    # castings drawn here, on this machine
    python tasks/casting.py --preset files --data.root parts/  # folders train and test, in each one a folder per class

The question that published classifiers of castings leave open, how much to train of how large a
network on how little data, is asked on a split that is clean of near duplicates; beside it stands
the score of the split as it was given, which is what was published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from assay.cli.task import main
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.normalise import IMAGENET_MEAN, IMAGENET_STD
from assay.data.inputs.transforms import TransformConfig
from assay.data.manifest import Manifest, read_manifest
from assay.data.split_config import SplitConfig
from assay.data.synthetic.castings import CastingsConfig, draw_castings
from assay.data.synthetic.draw_once import folder_of
from assay.metrics.decide import DecideConfig
from assay.nn.networks import NetworkConfig
from assay.nn.optim import OptimConfig
from assay.nn.regimes import RegimeConfig
from assay.train.classification import ClassLossConfig
from assay.train.explanation import add_truth
from assay.train.task_config import TaskConfig, TrainConfig
from assay.train.transfer import Transfer, TransferConfig

MEAN, STD = 0.5643, 0.2386
"""Grey of the published castings, for all three channels."""


@dataclass(frozen=True, kw_only=True)
class CastingConfig(TransferConfig):
    """Castings, or images of one's own."""

    castings: CastingsConfig = field(default_factory=CastingsConfig)
    """The synthetic castings, drawn where data.root is not given."""
    _drawn: ClassVar[str] = "castings"

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        drawn = (
            {} if self.data.root else {"explain.masks": "castings that are drawn have their own"}
        )
        return super().idle() | drawn


class Casting(Transfer):
    """Whether a casting is sound."""

    Config = CastingConfig

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give LUNA on the synthetic castings (demo, default), its short form for CI, settings for images of one's own
        (files), and the source's recipes, of LUNA (source-luna) and of pretrained networks (source)."""
        demo = CastingConfig(
            split=SplitConfig(near_duplicates="group"),
            image=ImageConfig(height_px=96, width_px=96, fit="stretch"),
            transform=TransformConfig(degrees=180.0, scale=0.05, affine=1.0),
            train=TrainConfig(epochs=16, batch_size=16),
            optim=OptimConfig(lr=5e-4, schedule="onecycle"),
            decide=DecideConfig(positive="defect"),
        )
        smoke = replace(
            demo,
            castings=CastingsConfig(size_px=64, num_train=60, num_test=20),
            image=replace(demo.image, height_px=64, width_px=64),
            model=NetworkConfig(network="mobilenetv3_small_050"),
            train=replace(demo.train, epochs=2),
        )
        files = CastingConfig(
            split=demo.split,
            image=ImageConfig(normalise="constants", mean=IMAGENET_MEAN, std=IMAGENET_STD),
            transform=TransformConfig(degrees=10.0, scale=0.05, translate=0.05),
            loss=ClassLossConfig(class_weights="balanced"),
            model=NetworkConfig(network="resnet18", weights="hub"),
            regime=RegimeConfig(regime="lp-ft"),
            train=TrainConfig(epochs=30, batch_size=16, patience=6),
            optim=OptimConfig(lr=1e-3, schedule="cosine", warmup=0.05),
        )
        return {"demo": demo, "smoke": smoke, "files": files, **source_recipes()}

    @classmethod
    def manifest(cls, config: CastingConfig, storage: Path) -> Manifest:
        """Read the images under data.root, or draw the synthetic castings."""
        data, explain, root = config.data, config.explain, config.data.root
        if root is None:
            folder = folder_of(storage, "castings", config.castings)
            draw_castings(folder, config.castings)
            root = folder / "images"
            data = replace(data, root=root)
            explain = replace(explain, masks="../masks/{folder}/{name}.png")
        manifest = read_manifest(data, storage / "hashes.sqlite")
        return add_truth(manifest, root, explain, storage)

    @classmethod
    def baselines(cls, config: CastingConfig) -> Mapping[str, CastingConfig]:
        """Give the split as it was published, copies and all, where copies are kept in one set (it is trained if one lies
        across the given sets); and beside LUNA on the synthetic castings two small networks of timm, at a rate of their
        own and for fewer epochs, as they learn faster."""
        others = {}
        is_copied = config.data.root is not None or config.castings.leak
        if config.split.near_duplicates == "group" and is_copied:
            split = replace(config.split, near_duplicates="report")
            others["published"] = replace(config, split=split)
        if config.data.root is None and config.model.network == "luna":
            for name in ("resnet", "efficientnet"):
                model = replace(config.model, network=f"test_{name}")
                optim = replace(config.optim, lr=3e-3)
                train = replace(config.train, epochs=min(config.train.epochs, 10))
                others[name] = replace(config, model=model, optim=optim, train=train)
        return others


def source_recipes() -> dict[str, CastingConfig]:
    """Return the source's two recipes, true in every parameter that it states.

    `source` is for its pretrained networks (all of it trained at a small rate), by ResNet-18; another one is
    named by --model.network, and a transformer takes --image.height-px 224 --image.width-px 224.
    Its frozen variant is --regime.regime features --regime.head-lr 1. By design differ: val is drawn by group and
    judged unchanged (the source changes val at random as it does train), the best epoch of val is kept, height and
    width are scaled apart by the same range, brightness moves all greys by what the source's factor
    moves the mean by, and LUNA gives logits (luna-softmax goes through the softmax twice, as the source does). The
    decay of LUNA's rate that the source means to have never runs there, nor here.
    """
    transform = TransformConfig(
        hflip=0.5,
        vflip=0.3,
        degrees=2.5,
        translate=0.05,
        scale=0.05,
        affine=1.0,
        brightness=0.2 * MEAN / STD,
        contrast=0.2,
        hue=0.2,
    )
    source = CastingConfig(
        split=SplitConfig(val=0.1, seed=42),
        image=ImageConfig(
            height_px=300,
            width_px=300,
            fit="stretch",
            normalise="constants",
            mean=(MEAN,) * 3,
            std=(STD,) * 3,
        ),
        transform=transform,
        model=NetworkConfig(network="resnet18", weights="hub"),
        regime=RegimeConfig(regime="full", body_lr=1.0, statistics="moved"),
        train=TrainConfig(epochs=6, batch_size=16, seed=42),
        optim=OptimConfig(
            optimizer="adam",
            lr=2e-5,
            weight_decay=2.5e-4,
            decays="all",
            schedule="constant",
            grad_clip=0.0,
        ),
    )
    luna = replace(
        source,
        model=NetworkConfig(),
        regime=RegimeConfig(),
        train=replace(source.train, epochs=50),
        optim=replace(source.optim, lr=1e-3),
    )
    return {"source": source, "source-luna": luna}


if __name__ == "__main__":
    main(__file__)
