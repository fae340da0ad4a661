"""The search space of a sweep: which settings vary, over what, and under which condition.

A task declares its own (`Task.space`); the command line and files change it:

    optim.lr=1e-4..1e-2,log        a range; whole numbers where the setting is one
    model.k=2|4|8                  a choice
    model.k=4                      one value, which takes the setting out of the search

A dimension may hold for some values of another setting alone (`when`), so what is drawn next
depends on what was drawn before (define by run). Settings of data, split and judging are never
searched: folds and seeds are repeated, not chosen.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar, runtime_checkable

from assay.config import Settings, from_dict, to_dict
from assay.errors import ConfigError

NUM_LEVELS = 3
"""Values of a range in a grid: its ends and its middle."""


MAX_POINTS = 10_000
"""Points of a grid."""


Value = str | int | float | bool


S = TypeVar("S", bound=Settings)


@runtime_checkable
class Suggester(Protocol):
    """What Optuna's trial can do, as far as it is needed here."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Draw a number."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """Draw a whole number."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        """Draw one of the choices."""
        ...


@dataclass(frozen=True, kw_only=True)
class Float:
    """A range of numbers, both ends included."""

    low: float
    high: float
    log: bool = False
    """Draw uniformly in the logarithm."""
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Settings and the values of them under which this one is drawn."""

    def sample(self, name: str, suggester: Suggester) -> float:
        """Draw a value."""
        return suggester.suggest_float(name, self.low, self.high, log=self.log)

    def levels(self) -> Sequence[Value]:
        """Return the values of a grid."""
        shares = [i / (NUM_LEVELS - 1) for i in range(NUM_LEVELS)]
        if self.log:
            return [self.low * (self.high / self.low) ** share for share in shares]
        return [self.low + (self.high - self.low) * share for share in shares]


@dataclass(frozen=True, kw_only=True)
class Int:
    """A range of whole numbers, both ends included."""

    low: int
    high: int
    log: bool = False
    """Draw uniformly in the logarithm."""
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Settings and the values of them under which this one is drawn."""

    def sample(self, name: str, suggester: Suggester) -> int:
        """Draw a value."""
        return suggester.suggest_int(name, self.low, self.high, log=self.log)

    def levels(self) -> Sequence[Value]:
        """Return the values of a grid: all of them."""
        return range(self.low, self.high + 1)


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Multiples of a step: a number of a range is drawn, and rounded to the nearest; 0.5 .. 10 by 4 gives 0, 4, 8."""

    low: float
    high: float
    log: bool = False
    """Draw uniformly in the logarithm."""
    q: float
    """The step."""
    whole: bool
    """Whether the setting is a whole number, as the step is then."""
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Settings and the values of them under which this one is drawn."""

    def sample(self, name: str, suggester: Suggester) -> float | int:
        """Draw a value; what is suggested is the number before it is rounded."""
        return self.round(suggester.suggest_float(name, self.low, self.high, log=self.log))

    def round(self, number: float) -> float | int:
        """Return the nearest multiple."""
        return self._multiple(round(number / self.q))

    def before(self, multiple: float) -> float:
        """Return a number of the range that is rounded to this multiple."""
        return min(max(multiple, self.low), self.high)

    def levels(self) -> Sequence[Value]:
        """Return the values of a grid: all of them."""
        first, last = round(self.low / self.q), round(self.high / self.q)
        return [self._multiple(i) for i in range(first, last + 1)]

    def _multiple(self, times: int) -> float | int:
        return int(times * self.q) if self.whole else float(f"{times * self.q:.12g}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a few values."""

    values: tuple[Value, ...]
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Settings and the values of them under which this one is drawn."""

    def sample(self, name: str, suggester: Suggester) -> Value:
        """Draw a value; a single one is no draw."""
        if len(self.values) == 1:
            return self.values[0]
        choice: Value = suggester.suggest_categorical(name, self.values)
        return choice

    def levels(self) -> Sequence[Value]:
        """Return the values of a grid."""
        return self.values


Dimension = Float | Int | Rounded | Choice


Space = Mapping[str, Dimension]


def sample(space: Space, config: Settings, suggester: Suggester) -> dict[str, Value]:
    """Draw one value for each setting whose condition holds, in the order of the space."""
    drawn: dict[str, Value] = {}
    for name, dimension in space.items():
        if _holds(dimension, drawn, config):
            drawn[name] = dimension.sample(name, suggester)
    return drawn


def grid(space: Space, config: Settings) -> list[dict[str, Value]]:
    """List all combinations of the levels, each once; settings whose condition fails are left out."""
    points: dict[Any, dict[str, Value]] = {}
    for levels in combinations(space):
        point: dict[str, Value] = {}
        for (name, dimension), level in zip(space.items(), levels, strict=True):
            if _holds(dimension, point, config):
                point[name] = level
        points.setdefault(tuple(point.items()), point)
    return list(points.values())


def combinations(space: Space) -> Iterator[tuple[Value, ...]]:
    """Combine the levels of all dimensions.

    Raises:
        ConfigError: they are more than anybody trains.
    """
    levels = [dimension.levels() for dimension in space.values()]
    num = math.prod(map(len, levels))
    if num > MAX_POINTS:
        raise ConfigError(
            f"The grid of {', '.join(space)} has {num:.3g} points; give fewer values, at most {MAX_POINTS} in all."
        )
    return itertools.product(*levels)


def rounded(space: Space, drawn: Mapping[str, Value]) -> dict[str, Value]:
    """Return what was suggested as the settings had it."""
    values = dict(drawn)
    for name, dimension in space.items():
        if isinstance(dimension, Rounded) and name in values:
            values[name] = dimension.round(float(values[name]))
    return values


def _holds(dimension: Dimension, drawn: Mapping[str, Value], config: Settings) -> bool:
    return all(
        (drawn[name] if name in drawn else value_of(config, name)) in allowed
        for name, allowed in dimension.when.items()
    )


def value_of(config: Settings, name: str) -> Any:
    """Return the value of a setting by its dotted name.

    Raises:
        ConfigError: there is no such setting, or it is a group of them.
    """
    value: Any = config
    for part in name.split("."):
        names = [entry.name for entry in fields(value)] if isinstance(value, Settings) else []
        if part not in names:
            allowed = _listed(names) or "nothing below it"
            raise ConfigError(
                f"There is no setting {name!r}: at {part!r} the settings have {allowed}; name one as the command line does, such as optim.lr."
            )
        value = getattr(value, part)
    if isinstance(value, Settings):
        names = [entry.name for entry in fields(value)]
        raise ConfigError(f"{name!r} is a group of settings; name one of {_listed(names)} in it.")
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names).replace("_", "-")


def change(config: S, values: Mapping[str, Any]) -> S:
    """Return the settings with other values by their dotted names.

    Raises:
        ConfigError: there is no such setting, or its value is not allowed.
    """
    tree = to_dict(config)
    for name, value in values.items():
        if isinstance(value_of(config, name), tuple) and not isinstance(value, list | tuple):
            raise ConfigError(
                f"{name} takes several values, and a sweep varies settings of one; set it for all as an option, --{name.replace('_', '-')}."
            )
        *groups, last = name.split(".")
        branch = tree
        for group in groups:
            branch = branch[group]
        branch[last] = value
    return from_dict(type(config), tree)
