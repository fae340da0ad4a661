"""Which machine made this part? Differentiable patch selection and a transformer over the patches.

    python tasks/fingerprint.py                                    # the synthetic parts, on this machine
    python tasks/fingerprint.py --preset readme --data.root parts/ --workers 8 --gpus

A scorer looks at a small overview of the image and says which few cells of a grid are worth a look
at full resolution; a backbone embeds the patches cut there, and a cross-attention transformer
makes one answer of them. The baseline, judged beside it, looks at random patches on the part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from assay.cli.task import main
from assay.config import without_idle
from assay.data.inputs.augment import AugmentConfig
from assay.data.inputs.patches import PatchConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.split_config import SplitConfig
from assay.data.synthetic.draw_once import folder_of
from assay.data.synthetic.parts import (
    UNSEEN_DESIGNS,
    PartsConfig,
    draw_parts,
    read_zones,
    zone_hits,
)
from assay.metrics.estimate import interval
from assay.metrics.measures import Measure
from assay.metrics.predictions import rows_of
from assay.nn.optim import OptimConfig
from assay.space import Float, Space
from assay.train.patch_network import PatchClassificationConfig, PatchModelConfig
from assay.train.patches import PatchClassification
from assay.train.recipes import recipe_of_files, recipe_of_parts, reference_recipes
from assay.train.task import Task, TaskMetrics
from assay.train.task_config import TaskConfig, TrainConfig

PATTERNS = (
    "{label}/{design}/Device_{device}_Print_{print}_{view}",
    "{label}/{design}/{print}_azimuth_{azimuth}_polar_{polar}",
)


@dataclass(frozen=True, kw_only=True)
class FingerprintConfig(PatchClassificationConfig):
    """Source identification of parts."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=PATTERNS, group=("label", "design", "print"), domains=("design",)
        )
    )
    split: SplitConfig = field(default_factory=lambda: SplitConfig(unseen_domain="design"))
    parts: PartsConfig = field(default_factory=PartsConfig)
    """The synthetic parts, drawn where data.root is not given."""
    _drawn: ClassVar[str] = "parts"


class Fingerprint(PatchClassification):
    """Which machine made a part."""

    Config = FingerprintConfig
    aliases: ClassVar[Mapping[str, str]] = {
        **Task.aliases,
        "model_name": "model.backbone",
        "test_samples": "model.k",
        "sigma": "model.sigma",
        "dropout": "model.dropout",
        "attn_dropout": "model.attn_dropout",
        "contrast_mod": "augment.exposure_p",
        "scale_mod": "augment.resample_p",
        "sensor_noise": "augment.noise_max",
        "clahe_grid": "patches.clahe_grid",
    }

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the synthetic demo (default), its short form for CI, all nine designs alike for sweeps, settings for
        images of one's own (large parts, small files), and the reference's recipes."""
        demo = FingerprintConfig(
            split=SplitConfig(unseen_domain="design", unseen=UNSEEN_DESIGNS),
            patches=PatchConfig(
                image_px=512, overview_px=128, patch_px=48, clahe_clip=0.0, bright=0.3
            ),
            augment=AugmentConfig(hflip=0.5, vflip=0.5),
            model=PatchModelConfig(
                k=4,
                trunk="small",
                backbone="texture_small",
                norm="group",
                head="none",
                num_layers=1,
                num_heads=4,
                embed_dim=64,
                d_inner=128,
                dropout=0.0,
                attn_dropout=0.0,
                label_smoothing=0.0,
                warmup=0.625,
            ),
            train=TrainConfig(epochs=8, batch_size=8),
            optim=OptimConfig(lr=2e-3, schedule="cosine", warmup=0.04, final_factor=0.05),
        )
        smoke = replace(
            demo,
            train=replace(demo.train, epochs=2),
            parts=replace(demo.parts, parts_per_seen=4, parts_per_unseen=1, num_views=1),
        )
        designs = replace(
            demo,
            model=replace(demo.model, warmup_k=8),
            train=replace(demo.train, epochs=20),
            parts=replace(demo.parts, parts_per_seen=6, parts_per_unseen=6, num_views=1),
        )
        recipes = {
            name: FingerprintConfig(**{f.name: getattr(recipe, f.name) for f in fields(recipe)})
            for name, recipe in reference_recipes().items()
        }
        large = replace(
            demo, split=SplitConfig(unseen_domain="design"), **vars(recipe_of_parts(demo))
        )
        small = replace(
            large, data=DataConfig(), split=SplitConfig(), **vars(recipe_of_files(demo))
        )
        embedded = {"demo": demo, "smoke": smoke, "designs": designs}
        return {**embedded, "parts": large, "files": small, **recipes}

    @classmethod
    def manifest(cls, config: FingerprintConfig, storage: Path) -> Manifest:
        """Read the images under data.root, or draw the synthetic parts."""
        data = config.data
        if data.root is None:
            folder = synthetic_folder(config, storage)
            draw_parts(folder, config.parts)
            data = replace(data, root=folder)
        return read_manifest(data, storage / "hashes.sqlite")

    @classmethod
    def baselines(cls, config: FingerprintConfig) -> Mapping[str, FingerprintConfig]:
        """Give random patches on the part, for a run that selects.

        One run serves all ways of selecting: what has no effect on it is set to the defaults.
        """
        if config.model.mode == "random":
            return {}
        drawn = without_idle(replace(config.model, mode="random"))
        return {"random": replace(config, model=drawn)}

    @classmethod
    def space(cls, config: FingerprintConfig) -> Space:
        """Search learning rate and decay, dropout, and what the scorer learns by where there is one."""
        selects: Any = {"model.mode": ("dps",)}
        return {
            **super().space(config),
            "model.dropout": Float(low=0.0, high=0.3),
            "model.scorer_lr": Float(low=0.3, high=3.0, log=True, when=selects),
            "model.sigma": Float(low=0.02, high=0.3, log=True, when=selects),
            "model.guide_temperature": Float(low=0.1, high=1.0, log=True, when=selects),
        }

    @classmethod
    def judge(cls, config: FingerprintConfig, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Judge the evidence; on the synthetic parts also the share of patches on planted signal."""
        judged = super().judge(config, predictions, storage)
        if config.data.root is not None:
            return judged
        zones = read_zones(synthetic_folder(config, storage))
        metrics = {}
        for name, estimates in judged.metrics.items():
            rows = rows_of(predictions, name)
            boxes = [np.array(flat).reshape(-1, 4) for flat in rows["boxes"].to_pylist()]
            pairs = zip(rows["id"].to_pylist(), boxes, strict=True)
            hits = np.array([zone_hits(zones[image], patches).mean() for image, patches in pairs])
            group = np.array(rows["group"].to_pylist())
            metrics[name] = {**estimates, "patches_on_signal": interval(hits, group)}
        on_signal = Measure("Patches on signal", "chosen patches that touch a planted trace")
        measures = {**judged.measures, "patches_on_signal": on_signal}
        return replace(judged, metrics=metrics, measures=measures)


def synthetic_folder(config: FingerprintConfig, storage: Path) -> Path:
    """Say where the synthetic parts of these settings are drawn."""
    return folder_of(storage, "parts", config.parts)


if __name__ == "__main__":
    main(__file__)
