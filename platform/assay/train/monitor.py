"""Monitors: what goes wrong while a run trains, and nobody notices who does not look for it.

Each answers to a bug found in a published system. What cannot become right again stops the run
with a sentence; what may be meant is a warning, written to run.json. They look at numbers that the
loop has anyway: none waits for a device, and all workers see the same and stop together.

    at an update    loss not finite, without gradient, or exploding; dead schedule; a task's limits
    at a look       modules in training mode, predictions not finite, logits that are constant or probabilities;
                    at a launch's first look also: predictions that are noisy or depend on the batch
    at the end      parameters and loss terms that never had a gradient, one class said to all

Thresholds are no part of a run's identity: they change whether it goes on, not what it computes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from assay.errors import ConfigError, RunError
from assay.nn.optim import Multiplier, OptimConfig
from assay.shapes import Int, Shaped

MAX_NONFINITE = 3
"""Updates in a row whose loss or gradient is not finite."""

MAX_WITHOUT_GRADIENT = 10
"""Updates in a row whose gradient is exactly 0, or None, for every parameter."""

LEVEL_UPDATES = 20
"""First updates of a run, once its loss has its last form, whose mean loss is the level that it began at."""

EXPLODED_FACTOR = 10.0
"""A loss has exploded this many times the level (at least 1) above the level."""

EXPLODED_UPDATES = 50
"""Updates with an exploded loss, less those without one since."""

SCHEDULE_REACH = 0.2
"""Share of the highest rate by which a rate may miss the schedule's top and its bottom."""

SCHEDULE_UPDATES = 5
"""A schedule that falls for fewer updates is too short to be checked."""

CONSTANT_STD = 1e-5
"""Standard deviation over the rows of val below which a logit is constant."""

CONSTANT_LOOKS = 3
"""Looks at val in a row with constant logits."""

PROBS_TOLERANCE = 1e-4
"""Logits in 0..1 whose rows sum to 1 within this are probabilities."""

REPEAT_TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}
"""Change of a column, as a share of its largest value, that rounding explains, by precision."""

NAMES_SHOWN = 4
"""Parameters or modules named in one sentence."""


@dataclass(frozen=True)
class Limit:
    """Bounds that a task sets to a scalar which its forward logs (mean over the global batch).

    Raises:
        ConfigError: no value is within the bounds, or they are for no update.
    """

    name: str
    _: KW_ONLY
    low: float = -math.inf
    """Smallest value that is right."""
    high: float = math.inf
    """Largest value that is right."""
    for_updates: int = 50
    """Updates beyond the bounds, less those within them since, before something is done; those that do not log it do not count."""
    then: Literal["stop", "warn"] = "stop"
    """What is done."""
    why: str
    """What it means and what to do, to end the sentence."""

    def __post_init__(self) -> None:
        """Refuse bounds that nothing meets."""
        if not self.low < self.high or self.for_updates < 1:
            raise ConfigError(
                f"The limit on {self.name!r} is {self.low} to {self.high} for {self.for_updates} updates; "
                "give low < high and at least 1 update."
            )


