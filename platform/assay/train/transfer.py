"""Classification by a network of any name, of which a regime says how much is trained, with or without a teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import pyarrow as pa
import torch
from torch import Tensor

from assay.config import to_dict
from assay.data.dataset import Dataset
from assay.errors import ConfigError
from assay.nn import attribution
from assay.nn.networks import NetworkConfig
from assay.nn.optim import Multiplier
from assay.nn.regimes import RegimeConfig, find_parts, freeze, multipliers, rest
from assay.space import Float, Space
from assay.train.classification import Classification, ClassificationConfig
from assay.train.distill import (
    DistillConfig,
    answer,
    digest_weights,
    divergence,
    open_teacher,
    prepare_teacher,
    refuse_classes,
)
from assay.train.explanation import ExplainConfig, explain_columns, judge_columns
from assay.train.task import Batch, BatchRows, TaskMetrics
from assay.train.task_config import TaskConfig, doubt_constants


@dataclass(frozen=True, kw_only=True)
class TransferConfig(ClassificationConfig):
    """Whole images, a network, how it is trained, and by whom."""

    model: NetworkConfig = field(default_factory=NetworkConfig)
    regime: RegimeConfig = field(default_factory=RegimeConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    explain: ExplainConfig = field(default_factory=ExplainConfig)

    def doubts(self) -> list[str]:
        """Say where weights are kept that were never trained, or images are normalised otherwise than for them."""
        doubts = doubt_constants(self.model.network, self.model.weights, self.image)
        regime = self.regime.regime
        if regime != "scratch" and self.model.weights == "none":
            doubts.append(
                f"--regime.regime {regime} keeps much of weights that are random, as --model.weights is none; give weights, or --regime.regime scratch."
            )
        return [*super().doubts(), *doubts]

    def digests(self) -> dict[str, Any]:
        """Name the teacher by its weights."""
        teacher = self.distill.teacher
        if teacher is None:
            return super().digests()
        open_teacher(teacher)
        distill = to_dict(self.distill) | {"teacher": digest_weights(teacher)}
        return super().digests() | {"distill": distill}


class Transfer(Classification):
    """A network's features and a linear head on them."""

    Config: ClassVar[type[TaskConfig]] = TransferConfig

    def __init__(self, config: Any, dataset: Dataset, classes: Sequence[str] | None = None) -> None:
        super().__init__(config, dataset, classes)
        image = config.image
        refuse_weights(config)
        if config.distill.teacher is not None:
            refuse_classes(open_teacher(config.distill.teacher), self.classes)
        self.network = config.model.build(image.height_px, image.width_px)
        self.add_head(self.network.num_features)
        blocks = self.network.blocks()
        freeze(config.regime, self.network, blocks)
        self.parts = find_parts(self.network, blocks)
        self.is_moving = True
        """Whether anything below the head is trained at this point of the run."""

    @classmethod
    def fetch(cls, config: Any) -> None:
        """Fetch the network's weights, and look for the teacher."""
        refuse_weights(config)
        config.model.fetch()
        if config.distill.teacher is not None:
            open_teacher(config.distill.teacher)

    @classmethod
    def space(cls, config: Any) -> Space:
        """Search learning rates and decay, and dropout."""
        body: Any = {"regime.regime": ("partial", "full", "lp-ft", "gradual")}
        return {
            **super().space(config),
            "model.dropout": Float(low=0.0, high=0.5),
            "regime.body_lr": Float(low=0.01, high=1.0, log=True, when=body),
        }

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
        """Return images as `Classification` does; in training also the teacher's views of them."""
        batch = super().prepare(config, dataset, samples)
        if config.distill.teacher is None or not samples.train:
            return batch
        teacher = open_teacher(config.distill.teacher)
        return batch | prepare_teacher(teacher, config, dataset, samples)

    def features(self, images: Tensor) -> Tensor:
        """Compute the network's features, without a graph while nothing below the head moves."""
        with torch.set_grad_enabled(self.is_moving and torch.is_grad_enabled()):
            features: Tensor = self.network(images)
        return features

    def explain(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features and the evidence, by the method that fits the network."""
        return attribution.explain(self.network, self.head, images)

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Predict corrupted images; compare the evidence with masks, and follow answers along the curves, as far as is asked for."""
        return super().predict_once(batch) | explain_columns(self, batch)

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Judge robustness and explanations."""
        return super().judge(config, predictions, storage) | judge_columns(predictions)

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Return the loss, with what is frozen now at rest."""
        rates = self.config.regime.rates(len(self.parts), progress)
        self.is_moving = any(rates)
        if self.training:
            rest(self.network, self.parts, rates, self.config.regime.keeps_statistics)
        return super().forward(batch, progress, phase)

    def row_losses(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Return the cross-entropy of each row; of luna-softmax with its probabilities as logits, as published."""
        is_twice = self.config.model.network == "luna-softmax"
        return super().row_losses(logits.softmax(1) if is_twice else logits, truth)

    def penalties(
        self, features: Tensor, logits: Tensor, batch: Batch, progress: float, phase: str
    ) -> dict[str, Tensor]:
        """Return how far the answers are from the teacher's, if there is one."""
        distill = self.config.distill
        if distill.teacher is None:
            return {}
        with torch.no_grad():
            taught = answer(self.teacher.to(self.device), batch)
        return {"distill": distill.weight * divergence(logits, taught, distill.temperature)}

    @cached_property
    def teacher(self) -> Classification:
        """The run to learn from; no part of this module, so neither saved nor counted."""
        return cast(Classification, open_teacher(self.config.distill.teacher).load(self.dataset))

    def param_groups(self, progress: float) -> Mapping[str, Multiplier]:
        """Give each block and the head their rates."""
        regime = self.config.regime
        of_parts = multipliers(self.parts, regime.rates(len(self.parts), progress))
        return {**of_parts, "head.": Multiplier(lr=regime.head_rate)}

    @property
    def patience_begins(self) -> float:
        """Share of the run after which nothing more is unfrozen."""
        return float(self.config.regime.settled_by)


def refuse_weights(config: TransferConfig) -> None:
    """Refuse to train from scratch what has weights.

    Raises:
        ConfigError: the settings ask for it.
    """
    if config.regime.regime == "scratch" and config.model.weights != "none":
        raise ConfigError(
            f"--regime.regime scratch begins with random weights, and --model.weights is {config.model.weights}; "
            "give --regime.regime full (or another), or --model.weights none."
        )
