"""How much of a network is trained, when, and how fast.

A regime gives every block of a network a factor on the learning rate at each point of the run; 0 is
frozen. The head stands behind the last block and learns at the full rate, or faster where it learns alone. What is frozen
keeps its weights, its statistics of batch normalisation, and drops nothing out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval
from torch import nn

from assay.config import Settings
from assay.errors import ConfigError
from assay.nn.optim import Multiplier

Blocks = Sequence[Sequence[str]]
"""Names of parameters by block, from input to output."""


@dataclass(frozen=True, kw_only=True)
class RegimeConfig(Settings, section="regime"):
    """How much of the network is trained; the head always is."""

    regime: Literal["scratch", "features", "partial", "full", "lp-ft", "layerwise", "gradual"] = (
        "scratch"
    )
    """All of it from random weights, the head alone, the last blocks, all, the head first and then all (Kumar et al. 2022), all but lower blocks slower, or from the head down one block after another (Howard and Ruder 2018)."""
    blocks: Annotated[int, Interval(ge=1, le=1000)] = 1
    """Last blocks that partial trains."""
    body_lr: Annotated[float, Interval(gt=0, le=100)] = 0.1
    """Learning rate below the head as a multiple of optim.lr, once it is trained there."""
    head_lr: Annotated[float, Interval(gt=0, le=1000)] = 10.0
    """Learning rate of the head as a multiple of optim.lr, in features, where nothing else moves and the same rate leaves it behind a logistic regression."""
    decay: Annotated[float, Interval(gt=0, le=1)] = 0.75
    """Learning rate of each block as a multiple of the next block's or the head's, in layerwise."""
    statistics: Literal["kept", "moved"] = "kept"
    """What batch normalisation goes by in blocks that are trained: the statistics that the weights came with, or each batch's own; these change the features under a head that has learnt already."""
    head_share: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    """Share of the run in which lp-ft trains the head alone."""
    unfrozen_by: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    """Share of the run after which gradual trains every block."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        used = {
            "blocks": ("partial",),
            "body_lr": ("partial", "full", "lp-ft", "gradual"),
            "head_lr": ("features",),
            "statistics": ("partial", "full", "lp-ft", "layerwise", "gradual"),
            "decay": ("layerwise",),
            "head_share": ("lp-ft",),
            "unfrozen_by": ("gradual",),
        }
        return {
            name: f"regime.regime is {self.regime}"
            for name, regimes in used.items()
            if self.regime not in regimes
        }

    @property
    def head_rate(self) -> float:
        """Factor on the learning rate of the head."""
        return self.head_lr if self.regime == "features" else 1.0

    @property
    def settled_by(self) -> float:
        """Share of the run after which nothing more is unfrozen."""
        return {"lp-ft": self.head_share, "gradual": self.unfrozen_by}.get(self.regime, 0.0)

    @property
    def keeps_statistics(self) -> bool:
        """Whether batch normalisation goes by the statistics that the weights came with."""
        return self.regime != "scratch" and self.statistics == "kept"

    def rates(self, num_blocks: int, progress: float) -> list[float]:
        """Return the factor on the learning rate of each block below the head, from input to output; 0: frozen."""
        if self.regime == "scratch":
            return [1.0] * num_blocks
        depths = range(num_blocks, 0, -1)  # 1: the block below the head
        if self.regime == "layerwise":
            return [self.decay**depth for depth in depths]
        if self.regime == "gradual":
            num_trained = int(progress / self.unfrozen_by * num_blocks)
        elif self.regime == "lp-ft":
            num_trained = num_blocks if progress >= self.head_share else 0
        else:
            num_trained = {"features": 0, "partial": self.blocks, "full": num_blocks}[self.regime]
        return [self.body_lr if depth <= num_trained else 0.0 for depth in depths]


def freeze(config: RegimeConfig, network: nn.Module, blocks: Blocks) -> None:
    """Say of the parameters that never move that they need no gradient.

    Raises:
        ConfigError: partial asks for more blocks than there are.
    """
    if config.regime == "partial" and config.blocks > len(blocks):
        raise ConfigError(
            f"--regime.blocks {config.blocks} is not possible: the network has {len(blocks)} blocks; "
            f"give 1 to {len(blocks)}, or --regime.regime full."
        )
    parameters = dict(network.named_parameters())
    for names, rate in zip(blocks, config.rates(len(blocks), 1.0), strict=True):
        for name in names:
            parameters[name].requires_grad_(rate > 0)


def find_parts(network: nn.Module, blocks: Blocks) -> list[list[str]]:
    """Return what each block is made of: the largest modules that are all its own, and single parameters.

    Modules are named by their path and a dot ("stages.0."), so that each name is the beginning of
    the names of its parameters and of no other block's.
    """
    number = {name: index for index, names in enumerate(blocks) for name in names}
    parts: list[list[str]] = [[] for _ in blocks]

    def visit(module: nn.Module, path: str) -> None:
        numbers = {number[f"{path}{name}"] for name, _ in module.named_parameters()}
        if len(numbers) == 1:
            parts[numbers.pop()].append(path)
            return
        for name, _ in module.named_parameters(recurse=False):
            parts[number[f"{path}{name}"]].append(f"{path}{name}")
        for name, child in module.named_children():
            visit(child, f"{path}{name}.")

    visit(network, "")
    return parts


def multipliers(
    parts: Blocks, rates: Sequence[float], prefix: str = "network."
) -> Mapping[str, Multiplier]:
    """Return the factor on the learning rate of each part, by what the names of its parameters begin with."""
    return {
        f"{prefix}{name}": Multiplier(lr=rate)
        for names, rate in zip(parts, rates, strict=True)
        for name in names
    }


def rest(network: nn.Module, parts: Blocks, rates: Sequence[float], keeps: bool) -> None:
    """Put what is frozen in eval mode, where no statistics move and nothing is dropped out; if so asked, all statistics."""
    if not any(rates):
        network.eval()
    for module in network.modules() if keeps else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    for names, rate in zip(parts, rates, strict=True):
        for path in names if rate == 0 else ():
            if path.endswith("."):
                network.get_submodule(path.removesuffix(".")).eval()
