"""Does enough plastic come out, on any printer? Frames of the embedded nozzle camera, an adversary and an average.

A kind that the conformance suite must take in without a line of its own: a table of images, modules that only
learning needs, and weights that are judged in the place of the last ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from assay.cli.task import main
from assay.data.dataset import Dataset
from assay.data.inputs.image import ImageConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.synthetic.nozzles import TABLE, NozzlesConfig, draw_nozzles
from assay.nn.averaging import AverageConfig
from assay.nn.domains.config import AlgorithmConfig
from assay.nn.optim import OptimConfig
from assay.train.domains import DomainClassification, DomainClassificationConfig
from assay.train.task_config import TaskConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PrintersConfig(DomainClassificationConfig):
    """Frames of seven printers."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            image="img_path",
            label="has_under_extrusion",
            group=("printer_id", "print_id"),
            domains=("printer_id",),
        )
    )
    nozzles: NozzlesConfig = field(
        default_factory=lambda: NozzlesConfig(height_px=32, num_prints=4, num_frames=2)
    )
    image: ImageConfig = field(
        default_factory=lambda: ImageConfig(height_px=32, width_px=64, normalise="imagenet")
    )


class Printers(DomainClassification):
    """A small net."""

    Config = PrintersConfig

    def __init__(self, config: PrintersConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1)
        )
        self.add_head(12)

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the settings for CI."""
        smoke = PrintersConfig(
            train=TrainConfig(epochs=2, batch_size=4),
            optim=OptimConfig(lr=0.01),
            algorithm=AlgorithmConfig(name="cdann", grad_penalty=0.1),
            average=AverageConfig(weights="swad", begins=0.0, converged_looks=1),
        )
        mixed = AlgorithmConfig(name="mixstyle", mix_after=("net.2",))
        return {"smoke": smoke, "mixed": replace(smoke, algorithm=mixed)}

    @classmethod
    def manifest(cls, config: PrintersConfig, storage: Path) -> Manifest:
        """Draw the frames where none are given."""
        data = config.data
        if data.root is None:
            folder = storage / "embedded" / "nozzles"
            draw_nozzles(folder, config.nozzles)
            data = replace(data, root=folder / TABLE)
        return read_manifest(data, storage / "hashes.sqlite")

    def features(self, images: Tensor) -> Tensor:
        """Maps of features."""
        features: Tensor = self.net(images)
        return features


if __name__ == "__main__":
    main(__file__)
