"""Which machine made this part? Differentiable patch selection and a transformer over the patches.

    python tasks/fingerprint.py                                    # the embedded parts, on this machine
    python tasks/fingerprint.py --preset readme --data.root parts/ --workers 8 --gpus

A scorer looks at a small overview of the image and says which few cells of a grid are worth a look
at full resolution; a backbone embeds the patches cut there, and a cross-attention transformer
makes one answer of them. The baseline, judged beside it, looks at random patches on the part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from assay.cli.task import main
from assay.config import fingerprint, to_dict
from assay.data.images.pixels import Pixels
from assay.data.inputs import augment
from assay.data.inputs.augment import AugmentConfig
from assay.data.inputs.cells import (
    informative_cells,
    iterative_cells,
    lattice_cells,
    overview_seed,
    tile_cells,
)
from assay.data.inputs.patches import Canvas, PatchConfig, blank_mask, cell_corners
from assay.data.inputs.photometric import EPS
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.split import SplitConfig
from assay.data.synthetic.parts import (
    UNSEEN_DESIGNS,
    PartsConfig,
    draw_parts,
    read_zones,
    zone_hits,
)
from assay.errors import ConfigError
from assay.metrics.estimate import Estimate, interval
from assay.metrics.measures import Measure
from assay.nn.aggregate import TransformerAggregator
from assay.nn.backbone import create_backbone, create_head
from assay.nn.export import write_graph
from assay.nn.optim import Multiplier, OptimConfig
from assay.nn.scorer import Scorer, Trunk, grid_side
from assay.nn.topk import (
    draw_noise,
    expected_loss,
    hard_topk,
    mix,
    perturbed_topk,
    score_function_loss,
)
from assay.space import Float, Space
from assay.train.monitor import Limit
from assay.train.task import Batch, BatchRows, Task, TaskConfig, TaskMetrics, TrainConfig

PATTERNS = (
    "{label}/{design}/Device_{device}_Print_{print}_{view}",
    "{label}/{design}/{print}_azimuth_{azimuth}_polar_{polar}",
)

SELECTION = ("estimator", "num_noise", "sigma", "sigma_final", "warmup", "guide", "guide_temperature", "scorer_lr")  # fmt: skip
"""Settings of the scorer's learning, without effect where patches are drawn at random."""

MIN_ENTROPY = 0.02
"""Selection entropy (0 to 1) below which a scorer has collapsed; a sound one kept above .8."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What looks where, and what makes an answer of it."""

    mode: Literal["dps", "ips", "random", "grid", "all"] = "dps"
    """Patches chosen by the scorer (differentiable patch selection), by the aggregator's own attention (iterative patch selection), at random on the part, evenly spread, or all that tile the canvas."""
    k: int = 8
    """Patches per image (all: as many as tile the canvas)."""
    spacing: float = 0.0
    """Least distance of two chosen patches along x or y (patch sides; dps only); 0: they may repeat each other."""
    ips_chunk: int = 32
    """Patches that ips looks at together."""
    trunk: Trunk = "resnet18"
    """Scorer: resnet18 up to layer2 (grid 1/16 of the overview), or small (grid 1/4)."""
    estimator: Literal["score_function", "masked_loo", "plain", "diagonal"] = "score_function"
    """Gradient of the selection: score function over hard draws, or perturbed top-k in three forms."""
    num_noise: int = 4
    """Noise samples per image (score_function: hard draws, each k patches; perturbed top-k: 500)."""
    sigma: float = 0.1
    """Standard deviation of the noise on scores in [0, 1], at the end of the warm-up."""
    sigma_final: float = 0.005
    """Standard deviation of the noise at the end of the run; falls by a half cosine."""
    warmup: float = 0.5
    """Share of the run that learns from random patches before the scorer decides (1)."""
    warmup_k: int = 16
    """Random patches per image in the warm-up and for the baseline; a multiple of k."""
    alone: float = 1.0
    """Weight of the loss of each patch's own answer; 0: patches answer only together."""
    guide: float = 1.0
    """Weight, in that, of the guide: scores rise where a patch alone answers well; 0: none."""
    guide_temperature: float = 0.3
    """Temperature of the guide's softmax over scores (units of the scores)."""
    backbone: str = "efficientnetv2_rw_s"
    """Any timm model, or texture_small (a tiny net for textures, trained from scratch)."""
    weights: str = "none"
    """Backbone weights: none, hub (fetched by timm), or a .safetensors file."""
    norm: Literal["group", "frozen", "sync", "batch"] = "frozen"
    """Batch normalisation: replaced by group norm, frozen, synced over GPUs, or per worker's batch."""
    trainable_blocks: int = -1
    """Blocks of the backbone that are trained, from the end; -1: all of it."""
    head: Literal["none", "linear", "mlp"] = "linear"
    """Projection from the backbone's features to the transformer's width, before the transformer's own."""
    embed_dim: int = 1024
    """Width of the transformer."""
    num_layers: int = 2
    """Cross-attention layers."""
    num_heads: int = 16
    """Attention heads."""
    d_inner: int = 4096
    """Hidden width of the feed-forward layers."""
    dropout: float = 0.1
    """Dropout after attention and feed-forward layers (probability)."""
    attn_dropout: float = 0.1
    """Dropout of attention weights (probability)."""
    label_smoothing: float = 0.1
    """Probability mass spread over the other classes."""
    scorer_lr: float = 1.0
    """Learning rate of the scorer as a multiple of optim.lr."""
    backbone_lr: float = 1.0
    """Learning rate of the backbone as a multiple of optim.lr."""


