"""Which machine made this part? Differentiable patch selection and a transformer over the patches.

    python tasks/fingerprint.py                                    # the embedded parts, on this machine
    python tasks/fingerprint.py --preset readme --data.root parts/ --workers 8 --gpus

A scorer looks at a small overview of the image and says which few cells of a grid are worth a look
at full resolution; a backbone embeds the patches cut there, and a cross-attention transformer
makes one answer of them. The baseline, judged beside it, looks at random patches on the part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from assay.config import fingerprint, to_dict
from assay.data import augment, synthetic
from assay.data.augment import AugmentConfig
from assay.data.manifest import DataConfig, Manifest, read_manifest
from assay.data.patches import (
    EPS,
    Canvas,
    PatchConfig,
    cell_corners,
    informative_cells,
    overview_seed,
)
from assay.data.pixels import Pixels
from assay.data.split import SplitConfig
from assay.errors import ConfigError
from assay.estimate import Estimate, interval
from assay.main import main
from assay.monitor import Limit
from assay.nn.aggregate import TransformerAggregator
from assay.nn.backbone import create_backbone, create_head
from assay.nn.export import write_graph
from assay.nn.optim import Multiplier, OptimConfig
from assay.nn.scorer import Scorer, Trunk, grid_side
from assay.nn.topk import draw_noise, expected_loss, hard_topk, perturbed_topk, score_function_loss
from assay.task import Batch, Findings, Samples, Task, TaskConfig, TrainConfig

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

    mode: Literal["dps", "random"] = "dps"
    """Patches chosen by the scorer (differentiable patch selection), or at random on the part."""
    k: int = 8
    """Patches per image."""
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
    parts: synthetic.PartsConfig = field(default_factory=synthetic.PartsConfig)
    """The embedded parts, drawn where data.root is not given."""


class Fingerprint(Task):
    """Scorer, selection, backbone, aggregator."""

    Config = FingerprintConfig
    config: FingerprintConfig

    def __init__(self, config: FingerprintConfig, classes: list[str], pixels: Pixels) -> None:
        super().__init__(config, classes, pixels)
        model = config.model
        self.scorer = Scorer(model.trunk, model.norm)
        self.grid = self.scorer.grid(config.patches.overview_px)
        if model.mode == "random":
            self.scorer.requires_grad_(False)
        if not 0 < model.k <= model.warmup_k <= self.grid**2 or model.warmup_k % model.k:
            raise ConfigError(
                f"model.k is {model.k} and model.warmup-k {model.warmup_k}; the grid has {self.grid}x{self.grid} cells: "
                f"warmup-k must be a multiple of k of at most {self.grid**2}."
            )
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

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """The embedded demo (default), its short form for CI, and the reference's three recipes."""
        demo = FingerprintConfig(
            split=SplitConfig(unseen_domain="design", unseen=synthetic.UNSEEN_DESIGNS),
            patches=PatchConfig(
                image_px=512, overview_px=128, patch_px=48, clahe_clip=0.0, bright=0.3
            ),
            augment=AugmentConfig(hflip=0.5, vflip=0.5),
            model=ModelConfig(
                k=4, trunk="small", backbone="texture_small", norm="group", head="none",
                num_layers=1, num_heads=4, embed_dim=64, d_inner=128, dropout=0.0,
                attn_dropout=0.0, label_smoothing=0.0,
            ),
            train=TrainConfig(epochs=7, batch_size=8),
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
        return {"demo": demo, "smoke": smoke, **recipes}

    @classmethod
    def manifest(cls, config: FingerprintConfig, storage: Path) -> Manifest:
        """The images under data.root, or the embedded parts."""
        data = config.data
        if data.root is None:
            folder = embedded_folder(config, storage)
            synthetic.draw_parts(folder, config.parts)
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
    def prepare(cls, config: FingerprintConfig, pixels: Pixels, samples: Samples) -> Batch:
        """Overviews, their statistics, what was drawn for each image, and random cells."""
        grid = grid_side(config.model.trunk, config.patches.overview_px)
        drawn: list[tuple[Any, ...]] = []
        for row, key in zip(samples.rows, samples.keys, strict=True):
            rng = np.random.default_rng(int(key))
            change = augment.IDENTITY
            if samples.train:
                change = augment.draw(config.augment, config.patches.image_px, rng)
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
        """Cross-entropy of the answers made from random (warm-up, baseline) or selected patches."""
        model = self.config.model
        truth = torch.from_numpy(batch["truth"]).to(self.device)
        if model.mode == "random" or progress < model.warmup:
            return self._explore(batch, truth)
        scores = self._scores(batch)
        sigma = self._sigma((progress - model.warmup) / (1 - model.warmup))
        noise = draw_noise(batch["key"].tolist(), model.num_noise, scores.shape[1]).to(self.device)
        if model.estimator == "score_function":
            made = self._select_hard(batch, scores, noise, sigma, truth)
        else:
            made = self._select_mixed(batch, scores, noise, sigma, truth)
        return made | {"sigma": torch.tensor(sigma)}

    def _explore(self, batch: Batch, truth: Tensor) -> dict[str, Tensor]:
        """Random patches: each must answer alone, and sets of k together; the scorer watches."""
        k = self.config.model.k
        cells = torch.from_numpy(batch["random_cells"]).to(self.device)
        features = self._embed(self._cut(batch, batch["random_cells"]))
        sets = features.reshape(-1, k, features.shape[-1])
        logits, _ = self.aggregator(sets)
        together = self._loss(logits, truth.repeat_interleave(len(sets) // len(truth)))
        scores = self._scores(batch) if self.config.model.mode == "dps" else None
        made = {"loss": together.mean() + self._alone(features, cells, scores, truth)}
        return made | {"train_accuracy": _accuracy(logits, truth)}

    def _select_mixed(
        self, batch: Batch, scores: Tensor, noise: Tensor, sigma: float, truth: Tensor
    ) -> dict[str, Tensor]:
        """Perturbed top-k: k mixtures of the cells that some noise sample selected."""
        model = self.config.model
        assert model.estimator != "score_function"
        selection = perturbed_topk(scores, model.k, sigma, noise, model.estimator)
        patches = self._cut(batch, selection.cells.cpu().numpy())
        mixed = torch.einsum("bkm,bmchw->bkchw", selection.weights.to(patches.dtype), patches)
        logits, _ = self.aggregator(self._embed(mixed))
        active = (selection.cells >= 0).sum(1).float().mean()
        made = {
            "loss": self._loss(logits, truth).mean(),
            "active_cells": active,
            "selection_entropy": selection_entropy(scores, model.k),
        }
        return made | {"train_accuracy": _accuracy(logits, truth)}

    def _select_hard(
        self, batch: Batch, scores: Tensor, noise: Tensor, sigma: float, truth: Tensor
    ) -> dict[str, Tensor]:
        """Score function over a few hard draws of k whole patches each."""
        num_draws = noise.shape[1]
        cells = hard_topk(scores.detach()[:, None] + sigma * noise, self.config.model.k)
        features = self._embed(self._cut(batch, cells.flatten(1).cpu().numpy()))
        logits, _ = self.aggregator(features.view(*cells.shape, -1).flatten(0, 1))
        losses = self._loss(logits, truth.repeat_interleave(num_draws)).view(-1, num_draws)
        surrogate = score_function_loss(scores, noise, sigma, cells, losses)
        alone = self._alone(features, cells.flatten(1), scores, truth)
        made = {
            "loss": losses.mean() + surrogate.mean() + alone,
            "selection_entropy": selection_entropy(scores, self.config.model.k),
        }
        return made | {"train_accuracy": _accuracy(logits, truth)}

    def _alone(
        self, features: Tensor, cells: Tensor, scores: Tensor | None, truth: Tensor
    ) -> Tensor:
        """Each patch's own answer, and the guide that lets the scorer learn from it.

        The guide is the expected loss of one patch drawn among those looked at, by the softmax of
        their scores; the losses are held fixed, so it moves scores towards cells that answer well.
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
        return self.scorer(self._normalise(overviews, batch)).flatten(1).float()

    def _normalise(self, pixels: Tensor, batch: Batch) -> Tensor:
        """Per-image normalisation of (b 3 h w) or (b n 3 h w), the last thing done to pixels."""
        shape = (-1, 3, 1, 1) if pixels.ndim == 4 else (-1, 1, 3, 1, 1)
        mean, std = (
            torch.from_numpy(batch[n]).to(self.device).view(shape) for n in ("mean", "std")
        )
        return (pixels.float() / 255 - mean) / (std + EPS)

    def _cut(self, batch: Batch, cells: np.ndarray) -> Tensor:
        """Normalised patches (b n 3 p p) of chosen cells; cell -1 gives zeros."""
        side = self.config.patches.patch_px
        pixels = np.zeros((*cells.shape, side, side, 3), dtype=np.uint8)
        for i, chosen in enumerate(cells):
            own = chosen >= 0
            pixels[i, own] = self._canvas(batch, i).patches(
                cell_corners(chosen[own], self.grid, self.config.patches)
            )
        moved = torch.from_numpy(pixels).to(self.device).permute(0, 1, 4, 2, 3)
        return (
            self._normalise(moved, batch)
            * torch.from_numpy(cells >= 0).to(self.device)[:, :, None, None, None]
        )

    def _canvas(self, batch: Batch, i: int) -> Canvas:
        change = (
            augment.Augment.from_row(batch["augment"][i]) if self.training else augment.IDENTITY
        )
        return Canvas(self.pixels[int(batch["row"][i])], self.config.patches, change)

    def _embed(self, patches: Tensor) -> Tensor:
        features: Tensor = self.project(self.backbone(patches.flatten(0, 1)))
        return features.view(*patches.shape[:2], -1)

    def _classify(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        logits, attn = self.aggregator(self._embed(patches))
        return logits, attn

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Logits; chosen cells, their attention, and their boxes in the image's own pixels."""
        k = self.config.model.k
        if self.config.model.mode == "random":
            cells = torch.from_numpy(np.sort(batch["random_cells"][:, :k], axis=1))
        else:
            cells = hard_topk(self._scores(batch), k)
        chosen = cells.cpu().numpy()
        logits, attn = self._classify(self._cut(batch, chosen))
        corners = [cell_corners(c, self.grid, self.config.patches) for c in chosen]
        boxes = np.stack([self._canvas(batch, i).source_boxes(c) for i, c in enumerate(corners)])
        return {
            "logits": logits,
            "cells": cells,
            "attn": attn,
            "boxes": torch.from_numpy(boxes.astype(np.float32)).flatten(1),
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

    def export(self, folder: Path) -> dict[str, Any]:
        """Graphs `scorer` (overview to scores) and `classify` (patches to logits and attention)."""
        sizes, k = self.config.patches, self.config.model.k
        look = (k, 3, sizes.patch_px, sizes.patch_px)
        names = ["logits", "attn"]
        write_graph(folder / "classify.onnx", self, self._classify, ("patches", look), names)
        graphs = ["classify"]
        if self.config.model.mode == "dps":
            graphs.append("scorer")
            side = (3, sizes.overview_px, sizes.overview_px)
            score = nn.Sequential(self.scorer, nn.Flatten())
            write_graph(folder / "scorer.onnx", self, score, ("overview", side), ["scores"])
        return {
            "kind": "patches",
            "select": self.config.model.mode,
            "k": k,
            "draws": self.config.model.warmup_k,
            "grid": self.grid,
            "patches": to_dict(sizes),
            "graphs": graphs,
        }

    @classmethod
    def judge(cls, config: FingerprintConfig, predictions: pa.Table, storage: Path) -> Findings:
        """On the embedded parts: the share of chosen patches that lie on planted signal, by test set."""
        if config.data.root is not None:
            return Findings()
        zones = synthetic.read_zones(embedded_folder(config, storage))
        found: dict[str, dict[str, Estimate]] = {}
        for name in sorted(set(predictions["split"].to_pylist())):
            rows = [r for r in predictions.to_pylist() if r["split"] == name]
            hits = [
                synthetic.zone_hits(zones[r["id"]], np.array(r["boxes"]).reshape(-1, 4)).mean()
                for r in rows
            ]
            found[name] = {
                "patches_on_signal": interval(np.array(hits), np.array([r["group"] for r in rows]))
            }
        return Findings(metrics=found)


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
