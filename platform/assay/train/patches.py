"""The base of tasks that answer with a class from a few patches, selected at full resolution.

How the parts of `train.patch_network` learn, are judged and shipped; a task gives presets and data.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from assay.config import to_dict
from assay.data.images.pixels import Pixels
from assay.data.inputs.cells import lattice_cells
from assay.metrics import deletion
from assay.metrics.predictions import rows_of, sets_of
from assay.nn.export import write_graph
from assay.nn.optim import Multiplier
from assay.nn.selection import selection_entropy
from assay.nn.topk import (
    draw_noise,
    expected_loss,
    hard_topk,
    mix,
    perturbed_topk,
    score_function_loss,
)
from assay.train.classification import share_right
from assay.train.monitor import Limit
from assay.train.patch_network import PatchNetwork
from assay.train.task import Batch, Task, TaskMetrics

MIN_ENTROPY = 0.02
"""Selection entropy (0 to 1) below which a scorer has collapsed; a sound one kept above .8."""


class PatchClassification(PatchNetwork):
    """A class from patches, and a scorer that learns where to look."""

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Return the cross-entropy of the answers made from given (warm-up, baselines) or selected patches."""
        model, truth = self.config.model, self.truth(batch)
        self.backbone_rests = model.freezes_backbone(progress)
        if model.mode in ("ips", "grid", "all"):
            return self._learn_from_cells(batch, self.choose(batch), truth)
        if model.mode == "random" or progress < model.warmup:
            return self._learn_from_cells(batch, batch["random_cells"], truth)
        sigma = model.sigma_at((progress - model.warmup) / (1 - model.warmup))
        select = self._select_hard if model.estimator == "score_function" else self._select_mixed
        return select(batch, self.scores(batch), sigma, truth) | {"sigma": torch.tensor(sigma)}

    def _learn_from_cells(
        self, batch: Batch, cells: np.ndarray, truth: Tensor
    ) -> dict[str, Tensor]:
        """Learn from given patches: each must answer alone, and sets of k together; the scorer watches."""
        features = self.embed(self.cut(batch, cells))
        sets = features.reshape(-1, self.k, features.shape[-1])
        logits, *_ = self.aggregator(sets)
        together = self.row_losses(logits, truth.repeat_interleave(len(sets) // len(truth)))
        scores = self.scores(batch) if self.config.model.mode == "dps" else None
        alone = self._alone(features, self.to_device(cells), scores, truth)
        return {"loss": together.mean() + alone, "train_accuracy": share_right(logits, truth)}

    def _select_mixed(
        self, batch: Batch, scores: Tensor, sigma: float, truth: Tensor
    ) -> dict[str, Tensor]:
        """Learn by perturbed top-k: from k mixtures of the cells that some noise sample selected."""
        model, side = self.config.model, self.config.patches.patch_px
        keys = batch["key"].tolist()
        selection = perturbed_topk(
            scores, self.k, sigma, keys, model.num_noise, model.estimator, self.apart
        )
        cells = selection.cells.cpu().numpy()
        # mixed as they lie in memory, channels last, as the networks want them
        mixed = mix(
            selection.weights,
            lambda part: self.cut(batch, cells[:, part]).movedim(2, -1),
            (side, side, 3),
        ).movedim(-1, 2)
        logits, *_ = self.aggregator(self.embed(mixed))
        return {
            "loss": self.row_losses(logits, truth).mean(),
            "active_cells": (selection.cells >= 0).sum(1).float().mean(),
            "selection_entropy": selection_entropy(scores, self.k),
            "train_accuracy": share_right(logits, truth),
        }

    def _select_hard(
        self, batch: Batch, scores: Tensor, sigma: float, truth: Tensor
    ) -> dict[str, Tensor]:
        """Learn by the score function, over a few hard draws of k whole patches each."""
        num_draws = self.config.model.num_noise
        noise = draw_noise(batch["key"].tolist(), num_draws, scores.shape[1]).to(self.device)
        cells = hard_topk(scores.detach()[:, None] + sigma * noise, self.k, self.apart)
        features = self.embed(self.cut(batch, cells.flatten(1).cpu().numpy()))
        logits, *_ = self.aggregator(features.view(*cells.shape, -1).flatten(0, 1))
        losses = self.row_losses(logits, truth.repeat_interleave(num_draws)).view(-1, num_draws)
        surrogate = score_function_loss(scores, noise, sigma, cells, losses)
        alone = self._alone(features, cells.flatten(1), scores, truth)
        return {
            "loss": losses.mean() + surrogate.mean() + alone,
            "selection_entropy": selection_entropy(scores, self.k),
            "train_accuracy": share_right(logits, truth),
        }

    def _alone(
        self, features: Tensor, cells: Tensor, scores: Tensor | None, truth: Tensor
    ) -> Tensor:
        """Return the loss of each patch's own answer, and the guide that lets the scorer learn from it.

        The guide is the expected loss of one patch drawn among those looked at, by the softmax of
        their scores: it moves scores towards cells that answer well, and lets those teach most.
        """
        model = self.config.model
        if not model.alone:
            return features.new_zeros(())
        logits, *_ = self.aggregator(features.reshape(-1, 1, features.shape[-1]))
        losses = self.row_losses(logits, truth.repeat_interleave(cells.shape[1])).view(cells.shape)
        total = losses.mean()
        if scores is not None and model.guide:
            guide = expected_loss(scores, cells, losses, model.guide_temperature)
            total = total + model.guide * guide.mean()
        alone: Tensor = model.alone * total
        return alone

    @property
    def patience_begins(self) -> float:
        """The scorer decides only after its warm-up, and a frozen backbone learns only then; what val says before is of neither."""
        model = self.config.model
        frozen = model.backbone_frozen if model.freezes_backbone(0.0) else 0.0
        return float(max(frozen, model.warmup if model.mode == "dps" else 0.0))

    @property
    def label_smoothing(self) -> float:
        """Probability mass that the loss spreads over the other classes."""
        return float(self.config.model.label_smoothing)

    def _class_weights(self) -> Tensor | None:
        return None

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Test deletion: logits where the chosen patches are blank, and where as many random ones are.

        The image is then chosen from and judged anew, so evidence elsewhere can still be found.
        Nothing where the choice is random already or as large as the image.
        """
        if self.config.model.mode in ("random", "all"):
            return {}
        blanks = {"chosen": self.choose(batch), "random": batch["random_cells"][:, : self.k]}
        return {
            f"logits_without_{name}": self.predict({**batch, "blank": cells})["logits"]
            for name, cells in blanks.items()
        }

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Judge the evidence by the deletion test."""
        metrics = {}
        for name in sets_of(predictions):
            metrics[name] = deletion.measure(rows_of(predictions, name))
        return TaskMetrics(metrics=metrics, measures=deletion.MEASURES)

    @classmethod
    def draw(
        cls, config: Any, pixels: Pixels, row: int, answer: Callable[[], Any]
    ) -> np.ndarray | None:
        """Leave the image as it is: the report marks the patches on it."""
        return None

    def costs(self) -> dict[str, int]:
        """Count parameters alone: what an image costs depends on the patches that are looked at."""
        return Task.costs(self)

    def param_groups(self, progress: float) -> Mapping[str, Multiplier]:
        """Train the scorer and the backbone at their own rates."""
        model = self.config.model
        backbone_lr = 0.0 if model.freezes_backbone(progress) else model.backbone_lr
        return {
            "scorer.": Multiplier(lr=model.scorer_lr),
            "backbone.": Multiplier(lr=backbone_lr),
            "aggregator.": Multiplier(lr=model.aggregator_lr),
        }

    def limits(self) -> Sequence[Limit]:
        """Warn of a scorer that looks at the same cells of every image: it has learnt a place, not a pattern."""
        why = "every image is looked at in the same cells: raise model.sigma or model.warmup, unless all parts lie alike in one jig"
        return [Limit("selection_entropy", low=MIN_ENTROPY, for_updates=50, then="warn", why=why)]

    def export(self, folder: Path, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Write graphs `classify` (patches to logits, attention, embedding) and those that choose the patches.

        dps: `scorer` (overview to scores). ips: `embed` (patches to features) and `attend`
        (features to attention).
        """
        sizes, model = self.config.patches, self.config.model
        side, overview = (3, sizes.patch_px, sizes.patch_px), (3, *[sizes.overview_px] * 2)
        width = self.aggregator.project.in_features
        ends: dict[str, tuple[Any, tuple[str, Any], list[str]]] = {
            "classify": (
                self.classify,
                ("patches", (self.k, *side)),
                ["logits", "attn", "embedding"],
            ),
            "scorer": (
                nn.Sequential(self.scorer, nn.Flatten()),
                ("overview", overview),
                ["scores"],
            ),
            "embed": (nn.Sequential(self.backbone, self.project), ("patches", side), ["features"]),
            "attend": (self._attend, ("features", (None, width)), ["attn"]),
        }
        choosing = {"dps": ["scorer"], "ips": ["embed", "attend"]}
        graphs = ["classify", *choosing.get(model.mode, [])]
        for name in graphs:
            function, feed, outputs = ends[name]
            write_graph(folder / f"{name}.onnx", self, function, feed, outputs)
        cells = {"all": self.tiles, "grid": lattice_cells(self.grid, self.k), "ips": self.tiles}
        return {
            "kind": "patches",
            "select": model.mode,
            "k": self.k,
            "draws": model.num_drawn,
            "apart": self.apart,
            "chunk": model.ips_chunk,
            "cells": cells[model.mode].tolist() if model.mode in cells else [],
            "grid": self.grid,
            "patches": to_dict(sizes),
            "graphs": graphs,
        }

    def int8(self, folder: Path) -> None:
        """Ship no int8 graph: what chooses would choose otherwise."""
