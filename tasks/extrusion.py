"""Does enough plastic come out, on a printer never seen? Frames of a camera at the nozzle, any algorithm across printers.

    python tasks/extrusion.py                                                # frames drawn here, on this machine
    python tasks/extrusion.py --preset shortcut                              # ERM is misled, and IRM beside it is not
    python tasks/extrusion.py --preset files --data.root frames/             # <label>/<printer>/<print>/<frame>.jpg
    python tasks/extrusion.py --preset competition --data.root train.csv     # img_path, printer_id, print_id, ...
    python sweeps/design_generalization.py --task tasks/extrusion.py --fold-column printer_id --leave-out 1

Beside any algorithm stands plain empirical risk minimisation (ERM), which few beat; the printer that is tested is in neither train
nor val. All frames of a print are in one set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from assay.cli.task import main
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.normalise import IMAGENET_MEAN, IMAGENET_STD
from assay.data.inputs.transforms import TransformConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.split_config import SplitConfig
from assay.data.synthetic.draw_once import folder_of
from assay.data.synthetic.nozzles import ODD_PRINTER, TABLE, NozzlesConfig, draw_nozzles
from assay.data.times import STEM, add_times
from assay.metrics.alarm import AlarmConfig
from assay.metrics.decide import DecideConfig
from assay.nn.domains.config import AlgorithmConfig
from assay.nn.networks import NetworkConfig
from assay.nn.optim import OptimConfig
from assay.train.adaptation import AdaptConfig
from assay.train.classification import ClassLossConfig
from assay.train.domains import DomainsConfig
from assay.train.prints import FramesConfig, Prints, PrintsConfig
from assay.train.task_config import TaskConfig, TrainConfig

COMPETITION = DataConfig(
    image="img_path",
    label="has_under_extrusion",
    group=("printer_id", "print_id"),
    domains=("printer_id",),
)
"""The competition's table, which the embedded frames are listed in too."""

FAINT = NozzlesConfig(num_prints=40, num_frames=4, rise_s=0.0, signal=0.18, shortcut=True)
"""Many short prints, whose faults are harder to see than the lamp."""


@dataclass(frozen=True, kw_only=True)
class ExtrusionConfig(PrintsConfig):
    """Frames of prints, of several printers."""

    data: DataConfig = COMPETITION
    nozzles: NozzlesConfig = field(default_factory=NozzlesConfig)
    """The synthetic frames, drawn where data.root is not given."""
    _drawn: ClassVar[str] = "nozzles"


class Extrusion(Prints):
    """Whether enough plastic comes out."""

    Config = ExtrusionConfig

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the synthetic frames with one printer held out (demo, default; shortcut: faint faults beside a lamp that tells
        them elsewhere; a short one for CI), images of one's own (files), the competition's table, and the source's recipe."""
        demo = demo_recipe()
        shortcut = replace(
            demo,
            nozzles=FAINT,
            algorithm=AlgorithmConfig(name="irm"),
            train=TrainConfig(epochs=10, batch_size=48),
            adapt=AdaptConfig(),
        )
        smoke = replace(
            demo,
            nozzles=NozzlesConfig(height_px=32, num_prints=4, num_frames=2),
            image=replace(demo.image, height_px=32, width_px=64),
            model=NetworkConfig(network="test_efficientnet"),
            train=replace(demo.train, epochs=2),
            adapt=AdaptConfig(),
        )
        named = {"demo": demo, "shortcut": shortcut, "smoke": smoke, "files": files_recipe()}
        return {**named, "competition": competition_recipe(), "source": source_recipe()}

    @classmethod
    def manifest(cls, config: ExtrusionConfig, storage: Path) -> Manifest:
        """Read the frames under data.root, or draw the synthetic ones; with their times where these are known."""
        data = config.data
        if data.root is None:
            folder = folder_of(storage, "nozzles", config.nozzles)
            draw_nozzles(folder, config.nozzles)
            data = replace(data, root=folder / TABLE)
        manifest = read_manifest(data, storage / "hashes.sqlite")
        return add_times(manifest, config.frames.time) if config.frames.time else manifest


