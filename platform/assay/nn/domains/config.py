"""Which algorithm of domain generalisation, its hyperparameters, and what the literature searches them over.

Defaults and ranges are DomainBed's (Gulrajani and Lopez-Paz 2021, "In search of lost domain
generalization", and its hparams_registry). Its counts of updates are shares of its 5000 updates here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Interval

from assay.config import Settings, Share
from assay.errors import ConfigError
from assay.space import Choice, Dimension, Float, Int, Space

AlgorithmName = Literal[
    "erm",
    "dann",
    "dann-source",
    "dann-alternating",
    "cdann",
    "coral",
    "mmd",
    "irm",
    "vrex",
    "groupdro",
    "mixup",
    "mixstyle",
    "sagnet",
    "fishr",
]

OF_FEATURES = ("dann", "dann-source", "dann-alternating", "cdann", "coral", "mmd")
"""Algorithms whose penalty has no gradient for the classifier."""

Positive = Annotated[float, Interval(ge=0, le=1e6)]
Rate = Annotated[float, Interval(ge=0, le=100)]


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig(Settings, section="algorithm"):
    """How a model is kept from leaning on the domain; what is left out is as published (`PUBLISHED`)."""

    name: AlgorithmName = "erm"
    """Algorithm; erm ignores domains, dann-source is the adversary of seed system 003 as it stands there."""
    weight: Positive | None = None
    """Weight of the algorithm's penalty, or of its domain loss."""
    anneal: Share | None = None
    """Share of the run after which the penalty has its weight; before, irm and vrex weigh it 1 and fishr 0."""
    ceiling: Share | None = None
    """Highest strength of dann's gradient reversal."""
    d_steps: Annotated[int, Interval(ge=1, le=64)] | None = None
    """Updates of the discriminator for each update of the rest, in turn."""
    grad_penalty: Positive | None = None
    """Weight of the squared gradient of the domain loss by its input."""
    discriminator_lr: Rate | None = None
    """Learning rate of the discriminator as a multiple of optim.lr."""
    width: Annotated[int, Interval(ge=1, le=65_536)] | None = None
    """Hidden units of the discriminator."""
    depth: Annotated[int, Interval(ge=2, le=64)] | None = None
    """Linear layers of the discriminator."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] | None = None
    """Dropout in the discriminator (probability)."""
    eta: Positive | None = None
    """Step size of groupdro's domain weights."""
    alpha: Annotated[float, Interval(ge=1e-3, le=1000)] | None = None
    """Shares of mixup and mixstyle are drawn from Beta(alpha, alpha)."""
    decay: Annotated[float, Interval(ge=0, lt=1)] | None = None
    """Decay of fishr's moving average of gradient variances, per update."""
    mix_after: tuple[str, ...] = ()
    """Modules of the task after which mixstyle mixes, by name, such as network.layer1."""
    head_lr: Rate = 1.0
    """Learning rate of the classifier, and of heads of the algorithm, as a multiple of optim.lr."""
    body_lr: Rate = 1.0
    """Learning rate of the network below the classifier, as a multiple of optim.lr; 0: its weights stay as they are, and the classifier alone learns."""
    consistency: Literal["none", "variance", "divergence"] = "none"
    """Pull the answers for one group together: variance of its logits, or mean divergence from their mean answer."""
    consistency_weight: Positive = 1.0
    """Weight of the consistency."""

    def __post_init__(self) -> None:
        """Refuse to change features that stay as they are."""
        super().__post_init__()
        if not self.body_lr and self.name in OF_FEATURES:
            raise ConfigError(
                f"--algorithm.name {self.name} changes the features of a network, and --algorithm.body-lr 0 keeps them; "
                "give a rate above 0, or an algorithm that teaches the classifier, such as erm, irm or groupdro."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        why = f"algorithm.name is {self.name}"
        used = PUBLISHED[self.name]
        names = {f.name: why for f in fields(self) if f.default is None and f.name not in used}
        if self.name != "mixstyle":
            names["mix_after"] = why
        if self.consistency == "none":
            names["consistency_weight"] = "algorithm.consistency is none"
        return names

    def value(self, name: str) -> Any:
        """Return a hyperparameter, as published where none is given."""
        chosen = getattr(self, name)
        return PUBLISHED[self.name][name].default if chosen is None else chosen


@dataclass(frozen=True)
class Hyperparameter:
    """A published default, and what is searched around it; None: it is not searched."""

    default: float | int
    searched: Dimension | None = None


def _log(low: float, high: float) -> Float:
    """Return the range 10^low .. 10^high, uniform in the logarithm."""
    return Float(low=10**low, high=10**high, log=True)


_DISCRIMINATOR: Mapping[str, Hyperparameter] = {
    "weight": Hyperparameter(1.0, _log(-2.0, 2.0)),
    # DomainBed draws the two rates independently, each over 1.5 decades for networks that are pretrained
    "discriminator_lr": Hyperparameter(1.0, _log(-1.5, 1.5)),
    "width": Hyperparameter(256, Int(low=64, high=1024, log=True)),
    "depth": Hyperparameter(3, Choice(values=(3, 4, 5))),
    "dropout": Hyperparameter(0.0, Choice(values=(0.0, 0.1, 0.5))),
}
_ALTERNATING: Mapping[str, Hyperparameter] = {
    **_DISCRIMINATOR,
    "d_steps": Hyperparameter(1, Int(low=1, high=7, log=True)),
    "grad_penalty": Hyperparameter(0.0, _log(-2.0, 1.0)),
}

PUBLISHED: Mapping[str, Mapping[str, Hyperparameter]] = MappingProxyType(
    {
        "erm": {},
        # reversal is Ganin's form, which DomainBed does not have; the range of its weight is DomainBed's
        "dann": {**_DISCRIMINATOR, "ceiling": Hyperparameter(1.0)},
        "dann-source": {"weight": Hyperparameter(0.6), "discriminator_lr": Hyperparameter(1.0)},
        "dann-alternating": _ALTERNATING,
        "cdann": _ALTERNATING,
        "coral": {"weight": Hyperparameter(1.0, _log(-1.0, 1.0))},
        "mmd": {"weight": Hyperparameter(1.0, _log(-1.0, 1.0))},
        "irm": {
            "weight": Hyperparameter(100.0, _log(-1.0, 5.0)),
            "anneal": Hyperparameter(0.1, Float(low=2e-4, high=1.0, log=True)),
        },
        "vrex": {
            "weight": Hyperparameter(10.0, _log(-1.0, 5.0)),
            "anneal": Hyperparameter(0.1, Float(low=2e-4, high=1.0, log=True)),
        },
        "groupdro": {"eta": Hyperparameter(0.01, _log(-3.0, -1.0))},
        "mixup": {"alpha": Hyperparameter(0.2, _log(-1.0, 1.0))},
        # from its paper; not in DomainBed
        "mixstyle": {"alpha": Hyperparameter(0.1)},
        "sagnet": {"weight": Hyperparameter(0.1, _log(-2.0, 1.0))},
        "fishr": {
            "weight": Hyperparameter(1000.0, _log(1.0, 4.0)),
            "anneal": Hyperparameter(0.3, Float(low=0.0, high=1.0)),
            "decay": Hyperparameter(0.95, Float(low=0.9, high=0.99)),
        },
    }
)
"""Hyperparameters of each algorithm, by the names of `AlgorithmConfig`."""

PRETRAINED: Space = MappingProxyType(
    {"optim.lr": _log(-5.0, -3.5), "optim.weight_decay": _log(-6.0, -2.0)}
)
"""What DomainBed searches beside every algorithm for networks that are pretrained."""

SMALL: Space = MappingProxyType({"optim.lr": _log(-4.5, -2.5)})
"""The same for its small networks of digits, which learn from nothing and without weight decay."""


def domainbed_space(name: AlgorithmName, shared: Space = PRETRAINED) -> Space:
    """Return what DomainBed's random search draws for an algorithm, by the settings of a task.

    Draws of its penalty's beginning beyond the end of the run are the end here.
    """
    own = {
        f"algorithm.{field}": entry.searched
        for field, entry in PUBLISHED[name].items()
        if entry.searched is not None
    }
    return {**shared, **own}