@dataclass
class MonitorState:
    """What the monitors remember; part of every checkpoint, so that a resumed run stops where another would."""

    nonfinite: int = 0
    without_gradient: int = 0
    level: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Sum and number of the first losses."""
    exploded: int = 0
    constant: int = 0
    beyond: list[int] = field(default_factory=list)
    """Updates beyond each limit, less those within since; -1: its warning has been given."""
    terms: dict[str, bool] = field(default_factory=dict)
    """Whether a term of the loss ever carried a gradient."""


class Monitor:
    """Watches one run.

    Args:
        optim: the schedule that was asked for.
        limits: what the task says of its own scalars.
        total: updates of the whole run.
        classes: class names.
        warn: takes each warning, a sentence.
        settles: share of the run after which the loss has its last form.
    """

    def __init__(
        self,
        optim: OptimConfig,
        limits: Sequence[Limit],
        total: int,
        classes: Sequence[str],
        warn: Callable[[str], None],
        settles: float = 0.0,
    ) -> None:
        self.optim, self.limits, self.total = optim, limits, total
        self.settled_at = settles * total
        self.classes, self.warn = classes, warn
        self.state = MonitorState(beyond=[0] * len(limits))
        self.limited = sorted({limit.name for limit in limits})
        self.predicted: set[int] = set()
        """Classes that the last look at val predicted, where val has several."""

    def check_graph(self, outputs: Mapping[str, Tensor], phase: str) -> None:
        """Check that what a forward pass returned can teach something, before its backward pass.

        Raises:
            RunError: no gradient can flow from the loss.
        """
        # a new tensor with requires_grad passes backward, and teaches nothing
        if outputs["loss"].grad_fn is None:
            raise RunError(
                f"The loss of phase {phase!r} carries no gradient, so nothing can learn from it; "
                "compute it from the model's output without detach, argmax or torch.tensor."
            )
        for name, value in outputs.items():
            if name.endswith("_loss"):
                taught = self.state.terms.get(name, False)
                self.state.terms[name] = taught or value.grad_fn is not None

    def check_rates(
        self, step: int, optimizer: torch.optim.Optimizer, prefixes: Mapping[str, Multiplier]
    ) -> None:
        """Check the rates of update `step` (from 0) where the schedule is at its top and bottom.

        Raises:
            RunError: they are not there.
        """
        optim = self.optim
        falling = self.total * (1 - optim.warmup)
        peak = math.ceil(optim.warmup * self.total)
        if optim.schedule == "constant" or falling < SCHEDULE_UPDATES:
            return
        if step not in (peak, self.total - 1):
            return
        shares = []
        for group in optimizer.param_groups:
            multiplier = prefixes.get(group["prefix"], Multiplier())
            if multiplier.lr:
                shares.append(group["lr"] / optim.lr / multiplier.lr)
        low, high = 1 - SCHEDULE_REACH, optim.final_factor + SCHEDULE_REACH
        # a rate that is not a number is wrong at both
        if step == peak:
            extreme, wrong = "highest", [share for share in shares if not share >= low]
        else:
            extreme, wrong = "lowest", [share for share in shares if not share <= high]
        if wrong:
            raise RunError(
                f"The learning rate is {wrong[0]:.2g} times --optim.lr at update {step + 1} of {self.total}, "
                f"where the schedule {optim.schedule} is at its {extreme}; it does not step with the updates, which is a bug of the loop: report it."
            )

    def check_update(
        self, step: int, loss: float, norm: float, scaled: bool, limited: Mapping[str, float]
    ) -> None:
        """Check one update.

        Args:
            step: updates done, this one included.
            loss: mean over the global batch.
            norm: of the gradient, before clipping.
            scaled: the loss is scaled, and updates with too large a scale are skipped by design.
            limited: the scalars of `limits` that were logged, means over the global batch.

        Raises:
            RunError: the loss is not finite, has no gradient or explodes, or a limit says stop.
        """
        state = self.state
        finite = math.isfinite(loss) and (math.isfinite(norm) or scaled)
        state.nonfinite = 0 if finite else state.nonfinite + 1
        if state.nonfinite >= min(MAX_NONFINITE, self.total):
            raise RunError(
                f"The loss or its gradient was not finite in {state.nonfinite} updates in a row up to step {step}; "
                "lower --optim.lr, or set --optim.grad-clip or --train.precision fp32."
            )
        state.without_gradient = state.without_gradient + 1 if norm == 0 else 0
        if state.without_gradient >= MAX_WITHOUT_GRADIENT:
            raise RunError(
                f"No parameter had a gradient in {MAX_WITHOUT_GRADIENT} updates in a row up to step {step}; "
                "make the loss depend on what is trained, and see that param_groups does not freeze all of it."
            )
        self._check_level(step, loss)
        for index, limit in enumerate(self.limits):
            if limit.name in limited and state.beyond[index] >= 0:
                self._check_limit(step, index, limited[limit.name])

    def _check_level(self, step: int, loss: float) -> None:
        state = self.state
        total, num = state.level
        if step <= self.settled_at:
            return
        if num < LEVEL_UPDATES:
            state.level = [total + loss, num + 1] if math.isfinite(loss) else state.level
            return
        level = total / num
        bound = level + EXPLODED_FACTOR * max(abs(level), 1.0)
        state.exploded = _leaky(state.exploded, loss > bound)
        if state.exploded >= EXPLODED_UPDATES:
            raise RunError(
                f"The loss is {loss:.3g} at step {step} and was above {bound:.3g} for {EXPLODED_UPDATES} updates, it began at {level:.3g}; "
                "lower --optim.lr, set --optim.grad-clip, or bound the term that grows."
            )

    def _check_limit(self, step: int, index: int, value: float) -> None:
        limit, beyond = self.limits[index], self.state.beyond
        # a value that is not a number is within no bounds
        beyond[index] = _leaky(beyond[index], not limit.low <= value <= limit.high)
        if beyond[index] < limit.for_updates:
            return
        bound = f"below {limit.low:.4g}" if value < limit.low else f"above {limit.high:.4g}"
        text = f"{limit.name} is {value:.4g} at step {step}, {bound} for {limit.for_updates} updates: {limit.why}"
        if limit.then == "stop":
            raise RunError(text)
        beyond[index] = -1
        self.warn(text)

    def check_look(
        self,
        module: nn.Module,
        columns: Mapping[str, Shaped[np.ndarray, "num ..."]],
        truth: Int[np.ndarray, " num"],
    ) -> None:
        """Check one look at val by its predicted columns; there are no `logits` where answers are no classes of images.

        Raises:
            RunError: a module is in training mode, a prediction is not finite, or the logits are probabilities or constant.
        """
        training = [name or "the task" for name, m in module.named_modules() if m.training]
        if training:
            raise RunError(
                f"{_some(training)} judged val in training mode; call no train() in predict, and let eval() through to every module."
            )
        for name, column in columns.items():
            if not np.isfinite(column).all():
                raise RunError(
                    f"The predicted {name} of val are not finite, so the weights have grown beyond all numbers; lower --optim.lr, or set --optim.grad-clip or --train.precision fp32."
                )
        if "logits" not in columns:
            return
        logits = columns["logits"]
        if logits.min() >= 0 and np.all(np.abs(logits.sum(1) - 1) <= PROBS_TOLERANCE):
            raise RunError(
                f"The logits of val are probabilities (0 or more, {logits.shape[1]} in a row sum to 1), and would go through a softmax twice; "
                "leave the softmax out of the model, in forward and in predict."
            )
        constant = len(logits) > 1 and bool(np.all(logits.std(0, dtype=np.float64) < CONSTANT_STD))
        self.state.constant = self.state.constant + 1 if constant else 0
        if self.state.constant >= CONSTANT_LOOKS:
            raise RunError(
                f"The logits were the same for all {len(logits)} rows of val at {CONSTANT_LOOKS} looks in a row, so the model ignores its images; "
                "lower --optim.lr, or see what becomes of them in prepare and forward."
            )
        has_several = len(np.unique(truth)) > 1
        self.predicted = set(logits.argmax(1).tolist()) if has_several else set()

    def check_end(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Warn, when all updates are done, of what never learnt; every rank must call it."""
        untaught, num = _without_gradient(module, optimizer)
        if untaught:
            self.warn(
                f"{len(untaught)} of {num} trained parameters never had a gradient: {_some(untaught)}; "
                "connect them to the loss, or say requires_grad_(False)."
            )
        for name, taught in self.state.terms.items():
            if not taught:
                self.warn(
                    f"The loss term {name} never carried a gradient, so it taught nothing; compute it without detach, argmax or torch.tensor, "
                    "or log it by a name that does not end in _loss."
                )
        if len(self.predicted) == 1:
            self.warn(
                f"At the last look every row of val was said to be {self.classes[min(self.predicted)]!r}, though val has several classes; "
                "train longer, or balance the classes."
            )


