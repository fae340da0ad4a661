"""What every task's configuration holds, and how it is trained; a task adds its own fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from assay.config import Seed, Settings, to_dict
from assay.data.data_config import DataConfig
from assay.data.inputs.normalise import NormaliseConfig
from assay.data.split_config import SplitConfig
from assay.errors import ConfigError
from assay.metrics.decide import DecideConfig
from assay.nn.optim import OptimConfig
from assay.nn.weights import pretrained_config
from assay.runs.results import read_config


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