def demo_recipe() -> ExtrusionConfig:
    """Return settings for the synthetic frames, one printer held out."""
    return ExtrusionConfig(
        frames=FramesConfig(time=STEM),
        split=SplitConfig(unseen_domain="printer_id", unseen=(ODD_PRINTER,)),
        nozzles=NozzlesConfig(num_frames=10),
        image=ImageConfig(
            height_px=64,
            width_px=128,
            fit="crop",
            normalise="constants",
            mean=(0.4,) * 3,
            std=(0.25,) * 3,
        ),
        transform=TransformConfig(affine=0.0),
        loss=ClassLossConfig(class_weights="balanced"),
        model=NetworkConfig(network="test_resnet"),
        algorithm=AlgorithmConfig(name="dann"),
        train=TrainConfig(epochs=10, batch_size=30),
        optim=OptimConfig(lr=3e-3, warmup=0.1),
        decide=DecideConfig(positive="1"),
        alarm=AlarmConfig(window=4),
        adapt=AdaptConfig(methods=("recalibrate", "tent"), minutes=0.25),
    )


def competition_recipe() -> ExtrusionConfig:
    """Return settings for the competition's frames, a pretrained network fine-tuned."""
    demo = demo_recipe()
    image = replace(demo.image, height_px=128, width_px=256, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return replace(
        demo,
        split=SplitConfig(unseen_domain="printer_id", num_unseen=1),
        image=image,
        model=NetworkConfig(network="resnet18", weights="hub"),
        algorithm=AlgorithmConfig(),
        train=TrainConfig(epochs=10, batch_size=32, patience=4),
        optim=OptimConfig(lr=2e-4, schedule="cosine", warmup=0.05),
        alarm=AlarmConfig(),
        adapt=AdaptConfig(),
    )


def files_recipe() -> ExtrusionConfig:
    """Return the same for frames of one's own, in folders by label, printer and print."""
    competition, folders = competition_recipe(), ("{label}/{printer}/{print}/{frame}",)
    return replace(
        competition,
        data=DataConfig(patterns=folders, group=("printer", "print"), domains=("printer",)),
        frames=FramesConfig(),
        split=replace(competition.split, unseen_domain="printer"),
        decide=DecideConfig(),
    )


def source_recipe() -> ExtrusionConfig:
    """Return the recipe of seed system 003, true in every parameter that it states.

    By design differ: sets are drawn by print and a printer is held out (the source's own hold-out is wrong
    by the precedence of its operators, and its validation never runs), the best epoch of val is kept, the
    model is judged in eval mode, the domain loss must not explode, and no image of a test set is trained on
    (the source adds pseudo-labels of them). Its print loss, of weight 4, has no gradient, there and here; what it was
    to be is --algorithm.consistency variance. The learning rate falls to a tenth with each epoch, there in steps and
    here smoothly; rows weighted by class are averaged by their number, there by their weights.
    """
    return ExtrusionConfig(
        frames=FramesConfig(time=STEM),
        split=SplitConfig(unseen_domain="printer_id", num_unseen=1),
        image=ImageConfig(
            height_px=128,
            width_px=256,
            fit="crop",
            normalise="constants",
            mean=(0.43335, 0.43360, 0.42602),
            std=(0.28486, 0.28320, 0.28700),
        ),
        transform=TransformConfig(hflip=0.0, vflip=0.0, affine=0.0, brightness=0.0, contrast=0.0),
        loss=ClassLossConfig(class_weights="balanced"),
        model=NetworkConfig(network="cifar_resnet10-flat"),
        domains=DomainsConfig(order="uniform"),
        algorithm=AlgorithmConfig(name="dann-source", weight=0.6),
        train=TrainConfig(epochs=5, batch_size=8),
        optim=OptimConfig(
            optimizer="adam",
            lr=1e-3,
            weight_decay=1e-4,
            decays="all",
            schedule="exponential",
            warmup=0.0,
            final_factor=1e-5,
            grad_clip=0.0,
        ),
        decide=DecideConfig(positive="1"),
    )


if __name__ == "__main__":
    main(__file__)
