"""Where is the defect? A U-Net over tiles of powder-bed layers, taught by heuristic or given masks.

    python tasks/segment.py                                            # the synthetic layers
    python tasks/segment.py --preset files --data.root layers/ --masks.files "../masks/{name}.png"
    python tasks/segment.py --preset mvtec --data.root bottle/   # folders train, test and ground_truth

The baseline, judged beside it, is the heuristic itself: the rule that masks are made by, or would be.
Where true masks are known besides those that were learnt from, both are judged by them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from assay.bundle.quantize import QuantizeConfig
from assay.cli.task import main
from assay.config import fingerprint, to_dict
from assay.data import layers
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.inputs.crops import CropConfig
from assay.data.inputs.tiles import TileConfig
from assay.data.layers import LayerConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.masks.layouts import MVTEC_IMAGES, MVTEC_MASKS
from assay.data.masks.prepare import read_masks
from assay.data.masks.rules import MaskConfig, make, rule_levels
from assay.data.split_config import SplitConfig
from assay.data.synthetic.draw_once import folder_of
from assay.data.synthetic.powder_bed import LayersConfig, draw_layers
from assay.errors import ConfigError
from assay.nn.mask_net import MaskNetConfig, create_mask_net, try_sides
from assay.nn.optim import OptimConfig
from assay.train.segmentation import Segmentation, SegmentationConfig
from assay.train.task_config import TaskConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class SegmentModelConfig(MaskNetConfig):
    """What draws the mask, and what it learns by."""

    mode: Literal["net", "heuristic"] = "net"
    """A network, or the rule of masks.maker alone, which learns nothing."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(SegmentationConfig):
    """Segmentation of defects."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=("{build}/{layer}",), label="", group=("build",), domains=("build",)
        )
    )
    layers: LayerConfig = field(default_factory=LayerConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    truth: str = ""
    """Pattern like masks.files of true masks, where training learns from others; test is judged by them."""
    model: SegmentModelConfig = field(default_factory=SegmentModelConfig)
    bed: LayersConfig = field(default_factory=LayersConfig)
    """The synthetic layers, drawn where data.root is not given."""
    _drawn: ClassVar[str] = "bed"

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        drawn = {} if self.data.root else {"layers.channels": "the layers that are drawn have one"}
        return super().idle() | drawn

    def __post_init__(self) -> None:
        """Refuse to train the rule, which learns nothing."""
        super().__post_init__()
        if self.model.mode == "heuristic" and self.train.epochs:
            raise ConfigError(
                f"model.mode is heuristic, which learns nothing, and train.epochs is {self.train.epochs}; pass --train.epochs 0, and the rule is judged."
            )


class Rule(nn.Module):
    """In the network's place where the rule draws the masks: it learns nothing, and only stands on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros(1))


class Segment(Segmentation):
    """Defects of layers."""

    Config = SegmentConfig
    config: SegmentConfig

    def __init__(self, config: SegmentConfig, dataset: Dataset) -> None:
        is_net = config.model.mode == "net"
        num_classes = len(dataset.mask_classes)
        net = create_mask_net(config.model, num_classes) if is_net else Rule()
        super().__init__(config, dataset, net)
        if is_net:
            sides = {"crops.crop-px": config.crops.crop_px, "tiles.tile-px": config.tiles.tile_px}
            try_sides(net, config.model, sides)
            self.check_tiles()

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the synthetic demo (default), its short form for CI, and settings for images of one's own.

        `mvtec` is for a product in the layout of MVTec AD: `train`, `test` and `ground_truth`; sets are drawn over all, as `train` shows no defect.
        """
        demo = SegmentConfig(
            masks=MaskConfig(maker="adaptive", block_px=51, offset=20),
            truth="../truth/{folder}/{name}.png",
            split=SplitConfig(val=0.2, test=0.4),
            crops=CropConfig(crop_px=128, noise=0.5),
            tiles=TileConfig(tile_px=256, overlap_px=32),
            model=SegmentModelConfig(
                encoder="tu-mobilenetv2_050", decoder_channels=(64, 32, 24, 16, 8)
            ),
            train=TrainConfig(epochs=36, batch_size=8, eval_batch_size=8, val_every=6),
            optim=OptimConfig(lr=2e-3),
        )
        few = replace(demo.bed, num_builds=6, layers_per_build=3)
        brief = replace(demo.train, epochs=2, val_every=1)
        smoke = replace(demo, train=brief, optim=replace(demo.optim, lr=1e-2), bed=few)
        files = SegmentConfig(
            model=SegmentModelConfig(encoder="tu-mobilenetv2_100.ra_in1k", weights="hub"),
            train=TrainConfig(epochs=50, batch_size=16, patience=10, min_improvement=0.002),
            optim=OptimConfig(lr=1e-3, warmup=0.1),
        )
        mvtec = replace(files, data=replace(MVTEC_IMAGES, split=""), masks=MVTEC_MASKS)
        return {"demo": demo, "smoke": smoke, "files": files, "mvtec": mvtec}

    @classmethod
    def fetch(cls, config: SegmentConfig) -> None:
        """Fetch the encoder's weights; the rule needs none."""
        if config.model.mode == "net":
            super().fetch(config)

    @classmethod
    def manifest(cls, config: SegmentConfig, storage: Path) -> Manifest:
        """Read layers, the masks that training learns from, and the true ones where they are known."""
        data = config.data
        if data.root is None:
            folder = folder_of(storage, "layers", config.bed)
            draw_layers(folder, config.bed)
            data = replace(data, root=folder / "layers")
        elif config.layers.channels != "all":
            prepared = storage / "layers" / fingerprint([str(data.root), to_dict(config.layers)])
            data = replace(data, root=layers.collect(data.root, config.layers, prepared))
        assert data.root is not None
        manifest = read_manifest(data, storage / "hashes.sqlite")
        rules = {"label": config.masks}
        if config.truth:
            rules["truth"] = replace(config.masks, files=config.truth)
        return read_masks(manifest, data.root, rules, storage)

    @classmethod
    def baselines(cls, config: SegmentConfig) -> Mapping[str, SegmentConfig]:
        """Give the heuristic: the rule that masks are made by, without a network.

        What has no effect on it is set to the defaults, so that one run serves all networks.
        """
        if config.model.mode == "heuristic":
            return {}
        names = ("data", "layers", "masks", "truth", "split", "bed", "decide")
        rule = SegmentConfig(
            **{name: getattr(config, name) for name in names},
            model=SegmentModelConfig(mode="heuristic"),
            quantize=QuantizeConfig(variant="none"),
            train=TrainConfig(epochs=0),
        )
        return {"heuristic": rule}

    def levels(self, row: int) -> np.ndarray:
        """Return levels (classes h w) of every pixel of a row's image, by the network or the rule."""
        if self.config.model.mode == "net":
            return super().levels(row)
        return rule_levels(self.pixels[row].pixels, self.config.masks, len(self.classes))

    @classmethod
    def other_marks(cls, config: SegmentConfig, pixels: Pixels, row: int) -> dict[str, np.ndarray]:
        """Draw the rule's mask beside the answer."""
        mask, _ = make(pixels[row].pixels, config.masks)
        return {"heuristic": mask.astype(np.uint8)}

    def export(self, folder: Path, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Write the graphs, or none where the rule answers."""
        if self.config.model.mode == "net":
            pipeline = super().export(folder, rows)
        else:
            pipeline = {"kind": "tiles", "tiles": to_dict(self.config.tiles), "graphs": []}
        return pipeline | {"masks": to_dict(self.config.masks)}


if __name__ == "__main__":
    main(__file__)
