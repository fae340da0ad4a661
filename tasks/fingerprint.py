"""Which machine made this part? Differentiable patch selection and a transformer over the patches.

    python tasks/fingerprint.py                                    # the synthetic parts, on this machine
    python tasks/fingerprint.py --preset readme --data.root parts/ --workers 8 --gpus

A scorer looks at a small overview of the image and says which few cells of a grid are worth a look
at full resolution; a backbone embeds the patches cut there, and a cross-attention transformer
makes one answer of them. The baseline, judged beside it, looks at random patches on the part.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from assay.cli.task import main
from assay.config import fingerprint
from assay.data.inputs.augment import AugmentConfig
from assay.data.inputs.patches import PatchConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.split import SplitConfig
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
from assay.nn.selection import LEARNING
from assay.space import Float, Space
from assay.train.patches import PatchClassification, PatchClassificationConfig, PatchModelConfig
from assay.train.task import Task, TaskConfig, TaskMetrics, TrainConfig

PATTERNS = (
    "{label}/{design}/Device_{device}_Print_{print}_{view}",
    "{label}/{design}/{print}_azimuth_{azimuth}_polar_{polar}",
)
AUGMENT = {
    "readme": AugmentConfig(
        hflip=0.5,
        vflip=0.5,
        translate=0.25,
        rotation_deg=180.0,
        rotation_p=0.5,
        exposure_p=0.3,
        brightness_low=0.75,
        brightness_high=1.25,
        contrast_low=0.75,
        contrast_high=1.25,
        gamma_low=0.5,
        gamma_high=2.0,
        resample_p=0.1,
        resample_low=0.75,
        resample_high=1.25,
        noise_p=0.5,
    ),
    "main": AugmentConfig(
        hflip=0.5,
        vflip=0.5,
        rotation_deg=5.0,
        rotation_p=1.0,
        affine_translate=0.05,
        scale_low=0.5,
        scale_high=1.5,
        scale_p=1.0,
        exposure_p=1.0,
        brightness_low=0.7,
        brightness_high=1.3,
        contrast_low=0.7,
        contrast_high=1.3,
        saturation_low=0.7,
        saturation_high=1.3,
        noise_p=0.25,
        translate=0.1,
    ),
    "sweep": AugmentConfig(hflip=0.5, vflip=0.5, translate=0.25),
}
"""The three pipelines of the source-identification reference: as its README states them, as its
main script and as its sweep script run them. CLAHE, part of the input contract and not of the
augmentation, went with them at clip limit 3 and a grid of 64, 64 and 128 tiles a side. Their noise
strength is a hyperparameter with default 0: set `noise_max` to have any."""


@dataclass(frozen=True, kw_only=True)
class FingerprintConfig(PatchClassificationConfig):
    """Source identification of parts."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=PATTERNS, group=("label", "design", "print"), domains=("design",)
        )
    )
    split: SplitConfig = field(default_factory=lambda: SplitConfig(unseen_domain="design"))
    augment: AugmentConfig = field(default_factory=lambda: AUGMENT["readme"])
    parts: PartsConfig = field(default_factory=PartsConfig)
    """The synthetic parts, drawn where data.root is not given."""


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
        "scale_mod": "augment.scale_p",
        "sensor_noise": "augment.noise_max",
        "clahe_grid": "patches.clahe_grid",
    }

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Give the synthetic demo (default), its short form for CI, all nine designs alike for sweeps, and
        the reference's three recipes."""
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
        reference = PatchModelConfig(
            estimator="masked_loo",
            num_noise=500,
            sigma=0.01,
            sigma_final=1e-5,
            warmup=0.1,
            warmup_k=8,
            alone=0.0,
        )
        recipes = {
            name: FingerprintConfig(augment=change, model=reference)
            for name, change in AUGMENT.items()
        }
        return {"demo": demo, "smoke": smoke, "designs": designs, **recipes}

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
        inert: Any = {name: getattr(PatchModelConfig(), name) for name in LEARNING}
        return {"random": replace(config, model=replace(config.model, mode="random", **inert))}

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
    return storage / "embedded" / f"parts-{fingerprint(asdict(config.parts))}"


if __name__ == "__main__":
    main(__file__)
