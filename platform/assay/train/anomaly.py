"""The base of tasks that learn from good parts alone what a defect is: whatever they do not look like."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from assay.config import Share
from assay.data.dataset import Dataset
from assay.errors import ConfigError
from assay.metrics import anomaly, masks
from assay.metrics.scores.masks import pixel_columns
from assay.metrics.scores.regions import region_columns
from assay.nn.backbone import timm_name
from assay.nn.patch_memory import PatchMemory, PatchMemoryConfig
from assay.nn.weights import find_weights
from assay.train.mask_task import MaskTask, MaskTaskConfig
from assay.train.task import Batch, TaskMetrics
from assay.train.task_config import TaskConfig, TrainConfig, doubt_constants

HELD = 0.2
"""Share of train's good groups that are kept out of the memory, to tell how much good parts differ."""


@dataclass(frozen=True, kw_only=True)
class AnomalyConfig(MaskTaskConfig):
    """What every detector of anomalies holds; a task adds its own fields."""

    model: PatchMemoryConfig = field(default_factory=PatchMemoryConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=0))
    most_alarmed: Share = 0.05
    """Share of val's clean images that may be alarmed; the threshold follows from it."""

    def __post_init__(self) -> None:
        """Refuse epochs, as there is nothing to repeat."""
        super().__post_init__()
        if self.train.epochs:
            raise ConfigError(
                f"train.epochs is {self.train.epochs}, and what good parts look like is remembered in one pass; leave it at 0."
            )

    def doubts(self) -> list[str]:
        """Say so where the backbone's weights were trained on other values than they are shown."""
        return doubt_constants(self.model.backbone, self.model.weights, self.tiles)


class Anomaly(MaskTask):
    """Pixels by their distance from what good parts look like.

    Raises:
        ConfigError: masks are of several classes.
    """

    Config: ClassVar[type[TaskConfig]] = AnomalyConfig
    net: PatchMemory

    def __init__(self, config: AnomalyConfig, dataset: Dataset) -> None:
        if len(dataset.mask_classes) > 1:
            raise ConfigError(
                f"masks.classes are {', '.join(dataset.mask_classes)}, and an anomaly has no kind; give one, as --masks.classes defect."
            )
        super().__init__(config, dataset, PatchMemory(config.model))
        self.check_tiles()

    @classmethod
    def fetch(cls, config: Any) -> None:
        """Fetch the backbone's weights."""
        find_weights(timm_name(config.model.backbone), config.model.weights, has_norm=False)

    def begin(self, rows: np.ndarray) -> None:
        """Remember what the images of train look like whose masks are empty; others are left out."""
        good = [
            row for row in rows.tolist() if not np.asarray(self.pixels.mask(row, "label")).any()
        ]
        groups = self.dataset.group.codes[good]
        names = np.unique(groups)
        rng = np.random.default_rng(self.config.train.seed)
        held = rng.permutation(names)[: max(1, round(HELD * len(names)))]
        if len(names) < 2:
            raise ConfigError(
                f"Train has {len(good)} images without a mark, of {len(names)} parts, and two parts are needed at least: some to remember, others to tell how much good parts differ; give more, or lower --split.val and --split.test."
            )
        is_held = np.isin(groups, held)
        parts = [[row for row, at in zip(good, is_held, strict=True) if at == of] for of in (0, 1)]
        generator = torch.Generator().manual_seed(self.config.train.seed)
        self.net.remember(self._batches(parts[0]), self._batches(parts[1]), generator)

    def _batches(self, rows: Sequence[int]) -> Iterator[Tensor]:
        for row in rows:
            yield self.to_device(np.stack(self._tiles_of(row, self.config.tiles)))

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, and features averaged over each tile."""
        features = self.net.features(images)
        return self.net.logits(features, images.shape[2:]), features.mean((2, 3))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Count pixels by their level, and how far regions are covered."""
        return self._counts(batch, _columns)

    def answer_columns(self, answer: Any, row: int) -> dict[str, np.ndarray]:
        """Count as `predict` does, as a bundle's answer has it."""
        return self._counts_of(answer.levels, row, _columns)

    @classmethod
    def score(cls, config: Any, predictions: pa.Table, fitted: pa.Table | None = None) -> pa.Table:
        """Say of each image whether it is rightly alarmed, at the threshold that val's clean images allow."""
        if fitted is not None:
            return anomaly.score(predictions, masks.thresholds_of(fitted))
        return anomaly.score(predictions, anomaly.fit_threshold(predictions, config.most_alarmed))

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Any) -> TaskMetrics:
        """Judge images, pixels and regions, besides what is judged of any mask."""
        of_anomalies = TaskMetrics(
            metrics=anomaly.findings(predictions),
            measures=anomaly.MEASURES,
            warnings=anomaly.warnings(predictions, config.most_alarmed),
        )
        # what is said of thresholds that are chosen by the marks of val does not hold here
        of_masks = replace(super().judge(config, predictions, storage), warnings=())
        return of_anomalies | of_masks


def _columns(levels: np.ndarray, mask: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    return pixel_columns(levels, mask, kind) | region_columns(levels, mask, kind)