def check_repeat(
    again: Mapping[str, float], among_copies: Mapping[str, float], precision: str
) -> None:
    """Refuse columns of one batch that move more than rounding explains.

    Args:
        again: how far each moved, as a share of its largest value, when the batch was predicted
            once more.
        among_copies: in the first row, when copies of it took the place of the other rows.
        precision: arithmetic of the forward pass.

    Raises:
        RunError: a column moved by more.
    """
    tolerance = REPEAT_TOLERANCE[precision]
    endings = (
        (again, "when the same batch is predicted again; draw nothing at random in predict."),
        (
            among_copies,
            "when other rows stand beside the same row; in predict use stored statistics, as batch normalisation does in eval mode.",
        ),
    )
    for moves, ending in endings:
        for name, gap in moves.items():
            if gap > tolerance:
                raise RunError(
                    f"The predicted {name} of val change by {gap:.2g} of their size {ending}"
                )


def _without_gradient(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[str], int]:
    """Name the trained parameters that never had a gradient on any worker; return also how many are trained."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    reached = torch.tensor([_is_reached(p, optimizer) for _, p in named], device=named[0][1].device)
    if dist.is_initialized():
        counts = reached.int()  # a sharded parameter is reached where one shard is
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        reached = counts.bool()
    flags = reached.tolist()
    return [name for (name, _), flag in zip(named, flags, strict=True) if not flag], len(named)


def _is_reached(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the optimiser's second moment remembers a gradient; only adam's weight decay leaves a trace there."""
    state = optimizer.state.get(parameter)
    if not state:
        return False
    moment: Tensor = state["exp_avg_sq"]
    local = moment.to_local() if isinstance(moment, DTensor) else moment
    # the gradient of a bias before a normalisation is 0 by nature
    return parameter.ndim < 2 or bool(local.any())


def _leaky(count: int, wrong: bool) -> int:
    """Count up while something is wrong and down again while it is not, as noisy values need."""
    return count + 1 if wrong else max(count - 1, 0)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
