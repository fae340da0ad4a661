"""The task: what a system is, as one `nn.Module` and a few methods; and how a task file is loaded.

A task knows nothing of Ray, epochs, disks or optimisers. A task file defines one subclass of
`Task` with a `Config`, and ends in `main(__file__)`. One function, `load_task`, serves driver,
workers, sweeps and tests: it executes the file's bytes under one canonical module name.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Interval
from torch import Tensor, nn

from assay.config import Seed, Settings, to_dict
from assay.data.data_config import DataConfig
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.inputs.normalise import NormaliseConfig
from assay.data.manifest import Manifest, read_manifest
from assay.data.order import uniform_order
from assay.data.split_config import SplitConfig
from assay.errors import ConfigError
from assay.metrics.alarm import Alarm
from assay.metrics.decide import DecideConfig
from assay.metrics.estimate import Estimate
from assay.metrics.figure import Figure
from assay.metrics.measures import Measure
from assay.metrics.scores.classes import accuracy, nll
from assay.nn.optim import Multiplier, OptimConfig
from assay.nn.weights import pretrained_config
from assay.runs.results import read_config
from assay.shapes import Int64, UInt64
from assay.space import Float, Space
from assay.train.monitor import Limit
from assay.train.stopwatch import Stopwatch

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings, section="train"):
    """How long and in what portions a task is trained."""

    epochs: Annotated[int, Interval(ge=0, le=100_000)] = 30
    """Passes over the training set."""
    batch_size: Annotated[int, Interval(ge=1, le=1_000_000)] = 32
    """Images per update over all workers."""
    eval_batch_size: Annotated[int, Interval(ge=1, le=1_000_000)] = 32
    """Images per batch and worker when judging, which changes no prediction and not the run."""
    seed: Seed = 0
    """Seed of initialisation, order, augmentation and noise."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; fp16 scales its loss and needs a CUDA device."""
    select: Literal["score", "nll"] = "score"
    """What val chooses the best epoch by: the main score (accuracy, IoU of masks), ties going to the lower nll, or the nll."""
    val_every: Annotated[int, Interval(ge=1, le=100_000)] = 1
    """Epochs between two looks at val; the last epoch is always looked at."""
    patience: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """Stop after this many looks at val without improvement; 0: never."""
    min_improvement: Annotated[float, Interval(ge=0, le=10)] = 0.0
    """Least improvement (of the score, or of the nll in nats) that patience counts as one; 0: any."""

    def __post_init__(self) -> None:
        """Refuse an improvement that no score can make."""
        super().__post_init__()
        if self.select == "score" and self.min_improvement >= 1:
            raise ConfigError(
                f"train.min-improvement is {self.min_improvement} and a score lies between 0 and 1, so that no look at val would be an improvement; give a share such as 0.01."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        return {} if self.patience else {"min_improvement": "train.patience is 0"}


OF_UPDATES = [
    f"train.{name}"
    for name in ("batch_size", "precision", "select", "val_every", "patience", "min_improvement")
]
"""Settings of training that nothing follows where there is no epoch."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Settings):
    """What every task's configuration holds; a task adds its own fields."""

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    decide: DecideConfig = field(default_factory=DecideConfig)
    """How answers are judged and made; changes nothing that is trained, so not the run either."""

    def __post_init__(self) -> None:
        """Refuse images without labels where they teach nothing."""
        super().__post_init__()
        why = self.refuse_unlabelled() if self.split.unlabelled == "train" else ""
        if why:
            raise ConfigError(
                f"split.unlabelled is 'train', and {why}, so that images without labels teach nothing; set it to drop or none."
            )

    def refuse_unlabelled(self) -> str:
        """Say why images without labels teach nothing; empty where they do."""
        return "this task has no loss of domains"

    _undecided: ClassVar[Mapping[str, str]] = {"decide.pixel_recall": "the answers are no masks"}
    """Settings of `decide` that the task's answers do not follow, with why."""

    _drawn: ClassVar[str] = ""
    """Section of the images that are drawn where data.root names none."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        names = super().idle() | dict(self._undecided)
        if self._drawn and self.data.root is not None:
            drawn = fields(getattr(self, self._drawn))
            names |= {f"{self._drawn}.{each.name}": "data.root names images" for each in drawn}
        if not self.train.epochs:
            updates = [f"optim.{each.name}" for each in fields(self.optim)] + OF_UPDATES
            names |= dict.fromkeys(
                updates, "train.epochs is 0, so that nothing is learnt by updates"
            )
        return names

    def doubts(self) -> list[str]:
        """Return sentences on what was set and is hardly meant."""
        return []

    def digests(self) -> dict[str, Any]:
        """Return what a run's name has in the place of settings that point at something, as at another run."""
        return {}


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


def doubt_constants(name: str, weights: str, settings: NormaliseConfig) -> list[str]:
    """Say so where images are normalised by other constants than those that weights were trained with."""
    if Path(weights).is_dir():
        options = _run_constants(Path(weights), settings)
    else:
        config = pretrained_config(name)
        options = "" if weights == "none" else settings.differs(config.mean, config.std)
    if not options:
        return []
    return [
        f"The weights of {name} were trained on images that are normalised otherwise; give {options}."
    ]


def _run_constants(run: Path, settings: NormaliseConfig) -> str:
    """Say how to normalise as a run did that weights are taken from; empty where it is done so."""
    learnt, ours = read_config(run).get("image", {}), to_dict(settings)
    is_constant = learnt.get("normalise") == "constants"
    names = ("normalise", "mean", "std") if is_constant else ("normalise",)
    if not learnt or all(learnt[name] == ours[name] for name in names):
        return ""
    values = {
        name: learnt[name] if name == "normalise" else " ".join(f"{v:g}" for v in learnt[name])
        for name in names
    }
    return " ".join(f"--{settings._section}.{name} {value}" for name, value in values.items())
