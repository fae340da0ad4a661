"""Where does a part differ from good ones? A memory of good places, learnt without a single defect (PatchCore's method).

    python tasks/anomaly.py                                                  # the synthetic layers
    python tasks/anomaly.py --preset files --data.root tiles/ --masks.files "../masks/{name}.png"
    python tasks/anomaly.py --preset mvtec --data.root bottle/         # folders train, test and ground_truth

Train's images with a mark are left out, so that all marks are there to be judged by. The baseline, judged beside it, is the
same memory over a backbone that has learnt nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from assay.bundle.quantize import QuantizeConfig
from assay.cli.task import main
from assay.data.inputs.tiles import TileConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.masks.layouts import MVTEC_IMAGES, MVTEC_MASKS
from assay.data.masks.prepare import read_masks
from assay.data.masks.rules import MaskConfig
from assay.data.split_config import SplitConfig
from assay.data.synthetic.draw_once import folder_of
from assay.data.synthetic.powder_bed import LayersConfig, draw_layers
from assay.nn.patch_memory import PatchMemoryConfig
from assay.train.anomaly import Anomaly, AnomalyConfig
from assay.train.task_config import TaskConfig

TRUTH = "../truth/{folder}/{name}.png"


@dataclass(frozen=True, kw_only=True)
class PartAnomalyConfig(AnomalyConfig):
    """Anomalies of layers, or of images of one's own."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=("{build}/{layer}",), label="", group=("build",), domains=("build",)
        )
    )
    masks: MaskConfig = field(default_factory=lambda: MaskConfig(files=TRUTH))
    bed: LayersConfig = field(default_factory=LayersConfig)
    """The synthetic layers, drawn where data.root is not given."""
    _drawn: ClassVar[str] = "bed"

    def doubts(self) -> list[str]:
        """Say so where no one has marked what it is judged by."""
        by_rule = f"No masks are given, so that what the rule --masks.maker {self.masks.maker} marks counts as defect, in train and test alike; give --masks.files."
        return [*super().doubts(), *([] if self.masks.files else [by_rule])]


class PartAnomaly(Anomaly):
    """Whatever good parts do not look like."""

    Config = PartAnomalyConfig
    config: PartAnomalyConfig

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the synthetic demo (default), its short form for CI, and settings for images of one's own.

        `mvtec` is for a product in the layout of MVTec AD: its own sets (good parts in `train`), val drawn from train.
        """
        demo = PartAnomalyConfig(
            bed=LayersConfig(clean_share=0.7),
            split=SplitConfig(val=0.2, test=0.4),
            tiles=TileConfig(tile_px=256, overlap_px=32),
            model=PatchMemoryConfig(backbone="resnet18", weights="none", memory=1000),
            quantize=QuantizeConfig(variant="none"),
        )
        few = replace(demo.bed, num_builds=6, layers_per_build=3)
        smoke = replace(demo, bed=few, model=replace(demo.model, memory=100))
        files = PartAnomalyConfig(
            masks=MaskConfig(missing="empty"), quantize=QuantizeConfig(variant="none")
        )
        mvtec = replace(files, data=MVTEC_IMAGES, masks=MVTEC_MASKS)
        return {"demo": demo, "smoke": smoke, "files": files, "mvtec": mvtec}

    @classmethod
    def manifest(cls, config: PartAnomalyConfig, storage: Path) -> Manifest:
        """Read images and their masks, or draw the synthetic layers."""
        data = config.data
        if data.root is None:
            folder = folder_of(storage, "layers", config.bed)
            draw_layers(folder, config.bed)
            data = replace(data, root=folder / "layers")
        assert data.root is not None
        manifest = read_manifest(data, storage / "hashes.sqlite")
        return read_masks(manifest, data.root, {"label": config.masks}, storage)

    @classmethod
    def baselines(cls, config: PartAnomalyConfig) -> Mapping[str, PartAnomalyConfig]:
        """Give the same memory over a backbone without weights."""
        if config.model.weights == "none":
            return {}
        return {"untrained": replace(config, model=replace(config.model, weights="none"))}


if __name__ == "__main__":
    main(__file__)