@dataclass(frozen=True, kw_only=True)
class FingerprintConfig(TaskConfig):
    """Source identification of parts."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            patterns=PATTERNS, group=("label", "design", "print"), domains=("design",)
        )
    )
    split: SplitConfig = field(default_factory=lambda: SplitConfig(unseen_domain="design"))
    patches: PatchConfig = field(default_factory=PatchConfig)
    augment: AugmentConfig = field(default_factory=lambda: augment.PRESETS["readme"])
    model: ModelConfig = field(default_factory=ModelConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)
    """The embedded parts, drawn where data.root is not given."""


class Fingerprint(Task):
    """Scorer, selection, backbone, aggregator."""

    Config = FingerprintConfig
    config: FingerprintConfig
    aliases: ClassVar[Mapping[str, str]] = {
        **Task.aliases, "model_name": "model.backbone", "test_samples": "model.k", "sigma": "model.sigma",
        "dropout": "model.dropout", "attn_dropout": "model.attn_dropout", "contrast_mod": "augment.exposure_p",
        "scale_mod": "augment.scale_p", "sensor_noise": "augment.noise_max", "clahe_grid": "patches.clahe_grid",
    }  # fmt: skip

    def __init__(self, config: FingerprintConfig, classes: list[str], pixels: Pixels) -> None:
        super().__init__(config, classes, pixels)
        model = config.model
        self.scorer = Scorer(model.trunk, model.norm)
        self.grid = self.scorer.grid(config.patches.overview_px)
        if model.mode != "dps":
            self.scorer.requires_grad_(False)
        self.tiles = tile_cells(self.grid, config.patches)
        self.k = len(self.tiles) if model.mode == "all" else model.k
        self.apart = math.ceil(model.spacing * config.patches.patch_px / self.stride)
        self._check(model)
        hub, none = model.weights == "hub", model.weights in ("hub", "none")
        self.backbone = create_backbone(
            model.backbone,
            pretrained=hub,
            weights=None if none else Path(model.weights),
            norm=model.norm,
            trainable_blocks=None if model.trainable_blocks < 0 else model.trainable_blocks,
            img_size=config.patches.patch_px,
        )
        width: Any = self.backbone.num_features
        self.project: nn.Module = nn.Identity()
        if model.head != "none":
            self.project, width = create_head(model.head, width, model.embed_dim), model.embed_dim
        self.aggregator = TransformerAggregator(
            width, len(classes), num_layers=model.num_layers, num_heads=model.num_heads,
            embed_dim=model.embed_dim, d_inner=model.d_inner, dropout=model.dropout,
            attn_dropout=model.attn_dropout,
        )  # fmt: skip

    @property
    def stride(self) -> int:
        """Canvas pixels from one cell to the next."""
        return self.config.patches.image_px // self.grid

    def _check(self, model: ModelConfig) -> None:
        num = len(self.tiles) if model.mode == "ips" else self.grid**2
        if not 0 < model.k <= num:
            raise ConfigError(
                f"model.k is {model.k} and the {self.grid}x{self.grid} grid has {num} cells to choose from; give 1 to {num}."
            )
        if not model.k <= model.warmup_k <= self.grid**2 or model.warmup_k % model.k:
            raise ConfigError(
                f"model.k is {model.k} and model.warmup-k {model.warmup_k}; the grid has {self.grid}x{self.grid} cells: "
                f"warmup-k must be a multiple of k of at most {self.grid**2}."
            )
        if model.spacing < 0 or model.ips_chunk < 1:
            raise ConfigError(
                f"model.spacing is {model.spacing} and model.ips-chunk {model.ips_chunk}; give a spacing from 0 and a chunk from 1."
            )

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """The embedded demo (default), its short form for CI, all nine designs alike for sweeps, and the
        reference's three recipes."""
        demo = FingerprintConfig(
            split=SplitConfig(unseen_domain="design", unseen=UNSEEN_DESIGNS),
            patches=PatchConfig(
                image_px=512, overview_px=128, patch_px=48, clahe_clip=0.0, bright=0.3
            ),
            augment=AugmentConfig(hflip=0.5, vflip=0.5),
            model=ModelConfig(
                k=4, trunk="small", backbone="texture_small", norm="group", head="none",
                num_layers=1, num_heads=4, embed_dim=64, d_inner=128, dropout=0.0,
                attn_dropout=0.0, label_smoothing=0.0, warmup=0.625,
            ),
            train=TrainConfig(epochs=8, batch_size=8),
            optim=OptimConfig(lr=2e-3, schedule="cosine", warmup=0.04, final_factor=0.05),
        )  # fmt: skip
        smoke = replace(
            demo,
            train=replace(demo.train, epochs=2),
            parts=replace(demo.parts, parts_per_seen=4, parts_per_unseen=1, num_views=1),
        )
        reference = ModelConfig(
            estimator="masked_loo", num_noise=500, sigma=0.01, sigma_final=1e-5, warmup=0.1,
            warmup_k=8, alone=0.0,
        )  # fmt: skip
        recipes = {
            name: FingerprintConfig(augment=augment.PRESETS[name], model=reference)
            for name in ("readme", "main", "sweep")
        }
        designs = replace(
            demo,
            model=replace(demo.model, warmup_k=8),
            train=replace(demo.train, epochs=20),
            parts=replace(demo.parts, parts_per_seen=6, parts_per_unseen=6, num_views=1),
        )
        return {"demo": demo, "smoke": smoke, "designs": designs, **recipes}

    @classmethod
    def manifest(cls, config: FingerprintConfig, storage: Path) -> Manifest:
        """The images under data.root, or the embedded parts."""
        data = config.data
        if data.root is None:
            folder = embedded_folder(config, storage)
            draw_parts(folder, config.parts)
            data = replace(data, root=folder)
        return read_manifest(data, storage / "hashes.sqlite")

    @classmethod
    def baselines(cls, config: FingerprintConfig) -> Mapping[str, FingerprintConfig]:
        """Random patches on the part, for a run that selects.

        One run serves all ways of selecting: what has no effect on it is set to the defaults.
        """
        if config.model.mode == "random":
            return {}
        inert = {name: getattr(ModelConfig(), name) for name in SELECTION}
        return {"random": replace(config, model=replace(config.model, mode="random", **inert))}

    @classmethod
    def space(cls, config: FingerprintConfig) -> Space:
        """Learning rate and decay, dropout, and what the scorer learns by where there is one."""
        chosen: Any = {"model.mode": ("dps",)}
        return {
            **super().space(config),
            "model.dropout": Float(low=0.0, high=0.3),
            "model.scorer_lr": Float(low=0.3, high=3.0, log=True, when=chosen),
            "model.sigma": Float(low=0.02, high=0.3, log=True, when=chosen),
            "model.guide_temperature": Float(low=0.1, high=1.0, log=True, when=chosen),
        }

    @classmethod
    def prepare(cls, config: FingerprintConfig, pixels: Pixels, samples: BatchRows) -> Batch:
        """Overviews, their statistics, what was drawn for each image, and random cells."""
        grid = grid_side(config.model.trunk, config.patches.overview_px)
        drawn: list[tuple[Any, ...]] = []
        for row, key in zip(samples.rows, samples.keys, strict=True):
            rng = np.random.default_rng(int(key))
            change = augment.IDENTITY
            if samples.train:
                change = augment.draw_augment(config.augment, config.patches.image_px, rng)
            overview, mean, std = Canvas(pixels[int(row)], config.patches, change).overview()
            if not samples.train:  # what is judged depends on no order, batch or seed
                rng = np.random.default_rng(overview_seed(overview))
            cells = informative_cells(overview, grid, config.patches, config.model.warmup_k, rng)
            cells = rng.permutation(cells)
            statistics = (mean.astype(np.float32), std.astype(np.float32))
            drawn.append((overview, *statistics, change.to_row(), cells))
        names = ("overview", "mean", "std", "augment", "random_cells")
        columns = {
            name: np.stack(values)
            for name, values in zip(names, zip(*drawn, strict=True), strict=True)
        }
        return columns | {
            "row": samples.rows,
            "key": samples.keys.astype(np.int64) & 0x7FFFFFFFFFFF,
            "truth": samples.truth.astype(np.int64),
        }

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Cross-entropy of the answers made from given (warm-up, baselines) or selected patches."""
        model = self.config.model
        truth = torch.from_numpy(batch["truth"]).to(self.device)
        if model.mode in ("ips", "grid", "all"):
            return self._look(batch, self._choose(batch), truth)
        if model.mode == "random" or progress < model.warmup:
            return self._look(batch, batch["random_cells"], truth)
        sigma = self._sigma((progress - model.warmup) / (1 - model.warmup))
        select = self._select_hard if model.estimator == "score_function" else self._select_mixed
        return select(batch, self._scores(batch), sigma, truth) | {"sigma": torch.tensor(sigma)}

    def _look(self, batch: Batch, cells: np.ndarray, truth: Tensor) -> dict[str, Tensor]:
        """Given patches: each must answer alone, and sets of k together; the scorer watches."""
        features = self._embed(self._cut(batch, cells))
        sets = features.reshape(-1, self.k, features.shape[-1])
        logits, _ = self.aggregator(sets)
        together = self._loss(logits, truth.repeat_interleave(len(sets) // len(truth)))
        scores = self._scores(batch) if self.config.model.mode == "dps" else None
        alone = self._alone(features, torch.from_numpy(cells).to(self.device), scores, truth)
        return {"loss": together.mean() + alone, "train_accuracy": _accuracy(logits, truth)}

    def _select_mixed(
        self, batch: Batch, scores: Tensor, sigma: float, truth: Tensor
    ) -> dict[str, Tensor]:
        """Perturbed top-k: k mixtures of the cells that some noise sample selected."""
        model, side = self.config.model, self.config.patches.patch_px
        assert model.estimator != "score_function"
        selection = perturbed_topk(
            scores,
            self.k,
            sigma,
            batch["key"].tolist(),
            model.num_noise,
            model.estimator,
            self.apart,
        )
        cells = selection.cells.cpu().numpy()
        mixed = mix(
            selection.weights, lambda part: self._cut(batch, cells[:, part]), (3, side, side)
        )
        logits, _ = self.aggregator(self._embed(mixed))
        made = {
            "loss": self._loss(logits, truth).mean(),
            "active_cells": (selection.cells >= 0).sum(1).float().mean(),
            "selection_entropy": selection_entropy(scores, self.k),
        }
        return made | {"train_accuracy": _accuracy(logits, truth)}

    def _select_hard(
        self, batch: Batch, scores: Tensor, sigma: float, truth: Tensor
    ) -> dict[str, Tensor]:
        """Score function over a few hard draws of k whole patches each."""
        num_draws = self.config.model.num_noise
        noise = draw_noise(batch["key"].tolist(), num_draws, scores.shape[1]).to(self.device)
        cells = hard_topk(scores.detach()[:, None] + sigma * noise, self.k, self.apart)
        features = self._embed(self._cut(batch, cells.flatten(1).cpu().numpy()))
        logits, _ = self.aggregator(features.view(*cells.shape, -1).flatten(0, 1))
        losses = self._loss(logits, truth.repeat_interleave(num_draws)).view(-1, num_draws)
        surrogate = score_function_loss(scores, noise, sigma, cells, losses)
        alone = self._alone(features, cells.flatten(1), scores, truth)
        made = {
            "loss": losses.mean() + surrogate.mean() + alone,
            "selection_entropy": selection_entropy(scores, self.k),
        }
        return made | {"train_accuracy": _accuracy(logits, truth)}

    def _alone(
        self, features: Tensor, cells: Tensor, scores: Tensor | None, truth: Tensor
    ) -> Tensor:
        """Each patch's own answer, and the guide that lets the scorer learn from it.

        The guide is the expected loss of one patch drawn among those looked at, by the softmax of
        their scores: it moves scores towards cells that answer well, and lets those teach most.
        """
        model = self.config.model
        if not model.alone:
            return features.new_zeros(())
        logits, _ = self.aggregator(features.reshape(-1, 1, features.shape[-1]))
        losses = self._loss(logits, truth.repeat_interleave(cells.shape[1])).view(cells.shape)
        total = losses.mean()
        if scores is not None and model.guide:
            guide = expected_loss(scores, cells, losses, model.guide_temperature)
            total = total + model.guide * guide.mean()
        return model.alone * total

    def _loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        smoothing = self.config.model.label_smoothing
        return nn.functional.cross_entropy(
            logits.float(), truth, reduction="none", label_smoothing=smoothing
        )

    def _sigma(self, progress: float) -> float:
        model = self.config.model
        share = 0.5 * (1 + float(np.cos(np.pi * progress)))
        return model.sigma * share + model.sigma_final * (1 - share)

    def _scores(self, batch: Batch) -> Tensor:
        overviews = torch.from_numpy(batch["overview"]).to(self.device).permute(0, 3, 1, 2)
        ratio = self.config.patches.overview_px / self.config.patches.image_px
        shown = self._show(overviews[:, None], batch, np.zeros((len(overviews), 1, 2)), ratio)
        scores: Tensor = self.scorer(shown[:, 0]).flatten(1).float()
        return scores

    def _cut(self, batch: Batch, cells: np.ndarray) -> Tensor:
        """Normalised patches (b n 3 p p) of chosen cells; cell -1 gives zeros."""
        corners = cell_corners(cells.ravel(), self.grid, self.config.patches)
        corners = corners.reshape(*cells.shape, 2)
        canvases = [self._canvas(batch, i) for i in range(len(cells))]
        pixels = self.device_cache.cut(batch["row"], canvases, corners, cells >= 0, self.device)
        moved = pixels.permute(0, 1, 4, 2, 3)
        is_cell = torch.from_numpy(cells >= 0).to(self.device)[:, :, None, None, None]
        return self._show(moved, batch, corners, 1.0) * is_cell

    def _show(self, pixels: Tensor, batch: Batch, corners: np.ndarray, ratio: float) -> Tensor:
        """Per-image normalisation of (b n 3 h w), the last thing done to pixels; blanks are 0 then.

        Args:
            pixels: What is looked at.
            batch: With the cells to blank of each image, if any.
            corners: Canvas pixel where each begins (b n 2).
            ratio: Its pixels per canvas pixel.
        """
        shape = (-1, 1, 3, 1, 1)
        mean, std = (
            torch.from_numpy(batch[n]).to(self.device).view(shape) for n in ("mean", "std")
        )
        shown = torch.addcmul(-mean / (std + EPS), pixels.float(), 1 / (255 * (std + EPS)))
        if "blank" not in batch:
            return shown
        sizes, blank = self.config.patches, batch["blank"]
        boxes = cell_corners(blank.ravel(), self.grid, sizes).reshape(len(blank), 1, -1, 2)
        mask = blank_mask(boxes - corners[:, :, None], sizes.patch_px, ratio, pixels.shape[-1])
        return shown * torch.from_numpy(~mask).to(self.device)[:, :, None]

    def _canvas(self, batch: Batch, i: int) -> Canvas:
        change = (
            augment.Augment.from_row(batch["augment"][i]) if self.training else augment.IDENTITY
        )
        return Canvas(self.pixels[int(batch["row"][i])], self.config.patches, change)

    def _embed(self, patches: Tensor) -> Tensor:
        features: Tensor = self.project(self.backbone(patches.flatten(0, 1)))
        return features.view(*patches.shape[:2], -1)

    def _classify(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedding, attn = self.aggregator.pool(self._embed(patches))
        return self.aggregator.head(embedding), attn, embedding

    def _choose(self, batch: Batch) -> np.ndarray:
        """The cells (b k) to look at, in ascending order; no gradient."""
        mode, num = self.config.model.mode, len(batch["row"])
        if mode == "random":
            return np.sort(batch["random_cells"][:, : self.k], axis=1)
        if mode == "ips":
            return self._iterate(batch)
        if mode != "dps":
            fixed = self.tiles if mode == "all" else lattice_cells(self.grid, self.k)
            return np.tile(fixed, (num, 1))
        chosen: np.ndarray = hard_topk(self._scores(batch), self.k, self.apart).cpu().numpy()
        return chosen

    def _iterate(self, batch: Batch) -> np.ndarray:
        """Iterative patch selection by the aggregator as it judges."""

        def embed(cells: np.ndarray) -> np.ndarray:
            features: np.ndarray = self._embed(self._cut(batch, cells)).float().cpu().numpy()
            return features

        def attend(features: np.ndarray) -> np.ndarray:
            attn: np.ndarray = (
                self._attend(torch.from_numpy(features).to(self.device)).cpu().numpy()
            )
            return attn

        parts = (self.backbone, self.project, self.aggregator)
        modes = [part.training for part in parts]
        for part in parts:
            part.eval()
        with torch.no_grad():
            chunk, num = self.config.model.ips_chunk, len(batch["row"])
            cells = iterative_cells(self.tiles, num, self.k, chunk, embed, attend)
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)
        return cells

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Logits; chosen cells, their attention, and their boxes in the image's own pixels."""
        chosen = self._choose(batch)
        logits, attn, _ = self._classify(self._cut(batch, chosen))
        corners = [cell_corners(c, self.grid, self.config.patches) for c in chosen]
        boxes = np.stack([self._canvas(batch, i).source_boxes(c) for i, c in enumerate(corners)])
        return {
            "logits": logits,
            "cells": torch.from_numpy(chosen),
            "attn": attn,
            "boxes": torch.from_numpy(boxes.astype(np.float32)).flatten(1),
        }

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Deletion test: logits where the chosen patches are blank, and where as many random ones are.

        The image is then chosen from and judged anew, so evidence elsewhere can still be found.
        Nothing where the choice is random already or as large as the image.
        """
        if self.config.model.mode in ("random", "all"):
            return {}
        blanks = {"chosen": self._choose(batch), "random": batch["random_cells"][:, : self.k]}
        return {
            f"logits_without_{name}": self.predict({**batch, "blank": cells})["logits"]
            for name, cells in blanks.items()
        }

    def param_groups(self, progress: float) -> Mapping[str, Multiplier]:
        """The scorer and the backbone at their own rates."""
        model = self.config.model
        return {
            "scorer.": Multiplier(lr=model.scorer_lr),
            "backbone.": Multiplier(lr=model.backbone_lr),
        }

    def limits(self) -> Sequence[Limit]:
        """A scorer that looks at the same cells of every image has learnt a place, not a pattern."""
        why = "every image is looked at in the same cells: raise model.sigma or model.warmup, unless all parts lie alike in one jig"
        return [Limit("selection_entropy", low=MIN_ENTROPY, for_updates=50, then="warn", why=why)]

    def export(self, folder: Path, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Graphs `classify` (patches to logits, attention, embedding) and those that choose the patches.

        dps: `scorer` (overview to scores). ips: `embed` (patches to features) and `attend`
        (features to attention).
        """
        sizes, model = self.config.patches, self.config.model
        look = (3, sizes.patch_px, sizes.patch_px)
        names = ["logits", "attn", "embedding"]
        write_graph(
            folder / "classify.onnx", self, self._classify, ("patches", (self.k, *look)), names
        )
        graphs = ["classify"]
        if model.mode == "dps":
            graphs.append("scorer")
            side = (3, sizes.overview_px, sizes.overview_px)
            score = nn.Sequential(self.scorer, nn.Flatten())
            write_graph(folder / "scorer.onnx", self, score, ("overview", side), ["scores"])
        if model.mode == "ips":
            graphs += ["embed", "attend"]
            embed = nn.Sequential(self.backbone, self.project)
            write_graph(folder / "embed.onnx", self, embed, ("patches", look), ["features"])
            width = self.aggregator.project.in_features
            attend = ("features", (None, width))
            write_graph(folder / "attend.onnx", self, self._attend, attend, ["attn"])
        cells = {"all": self.tiles, "grid": lattice_cells(self.grid, self.k), "ips": self.tiles}
        return {
            "kind": "patches",
            "select": model.mode,
            "k": self.k,
            "draws": model.warmup_k,
            "apart": self.apart,
            "chunk": model.ips_chunk,
            "cells": cells[model.mode].tolist() if model.mode in cells else [],
            "grid": self.grid,
            "patches": to_dict(sizes),
            "graphs": graphs,
        }

    def _attend(self, features: Tensor) -> Tensor:
        attn: Tensor = self.aggregator(features)[1]
        return attn

    @classmethod
    def judge(cls, config: FingerprintConfig, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """The deletion test; on the embedded parts also the share of patches on planted signal."""
        found: dict[str, dict[str, Estimate]] = {}
        zones = None
        if config.data.root is None:
            zones = read_zones(embedded_folder(config, storage))
        for name in sorted(set(predictions["split"].to_pylist())):
            own = predictions.filter(pc.field("split") == name)
            group = np.array(own["group"].to_pylist())
            found[name] = _deletion(own, group)
            if zones is not None:
                boxes = [np.array(b).reshape(-1, 4) for b in own["boxes"].to_pylist()]
                pairs = zip(own["id"].to_pylist(), boxes, strict=True)
                hits = [zone_hits(zones[i], b).mean() for i, b in pairs]
                found[name]["patches_on_signal"] = interval(np.array(hits), group)
        return TaskMetrics(metrics=found, measures=MEASURES)


MEASURES = {
    "accuracy_without_chosen": Measure("Without chosen patches", "accuracy where they are blank"),
    "accuracy_without_random": Measure(
        "Without random patches", "accuracy where as many are blank"
    ),
    "evidence": Measure(
        "Evidence", "accuracy that blanking chosen patches costs beyond random ones"
    ),
    "patches_on_signal": Measure("Patches on signal", "chosen patches that touch a planted trace"),
}


def _deletion(predictions: pa.Table, group: np.ndarray) -> dict[str, Estimate]:
    """Accuracy with the chosen patches blank, with random ones blank, and what more the first costs."""
    if "logits_without_chosen" not in predictions.column_names:
        return {}
    truth = predictions["truth"].to_numpy()
    right = {
        name: (np.array(predictions[f"logits_without_{name}"].to_pylist()).argmax(1) == truth) * 1.0
        for name in ("chosen", "random")
    }
    found = {f"accuracy_without_{name}": interval(each, group) for name, each in right.items()}
    return found | {"evidence": interval(right["random"] - right["chosen"], group, lowest=-1.0)}


def selection_entropy(scores: Tensor, k: int) -> Tensor:
    """Entropy of which cells a batch selects, without noise: 0 where all images have the same k, 1 where no two share one.

    1 for a single image, of which nothing can be said.
    """
    counts = torch.bincount(hard_topk(scores.detach(), k).flatten()).float()
    most = min(scores.shape[1], k * len(scores))
    if most <= k:
        return torch.ones(())
    share = counts / counts.sum()
    return (-torch.xlogy(share, share).sum() - np.log(k)) / (np.log(most) - np.log(k))


def _accuracy(logits: Tensor, truth: Tensor) -> Tensor:
    """Share of right answers; several answers to an image stand next to each other."""
    return (logits.argmax(1) == truth.repeat_interleave(len(logits) // len(truth))).float().mean()


def embedded_folder(config: FingerprintConfig, storage: Path) -> Path:
    """Where the embedded parts of these settings are drawn."""
    return storage / "embedded" / f"parts-{fingerprint(asdict(config.parts))}"


if __name__ == "__main__":
    main(__file__)
