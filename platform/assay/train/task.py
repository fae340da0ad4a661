"""The task: what a system is, as one `nn.Module` and a few methods; and how a task file is loaded.

A task knows nothing of Ray, epochs, disks or optimisers. A task file defines one subclass of
`Task` with a `Config`, and ends in `main(__file__)`. One function, `load_task`, serves driver,
workers, sweeps and tests: it executes the file's bytes under one canonical module name.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.manifest import Manifest, read_manifest
from assay.data.order import uniform_order
from assay.metrics.alarm import Alarm
from assay.metrics.estimate import Estimate
from assay.metrics.figure import Figure
from assay.metrics.measures import Measure
from assay.metrics.scores.classes import accuracy, nll
from assay.nn.optim import Multiplier
from assay.shapes import Int64, UInt64
from assay.space import Float, Space
from assay.train.monitor import Limit
from assay.train.stopwatch import Stopwatch
from assay.train.task_config import TaskConfig

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """What a task judges beyond the standard set."""

    metrics: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """Estimates by set of the split, then by name."""
    figures: Sequence[Figure] = ()
    """Figures for the report."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """How the estimates are shown, by name; the standard ones need nothing."""
    warnings: Sequence[str] = ()
    """Sentences for whoever reads the numbers, kept with the run."""
    alarms: Sequence[Alarm] = ()
    """What rings over the frames of a print, fitted on val; ships with the bundle."""

    def __or__(self, other: "TaskMetrics") -> "TaskMetrics":
        """Put what two parts of a task judge together."""
        sets = dict.fromkeys([*self.metrics, *other.metrics])
        metrics = {
            name: {**self.metrics.get(name, {}), **other.metrics.get(name, {})} for name in sets
        }
        return TaskMetrics(
            metrics=metrics,
            figures=[*self.figures, *other.figures],
            measures={**self.measures, **other.measures},
            warnings=[*self.warnings, *other.warnings],
            alarms=[*self.alarms, *other.alarms],
        )


@dataclass(frozen=True)
class BatchRows:
    """Rows to prepare together, and the random key of each."""

    rows: Int64[np.ndarray, " n"]
    keys: UInt64[np.ndarray, " n"]
    train: bool


class Task(nn.Module):
    """Base class of every task; the four methods without a body must be written.

    Args:
        config: the task's settings.
        dataset: the rows that it learns from and answers for.
        classes: names of what it answers with; those of the dataset's labels if not given.
    """

    Config: ClassVar[type[TaskConfig]] = TaskConfig
    aliases: ClassVar[Mapping[str, str]] = {
        "lr": "optim.lr",
        "learning_rate": "optim.lr",
        "weight_decay": "optim.weight_decay",
        "batch_size": "train.batch_size",
        "epochs": "train.epochs",
        "num_epochs": "train.epochs",
    }
    """Settings by the names that sweeps of other programs have for them."""
    reference: ClassVar[tuple[str, ...]] = ()
    """Sets that are predicted besides those to be judged, for `score` to compare with."""

    def __init__(
        self, config: TaskConfig, dataset: Dataset, classes: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.config, self.dataset, self.pixels = config, dataset, dataset.pixels
        self.classes = list(dataset.classes if classes is None else classes)
        config.decide.refuse_strangers(self.classes)  # before training, not when it is judged
        self.phases: tuple[str, ...] = ("main",)
        self.stopwatch = Stopwatch()

    @classmethod
    def presets(cls) -> Mapping[str, TaskConfig]:
        """Return named configurations; the first is the default, and `smoke` is what CI runs."""
        return {"default": cls.Config()}

    @classmethod
    def manifest(cls, config: Any, storage: Path) -> Manifest:
        """Return the images and their columns; embedded data is drawn below `storage`."""
        return read_manifest(config.data, storage / "hashes.sqlite")

    @classmethod
    def fetch(cls, config: Any) -> None:
        """Fetch what a run needs besides images, as weights, before any image is decoded; raises ConfigError."""

    @classmethod
    def baselines(cls, config: Any) -> Mapping[str, Any]:
        """Return configurations to be judged beside this one, by name."""
        return {}

    @classmethod
    def space(cls, config: Any) -> Space:
        """Return what a sweep of hyperparameters searches, around these settings."""
        lr = config.optim.lr
        return {
            "optim.lr": Float(low=lr / 10, high=lr * 10, log=True),
            "optim.weight_decay": Float(low=1e-4, high=0.3, log=True),
        }

    @classmethod
    def order(cls, config: Any, dataset: Dataset, rows: np.ndarray, epoch: int) -> list[np.ndarray]:
        """Order one epoch, as global batches of row numbers."""
        return uniform_order(rows, config.train.batch_size, config.train.seed, epoch)

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
        """Return the arrays of one batch, leading dimension n; runs where there is no model."""
        raise NotImplementedError

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Compute what is differentiable: `loss` (mean over the batch) and scalars worth logging."""
        raise NotImplementedError

    def hold(self, rows: np.ndarray) -> None:
        """Keep these rows' images on the device from now on, for a task that cuts patches of them."""

    def ahead(self, batch: Batch, progress: float) -> None:
        """Begin on the host, while other batches are learnt from, what `forward` will need of this one whatever the weights."""

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Predict columns of the predictions table, `logits` among them; deterministic."""
        raise NotImplementedError

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Predict further columns, once, by the best weights, for what `judge` wants to know."""
        return {}

    def answer_columns(self, answer: Any, row: int) -> dict[str, np.ndarray]:
        """Return the predicted columns of a row that follow from a bundle's answer for its image."""
        raise NotImplementedError

    def golden(self, row: int) -> dict[str, float] | None:
        """Compute the golden output that the bundle must repeat for a row's image; None where it follows from the predicted table."""
        return None

    def adopt(self, predictions: pa.Table) -> None:
        """Take from the judged table what was fitted there and is to ship, before `export`."""

    def export(self, folder: Path, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Write the graphs to ship into `folder`; returns the bundle's input pipeline.

        `rows` are the row numbers of train and val, for what is calibrated on the one and must hold
        on the other. A second output `embedding` of the graph that answers is watched for drift.
        """
        raise NotImplementedError

    def int8(self, folder: Path) -> "Task | None":
        """Return this task as it answers by the int8 graph that `export` wrote, if it wrote one."""
        return None

    def validate(self, columns: Batch) -> dict[str, float]:
        """Score the predicted columns of val, `row` among them: the main score first, `nll` among the rest."""
        logits, truth = columns["logits"], self.dataset.truth[columns["row"]]
        return {"accuracy": accuracy(logits, truth), "nll": nll(logits, truth)}

    @classmethod
    def score(cls, config: Any, predictions: pa.Table, fitted: pa.Table | None = None) -> pa.Table:
        """Return the predictions table with what is fitted on its val, or taken from a `fitted` table.

        Tables of classes need nothing; others get `score` and `weight` (see `predictions`).
        """
        return predictions

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Judge this system by what goes beyond the standard set, from the predictions table."""
        return TaskMetrics()

    @classmethod
    def draw(
        cls, config: Any, pixels: Pixels, row: int, answer: Callable[[], Any]
    ) -> np.ndarray | None:
        """Draw what the report shows of a row in the place of its image (RGB); `answer` gives the bundle's."""
        return None

    def costs(self) -> dict[str, int]:
        """Count parameters, and those that are trained; a task adds its multiply-accumulates."""
        counts = [(p.numel(), p.requires_grad) for p in self.parameters()]
        trained = sum(num for num, is_trained in counts if is_trained)
        return {"num_params": sum(num for num, _ in counts), "num_trainable": trained}

    def doubts(self) -> Sequence[str]:
        """Return sentences on what the images are and are hardly meant to be, kept with the run."""
        return ()

    def param_groups(self, progress: float) -> Mapping[str, Multiplier]:
        """Return multipliers of learning rate and weight decay by parameter-name prefix."""
        return {}

    def limits(self) -> Sequence[Limit]:
        """Return bounds of logged scalars beyond which a run is stopped or warned of."""
        return ()

    def refuse_sets(self, rows: Mapping[str, np.ndarray]) -> None:
        """Refuse sets to be judged, by their row numbers, that nothing can be said of, before anything is learnt."""

    def begin(self, rows: np.ndarray) -> None:
        """Do what is done once with the rows of train before the first update, on every worker alike."""

    def after_step(self, progress: float) -> None:
        """Do what follows each update (EMA and the like)."""

    def judged(
        self, predict: Callable[[], Mapping[str, np.ndarray]]
    ) -> AbstractContextManager[None]:
        """Return a context in which val is looked at and the best weights are saved, by others than the last update's.

        `predict` gives the columns of val by the weights as they are when it is called.
        """
        return nullcontext()

    @property
    def patience_begins(self) -> float:
        """Share of the run before which a look at val without improvement does not count for patience."""
        return 0.0

    @property
    def loss_settles(self) -> float:
        """Share of the run after which the loss has its last form, as where a penalty sets in late; its level is measured from there."""
        return 0.0

    def to_device(self, array: np.ndarray) -> Tensor:
        """Copy an array to the device; to CUDA from pinned memory, which the host does not wait for."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device
