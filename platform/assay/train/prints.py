"""The base of tasks that judge frames of prints: any network, any algorithm across printers, and times.

Frames of one print are one group, and printers the domain. Where times are known, a run is also judged
by how early its answers are right, and by an alarm over frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from assay.config import Settings
from assay.data.dataset import Dataset
from assay.data.times import seconds_since_start, time_column
from assay.errors import ConfigError
from assay.metrics.alarm import AlarmConfig
from assay.metrics.frames import (
    MEASURES,
    SECONDS,
    doubt_alarms,
    early_figure,
    fit_alarms,
    judge_alarms,
    prints_of,
)
from assay.metrics.predictions import class_names, rows_of, sets_of
from assay.nn.adapt import batch_norms
from assay.nn.domains.config import PRETRAINED, SMALL, domainbed_space
from assay.nn.networks import NetworkConfig
from assay.space import Space
from assay.train.adaptation import Adaptation, AdaptConfig, judge_adapted
from assay.train.domains import DomainClassification, DomainClassificationConfig
from assay.train.task import Batch, TaskMetrics
from assay.train.task_config import TaskConfig, doubt_constants


@dataclass(frozen=True, kw_only=True)
class FramesConfig(Settings, section="frames"):
    """What is known of frames besides what they show."""

    time: str = ""
    """Where a frame's time in seconds stands: stem (its file is named by it), a column of data.keep, or empty: nowhere."""


@dataclass(frozen=True, kw_only=True)
class PrintsConfig(DomainClassificationConfig):
    """Frames of prints, of several printers, and a network."""

    frames: FramesConfig = field(default_factory=FramesConfig)
    model: NetworkConfig = field(default_factory=NetworkConfig)
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    """What an alarm on decide.positive may cost; both kinds are judged and shipped, where times are known."""
    adapt: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        """Refuse to adapt to first minutes that are not known."""
        super().__post_init__()
        if self.adapt.methods and not self.frames.time:
            raise ConfigError(
                "--adapt.methods adapts to the first minutes of a new printer, and --frames.time says nowhere when frames were taken; "
                "name it, or leave adaptation out."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect; of the alarm both kinds are judged, where it can be."""
        names = {k: why for k, why in super().idle().items() if not k.startswith("alarm.")}
        if self.frames.time and self.decide.positive:
            return names | {"alarm.kind": "both kinds are judged"}
        why = "decide.positive names no class" if self.frames.time else "frames.time is nowhere"
        return names | {f"alarm.{setting.name}": why for setting in fields(self.alarm)}

    def doubts(self) -> list[str]:
        """Say where images are normalised otherwise than the weights expect."""
        constants = doubt_constants(self.model.network, self.model.weights, self.image)
        return [*super().doubts(), *constants]


class Prints(DomainClassification):
    """Frames to classes, by a network of any name."""

    Config: ClassVar[type[TaskConfig]] = PrintsConfig

    def __init__(self, config: Any, dataset: Dataset, classes: Sequence[str] | None = None) -> None:
        super().__init__(config, dataset, classes)
        self.network = config.model.build(config.image.height_px, config.image.width_px)
        self.add_head(self.network.num_features, self.network.num_flat)
        if config.adapt.methods:
            batch_norms(self)

    @classmethod
    def fetch(cls, config: Any) -> None:
        """Fetch the network's weights."""
        config.model.fetch()

    @classmethod
    def space(cls, config: Any) -> Space:
        """Return what DomainBed searches for the algorithm that is set, and for weights as they begin."""
        shared = SMALL if config.model.weights == "none" else PRETRAINED
        return domainbed_space(config.algorithm.name, shared)

    def features(self, images: Tensor) -> Tensor:
        """Compute the network's features."""
        features: Tensor = self.network(images)
        return features

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Predict features for the probes, and note the seconds since the start of each row's print."""
        columns = super().predict_once(batch)
        if not self.config.frames.time:
            return columns
        columns[SECONDS] = torch.from_numpy(self.seconds[batch["row"]])
        if self.config.adapt.methods and self.graph is None:
            columns |= self.adaptation.columns(batch)
        return columns

    @cached_property
    def adaptation(self) -> Adaptation:
        """Copies of this task as it is now, adapted to new printers."""
        return Adaptation(self)

    @cached_property
    def seconds(self) -> np.ndarray:
        """Seconds since the start of its print of each row (float32)."""
        return seconds_since_start(self.dataset, time_column(self.config.frames.time))

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Judge the probes; where times are known also how early answers are right, and the alarm over frames."""
        judged = super().judge(config, predictions, storage) | judge_adapted(predictions)
        if SECONDS not in predictions.column_names:
            return judged
        prints = {name: prints_of(rows_of(predictions, name)) for name in sets_of(predictions)}
        figure = early_figure({name: p for name, p in prints.items() if name != "val"})
        figures = [figure] if figure else []
        judged |= TaskMetrics(figures=figures, measures=MEASURES)
        positive = config.decide.positive
        if not positive:
            return judged
        index = class_names(predictions).index(positive)
        alarms = fit_alarms(config.alarm, index, prints.get("val", ()))
        metrics, doubts = judge_alarms(alarms, index, prints), doubt_alarms(alarms, prints)
        return judged | TaskMetrics(metrics=metrics, alarms=alarms, warnings=doubts)
