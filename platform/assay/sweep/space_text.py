"""A search space as text: dimensions on the command line, merged and checked."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.config import Settings
from assay.errors import ConfigError
from assay.space import (
    MAX_POINTS,
    Choice,
    Dimension,
    Float,
    Int,
    Rounded,
    Space,
    Value,
    change,
    value_of,
)

LARGEST = 1e15
"""Largest end of a range, below which whole numbers are whole as floats too."""


NEVER = ("data", "split", "decide", "train.seed")
"""Settings, or groups of them, that no sweep may choose."""


def parse(text: str, config: Settings) -> tuple[str, Dimension]:
    """Read a dimension as the command line writes it; see `assay.space`.

    Raises:
        ConfigError: it is not of that form, or does not fit the setting.
    """
    name, _, rest = text.partition("=")
    name = name.strip().replace("-", "_")
    if not rest:
        raise ConfigError(
            f"The search space has {text!r}; write SETTING=LOW..HIGH, SETTING=LOW..HIGH,log or SETTING=A|B|C."
        )
    default = value_of(config, name)
    if ".." in rest:
        ends, _, kind = rest.partition(",")
        if kind not in ("", "log") or ".." not in ends:
            raise ConfigError(
                f"The search space has {text!r}; after the range only ,log is allowed, and numbers have a point."
            )
        if "..." in ends:
            raise ConfigError(
                f"The search space has {text!r}, whose third point may begin a number; write two between the ends, such as 0..0.5."
            )
        low, high = (parse_scalar(end) for end in ends.split("..", 1))
        return name, make_range(name, low, high, log=kind == "log", whole=is_whole(default))
    return name, make_choice(name, [parse_scalar(value.strip()) for value in rest.split("|")])


def parse_all(texts: Sequence[str], config: Settings) -> Space:
    """Read dimensions of distinct settings.

    Raises:
        ConfigError: as `parse`, or a setting is named twice.
    """
    space: dict[str, Dimension] = {}
    for text in texts:
        name, dimension = parse(text, config)
        if name in space:
            raise ConfigError(
                f"The search space names {name} twice, the second time as {text!r}; name it once."
            )
        space[name] = dimension
    return space


def parse_scalar(text: Any) -> Any:
    """Read a value as it is written: whole number, number, true or false, or text (YAML takes 1e-4 for text)."""
    if not isinstance(text, str):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


def is_whole(value: Any) -> bool:
    """Tell a whole number from a truth value, which Python counts among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def make_range(
    name: str, low: Any, high: Any, *, log: bool = False, whole: bool, q: Any = None
) -> Dimension:
    """Make a range between two values, of multiples of `q` where that is given.

    Raises:
        ConfigError: they are no numbers, in the wrong order, or not positive where log is asked for;
            or the step is none, or too fine.
    """
    ends = [low, high] if q is None else [low, high, q]
    if not all(map(_is_number, ends)):
        shown = ", ".join(reprlib.repr(end) for end in ends)
        raise ConfigError(
            f"The range of {name} is {shown}; give numbers between -{LARGEST:g} and {LARGEST:g}, or a choice A|B|C."
        )
    if not low < high or (log and low <= 0):
        raise ConfigError(
            f"The range of {name} is {low:g} to {high:g}{', log' if log else ''}; the low end must be below the high one, and above 0 for log."
        )
    if q is not None and not 0 < (high - low) / MAX_POINTS <= q:
        raise ConfigError(
            f"The step of {name} is {q:g} from {low:g} to {high:g}; give one above 0 that has at most {MAX_POINTS} multiples there."
        )
    if whole and any(float(end) != int(end) for end in ([low, high] if q is None else [q])):
        raise ConfigError(
            f"The range of {name} is {low} to {high}{'' if q is None else f' by {q}'}; the setting is a whole number."
        )
    if q is not None:
        return Rounded(low=float(low), high=float(high), log=log, q=float(q), whole=whole)
    if whole:
        return Int(low=int(low), high=int(high), log=log)
    return Float(low=float(low), high=float(high), log=log)


def make_choice(name: str, values: Sequence[Any]) -> Choice:
    """Make a choice of distinct values: one that stands twice would be tried twice as often.

    Raises:
        ConfigError: two are equal.
    """
    kinds = [(isinstance(value, bool), value) for value in values]  # 1 is no true
    twice = next((pair for place, pair in enumerate(kinds) if pair in kinds[:place]), None)
    if twice is not None:
        raise ConfigError(f"The parameter {name} has the value {twice[1]!r} twice; give each once.")
    return Choice(values=tuple(values))


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= LARGEST  # which nan is not


def extremes(dimension: Dimension) -> Sequence[Value]:
    """Return all values of a choice, and the two ends of a range."""
    levels = dimension.levels()
    return levels if isinstance(dimension, Choice) else (levels[0], levels[-1])


def merge(space: Space, changes: Mapping[str, Dimension]) -> Space:
    """Replace or add dimensions; a replaced one keeps its condition."""
    dimensions = dict(space)
    for name, dimension in changes.items():
        when = dimension.when or (space[name].when if name in space else {})
        dimensions[name] = replace(dimension, when=when)
    return dimensions


def refuse_fixed(name: str) -> None:
    """Refuse a setting that no sweep may choose.

    Raises:
        ConfigError: it is of data, split, judging, or the seed.
    """
    if name in NEVER or name.split(".")[0] in NEVER:
        raise ConfigError(
            f"The search space has {name!r}; data, split, seeds and judging are not searched: fix it on the command line, "
            "and repeat a sweep over folds or seeds."
        )


def check(space: Space, config: Settings) -> None:
    """Refuse what could not be run.

    Raises:
        ConfigError: the space is empty, names no setting or one that is never searched, or an end
            of it is not allowed.
    """
    for name, dimension in space.items():
        refuse_fixed(name)
        value_of(config, name)
        for condition in dimension.when:
            value_of(config, condition)
        for value in extremes(dimension):
            try:
                change(config, {name: value})
            except ConfigError as error:
                raise ConfigError(
                    f"The search space has {value!r} for {name}, which the task refuses: {error}"
                ) from None
    if not any(len(dimension.levels()) > 1 for dimension in space.values()):
        raise ConfigError(
            "The search space has no setting with more than one value; give one by --space, such as --space optim.lr=1e-4..1e-2,log."
        )
