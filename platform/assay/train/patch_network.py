"""What looks at a few patches of an image, at full resolution, and answers with a class.

A scorer looks at a small overview and says which cells of a grid are worth a look; a backbone embeds
the patches cut there; an aggregator makes one answer of them. How it learns is in `train.patches`.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor, nn

from assay.config import Share
from assay.data.dataset import Dataset
from assay.data.inputs import augment
from assay.data.inputs.augment import AugmentConfig
from assay.data.inputs.cells import (
    informative_cells,
    iterative_cells,
    lattice_cells,
    overview_seed,
    tile_cells,
)
from assay.data.inputs.normalise import EPS
from assay.data.inputs.patches import Canvas, PatchConfig, blank_mask, cell_corners
from assay.errors import ConfigError
from assay.nn.aggregate import AggregatorConfig
from assay.nn.backbone import BackboneConfig, create_head, doubt_groups, timm_name
from assay.nn.scorer import Scorer, grid_side
from assay.nn.selection import SelectionConfig
from assay.nn.topk import (
    hard_topk,
)
from assay.nn.weights import find_weights
from assay.train.classification import Classification, batch_rows
from assay.train.cutting import Begun, Cut, PatchCutter
from assay.train.task import Batch, BatchRows
from assay.train.task_config import TaskConfig, doubt_constants


@dataclass(frozen=True, kw_only=True)
class PatchModelConfig(SelectionConfig, BackboneConfig, AggregatorConfig, section="model"):
    """What looks where, and what makes an answer of it."""

    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Probability mass spread over the other classes."""
    backbone_lr: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Learning rate of the backbone as a multiple of optim.lr."""
    aggregator_lr: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Learning rate of what joins the patches (without the projection before it) as a multiple of optim.lr."""
    backbone_frozen: Share = 0.0
    """Share of the run in which a backbone with weights is frozen, and what joins its features learns alone: linear probing, then fine-tuning (Kumar et al. 2022)."""

    def __post_init__(self) -> None:
        """Refuse positions where patches do not always come by k, and one draw where draws are compared."""
        super().__post_init__()
        compares = self.estimator in ("score_function", "masked_loo")
        if self.num_noise == 1 and compares and "num_noise" not in self.idle():
            raise ConfigError(
                f"--model.num-noise is 1, and --model.estimator {self.estimator} compares each draw with the others; give 2 or more."
            )
        if self.positions and (self.alone or self.mode == "ips"):
            raise ConfigError(
                f"model.positions numbers the k patches of an image, and with model.alone {self.alone:g} and model.mode {self.mode} other numbers of patches are asked; "
                "set model.alone 0 and another mode than ips, or leave positions out."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect, of all that this joins."""
        names = SelectionConfig.idle(self) | BackboneConfig.idle(self)
        if self.trainable_blocks == 0:
            why = "model.trainable-blocks is 0"
            names |= dict.fromkeys(("backbone_lr", "backbone_frozen"), why)
        elif self.weights == "none":
            names["backbone_frozen"] = "model.weights is none"
        elif self.backbone_frozen == 1:
            names["backbone_lr"] = "model.backbone-frozen is 1"
        return names

    def freezes_backbone(self, progress: float) -> bool:
        """Tell whether the backbone is frozen at this share (0 to 1) of the run."""
        return progress < self.backbone_frozen and self.weights != "none"


@dataclass(frozen=True, kw_only=True)
class PatchClassificationConfig(TaskConfig):
    """What every classification by patches holds; a task adds its own fields."""

    patches: PatchConfig = field(default_factory=PatchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: PatchModelConfig = field(default_factory=PatchModelConfig)

    def doubts(self) -> list[str]:
        """Say so where weights were trained on other values than they are shown, or by another norm."""
        name, model = timm_name(self.model.backbone), self.model
        constants = doubt_constants(name, model.weights, self.patches)
        return [*constants, *doubt_groups(name, model.weights, model.norm)]


class PatchNetwork(Classification):
    """Scorer, selection, backbone, aggregator."""

    Config: ClassVar[type[TaskConfig]] = PatchClassificationConfig

    def __init__(self, config: PatchClassificationConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        model = config.model
        self.grid = grid_side(model.trunk, config.patches.overview_px)
        self.cutter = PatchCutter()
        self.backbone_rests = False
        self._begun: deque[tuple[Batch, np.ndarray, Begun]] = deque(maxlen=2)
        """Cuts of this batch and the next."""
        self.scorer: nn.Module = nn.Identity()
        if model.mode == "dps":
            self.scorer = Scorer(model.trunk, model.norm, model.scorer_weights)
        self.tiles = tile_cells(self.grid, config.patches)
        self.k = len(self.tiles) if model.mode == "all" else model.k
        stride = config.patches.image_px // self.grid  # canvas pixels from one cell to the next
        self.apart = math.ceil(model.spacing * config.patches.patch_px / stride)
        self._check(model)
        self.backbone, width = model.build(config.patches.patch_px)
        self.project: nn.Module = nn.Identity()
        if model.head != "none":
            self.project, width = create_head(model, width, model.embed_dim), model.embed_dim
        self.aggregator = model.aggregator(width, len(self.classes), self.k)

    def _check(self, model: PatchModelConfig) -> None:
        num = len(self.tiles) if model.mode == "ips" else self.grid**2
        if model.k > num:
            raise ConfigError(
                f"model.k is {model.k} and the {self.grid}x{self.grid} grid has {num} cells to choose from; give 1 to {num}."
            )
        if model.num_drawn > self.grid**2:
            raise ConfigError(
                f"model.warmup-k is {model.warmup_k} and the {self.grid}x{self.grid} grid has {self.grid**2} cells to draw from; give at most that many."
            )

    @classmethod
    def fetch(cls, config: Any) -> None:
        """Fetch the weights of backbone and scorer."""
        model = config.model
        find_weights(timm_name(model.backbone), model.weights)
        if model.mode == "dps" and model.trunk != "small":
            option = "--model.scorer-weights"
            find_weights(timm_name(model.trunk), model.scorer_weights, option)

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
        """Return overviews, their statistics, what was drawn for each image, and random cells."""
        grid = grid_side(config.model.trunk, config.patches.overview_px)
        names = ("overview", "mean", "std", "augment", "random_cells")
        rows: list[tuple[np.ndarray, ...]] = []
        for row, key in zip(samples.rows.tolist(), samples.keys.tolist(), strict=True):
            rng = np.random.default_rng(key)
            change = augment.IDENTITY
            if samples.train:
                change = augment.draw_augment(config.augment, config.patches.image_px, rng)
            overview, mean, std = Canvas(dataset.pixels[row], config.patches, change).overview()
            if not samples.train:  # what is judged depends on no order, batch or seed
                rng = np.random.default_rng(overview_seed(overview))
            cells = informative_cells(overview, grid, config.patches, config.model.num_drawn, rng)
            rows.append((overview, mean, std, change.to_row(), rng.permutation(cells)))
        columns = zip(names, zip(*rows, strict=True), strict=True)
        return {name: np.stack(arrays) for name, arrays in columns} | batch_rows(dataset, samples)

    def scores(self, batch: Batch) -> Tensor:
        """Score the cells (b d) of each image's grid."""
        overviews = self.to_device(batch["overview"]).permute(0, 3, 1, 2)
        ratio = self.config.patches.overview_px / self.config.patches.image_px
        images = self._shown(overviews[:, None], batch, np.zeros((len(overviews), 1, 2)), ratio)
        scores: Tensor = self.scorer(images[:, 0]).flatten(1).float()
        return scores

    def cut(self, batch: Batch, cells: np.ndarray) -> Tensor:
        """Return normalised patches (b n 3 p p) of chosen cells; cell -1 gives zeros."""
        with self.stopwatch.part("cut"):
            begun = self._take_begun(batch, cells) or self._begin(batch, cells)
            pixels = self.cutter.finish(begun, self.device)
        moved, corners = pixels.permute(0, 1, 4, 2, 3), begun.cut.corners
        is_cell = self.to_device(cells >= 0)[:, :, None, None, None]
        return self._shown(moved, batch, corners, 1.0) * is_cell

    def _begin(self, batch: Batch, cells: np.ndarray) -> Begun:
        corners = cell_corners(cells.ravel(), self.grid, self.config.patches)
        canvases = [self._canvas(batch, i) for i in range(len(cells))]
        cut = Cut(batch["row"], canvases, corners.reshape(*cells.shape, 2), cells >= 0)
        return self.cutter.begin(cut, self.device)

    def _take_begun(self, batch: Batch, cells: np.ndarray) -> Begun | None:
        for i, (its_batch, its_cells, begun) in enumerate(self._begun):
            if its_batch is batch and np.array_equal(its_cells, cells):
                del self._begun[i]
                return begun
        return None

    def hold(self, rows: np.ndarray) -> None:
        """Cut the patches of these rows on the device."""
        self.cutter = PatchCutter(rows.tolist())

    def ahead(self, batch: Batch, progress: float) -> None:
        """Begin to cut the patches of a training batch that are random or fixed; what the scorer will choose is not known yet."""
        model = self.config.model
        if model.mode in ("grid", "all"):
            cells = self.choose(batch)
        elif model.mode == "random" or (model.mode == "dps" and progress < model.warmup):
            cells = batch["random_cells"]
        else:
            return
        self._begun.append((batch, cells, self._begin(batch, cells)))

    def _shown(self, pixels: Tensor, batch: Batch, corners: np.ndarray, ratio: float) -> Tensor:
        """Normalise pixels (b n 3 h w) by their image, the last thing done to them; blanks are 0 then.

        Args:
            pixels: What is looked at.
            batch: With the cells to blank of each image, if any.
            corners: Canvas pixel where each begins (b n 2).
            ratio: Its pixels per canvas pixel.
        """
        shape = (-1, 1, 3, 1, 1)
        mean, std = (self.to_device(batch[name]).view(shape) for name in ("mean", "std"))
        shown = torch.addcmul(-mean / (std + EPS), pixels.float(), 1 / (255 * (std + EPS)))
        if "blank" not in batch:
            return shown
        sizes, blank = self.config.patches, batch["blank"]
        boxes = cell_corners(blank.ravel(), self.grid, sizes).reshape(len(blank), 1, -1, 2)
        mask = blank_mask(boxes - corners[:, :, None], sizes.patch_px, ratio, pixels.shape[-1])
        return shown * self.to_device(~mask)[:, :, None]

    def _canvas(self, batch: Batch, i: int) -> Canvas:
        change = augment.IDENTITY
        if self.training:
            change = augment.Augment.from_row(batch["augment"][i])
        return Canvas(self.pixels[int(batch["row"][i])], self.config.patches, change)

    def embed(self, patches: Tensor) -> Tensor:
        """Return features (b n f) of patches (b n 3 p p)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_rests):
            embedded = self.backbone(patches.flatten(0, 1))
        features: Tensor = self.project(embedded)
        return features.view(*patches.shape[:2], -1)

    def classify(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, attention and embedding of images by their patches (b k 3 p p)."""
        logits, attn, embedding = self.aggregator(self.embed(patches))
        return logits, attn, embedding

    def choose(self, batch: Batch) -> np.ndarray:
        """Choose the cells (b k) to look at, in ascending order; no gradient."""
        mode, num = self.config.model.mode, len(batch["row"])
        if mode == "random":
            return np.sort(batch["random_cells"][:, : self.k], axis=1)
        if mode == "ips":
            return self._iterate(batch)
        if mode != "dps":
            fixed = self.tiles if mode == "all" else lattice_cells(self.grid, self.k)
            return np.tile(fixed, (num, 1))
        chosen: np.ndarray = hard_topk(self.scores(batch), self.k, self.apart).cpu().numpy()
        return chosen

    @torch.no_grad()
    def _iterate(self, batch: Batch) -> np.ndarray:
        """Choose by iterative patch selection, with the aggregator as it judges."""

        def embed(cells: np.ndarray) -> np.ndarray:
            features: np.ndarray = self.embed(self.cut(batch, cells)).float().cpu().numpy()
            return features

        def attend(features: np.ndarray) -> np.ndarray:
            tensor = self.to_device(features)
            attn: np.ndarray = self._attend(tensor).cpu().numpy()
            return attn

        parts = (self.backbone, self.project, self.aggregator)
        modes = [part.training for part in parts]
        for part in parts:
            part.eval()
        chunk, num = self.config.model.ips_chunk, len(batch["row"])
        cells = iterative_cells(self.tiles, num, self.k, chunk, embed, attend)
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)
        return cells

    def _attend(self, features: Tensor) -> Tensor:
        attn: Tensor = self.aggregator(features)[1]
        return attn

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Predict logits; chosen cells, their attention, and their boxes in the image's own pixels."""
        chosen = self.choose(batch)
        logits, attn, _ = self.classify(self.cut(batch, chosen))
        corners = [cell_corners(cells, self.grid, self.config.patches) for cells in chosen]
        boxes = [self._canvas(batch, i).source_boxes(at) for i, at in enumerate(corners)]
        return {
            "logits": logits,
            "cells": torch.from_numpy(chosen),
            "attn": attn,
            "boxes": torch.from_numpy(np.stack(boxes).astype(np.float32)).flatten(1),
        }

    def answer_columns(self, answer: Any, row: int) -> dict[str, np.ndarray]:
        """Return logits, attention and boxes, as a bundle's answer has them."""
        return {"logits": answer.logits, "attn": answer.attn, "boxes": answer.boxes.ravel()}
