"""Settings: frozen dataclasses, to JSON and back, and the fingerprint of what they say.

A configuration says *what* is computed and is part of a run's identity. *Where* it is computed
(workers, devices, folders) is a different dataclass, in `run.py`, and is not.
"""

import hashlib
import json
import math
import operator
import reprlib
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from numbers import Real
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MaxLen, MinLen, MultipleOf

from assay.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Share = Annotated[float, Interval(ge=0, le=1)]
"""A probability, or a part of a whole."""

Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
"""What random numbers begin with."""


_MET: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    Ge: ("at least", operator.ge),
    MinLen: ("at least", operator.ge),
    Gt: ("above", operator.gt),
    Le: ("at most", operator.le),
    MaxLen: ("at most", operator.le),
    Lt: ("below", operator.lt),
    MultipleOf: ("a multiple of", lambda number, step: number % step == 0),
}
"""What an annotation asks for, in words and as a test."""


S = TypeVar("S", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of every configuration: fields are documented in place, unknown keys are refused.

    A field's range stands in its annotation. A class that has a section of its own in a task's
    configuration names it, so that options are called as on the command line.

    Raises:
        ConfigError: a value is outside its field's range.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    _section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str | None = None) -> None:
        """Name the section; a class that names none takes its parent's."""
        super().__init_subclass__()
        if section is not None:
            cls._section = section

    def __post_init__(self) -> None:
        """Refuse values outside the ranges of their fields."""
        kind: Any = type(self)  # to mypy a class of settings is no key of a cache
        for name in read_ranges(kind) | read_entry_ranges(kind):
            _check(kind, name, getattr(self, name))

    def idle(self) -> dict[str, str]:
        """Name fields that have no effect beside the others' values, with why; dotted where they are of a section."""
        names: dict[str, str] = {}
        for field in fields(self):
            section = getattr(self, field.name)
            if isinstance(section, Settings):
                names |= {f"{field.name}.{name}": why for name, why in section.idle().items()}
        return names


def without_idle(settings: S) -> S:
    """Set fields that have no effect to their defaults, so that what computes the same is called the same."""
    defaults: Any = type(settings)()
    return replace(settings, **{name: getattr(defaults, name) for name in settings.idle()})


@cache
def read_ranges(kind: type[Settings]) -> dict[str, tuple[Any, ...]]:
    """Return the bounds of each field that has any, as they are annotated."""
    hints = get_type_hints(kind, include_extras=True)
    bounds = {name: _bounds(hint) for name, hint in hints.items()}
    return {name: notes for name, notes in bounds.items() if notes}


@cache
def read_entry_ranges(kind: type[Settings]) -> dict[str, tuple[Any, ...]]:
    """Return the bounds of the entries of each field that is a tuple of numbers with bounds."""
    bounds: dict[str, tuple[Any, ...]] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain = hint.__origin__ if get_origin(hint) is Annotated else hint
        if get_origin(plain) is tuple:
            bounds[name] = _bounds(get_args(plain)[0])
    return {name: notes for name, notes in bounds.items() if notes}


def _bounds(hint: Any) -> tuple[Any, ...]:
    notes: list[Any] = []
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for note in (note for part in parts for note in getattr(part, "__metadata__", ())):
        notes += note if isinstance(note, GroupedMetadata) else [note]
    return tuple(note for note in notes if type(note) in _MET)


def _check(kind: Any, name: str, value: Any) -> None:
    """Refuse a field's value, or an entry of it, that is outside its range."""
    if value is None:  # only a field that may be none holds it
        return
    option = f"{kind._section}.{name}".lstrip(".").replace("_", "-")
    _compare(option, value, read_ranges(kind).get(name, ()))
    entries = read_entry_ranges(kind).get(name, ())
    for entry in value if entries else ():
        _compare(option, entry, entries)


def _compare(option: str, value: Any, bounds: tuple[Any, ...]) -> None:
    if not bounds:
        return
    number, shown, must = value, f"is {reprlib.repr(value)}", "be"
    if isinstance(bounds[0], MinLen | MaxLen):
        number, shown, must = len(value), f"has {len(value)} entries", "have"
    asked = [(*_MET[type(bound)], *astuple(bound)) for bound in bounds]
    is_number = isinstance(number, Real) and (isinstance(number, int) or math.isfinite(number))
    if not is_number or not all(met(number, end) for _, met, end in asked):
        *first, last = [f"{phrase} {end}" for phrase, _, end in asked]
        words = f"{', '.join(first)} and {last}" if first else last
        finite = "" if is_number else "a finite number, "
        raise ConfigError(f"{option} {shown}; it must {must} {finite}{words}.")


def to_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain JSON values."""
    kind: Any = type(settings)  # to mypy a class of settings is no key of a cache
    dumped: dict[str, Any] = _adapter(kind).dump_python(settings, mode="json")
    return dumped


@cache
def _adapter(kind: type[S]) -> "TypeAdapter[S]":
    """Make what reads and writes settings of a kind, which takes as long as reading many."""
    from pydantic import TypeAdapter  # a bundle opens without it

    return TypeAdapter(kind)


def from_dict(kind: type[S], values: dict[str, Any]) -> S:
    """Rebuild settings of one kind from `to_dict`'s values.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type; names the first such key.
    """
    from pydantic import ValidationError  # a bundle opens without it

    hashable: Any = kind
    _refuse_misread(hashable, values)
    try:
        return _adapter(hashable).validate_python(values)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        if first["type"].startswith(("greater_than", "less_than", "multiple_of", "too_")):
            _check_at(kind, first["loc"], first["input"])
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"The setting {key!r} is {reprlib.repr(first['input'])}: {first['msg']}. "
            "Correct it, or remove it to take the default."
        ) from None


def _refuse_misread(kind: Any, values: Any) -> None:
    """Refuse true and false for a number, which would be 1 and 0, and an empty path, which would be the folder that one is in."""
    if not isinstance(values, dict):
        return
    for name, hint in _hints(kind).items():
        value = values.get(name)
        if isinstance(hint, type) and issubclass(hint, Settings):
            _refuse_misread(hint, value)
            continue
        option = f"{kind._section}.{name}".lstrip(".").replace("_", "-")
        if value == "" and Path in (hint, *get_args(hint)):
            raise ConfigError(
                f"{option} is an empty text; give a path, or null where there is none."
            )
        entries = value if isinstance(value, list | tuple) else [value]
        if bool not in (hint, *get_args(hint)) and any(isinstance(each, bool) for each in entries):
            raise ConfigError(
                f"{option} is {reprlib.repr(value)}, and true or false is no value of it; give one that is."
            )


@cache
def _hints(kind: type[Settings]) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_at(kind: Any, path: tuple[int | str, ...], value: Any) -> None:
    """Refuse a value outside its range by the sentence that its own class has for it."""
    *groups, name = path
    if isinstance(name, int) and groups:  # an entry of a tuple
        name, value = groups.pop(), (value,)
    for group in groups:
        kind = get_type_hints(kind).get(str(group)) if isinstance(kind, type) else None
    if isinstance(kind, type) and issubclass(kind, Settings):
        _check(kind, str(name), value)


def fingerprint(value: Any) -> str:
    """Return 12 hex digits that depend on the JSON form of `value` and on nothing else."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
