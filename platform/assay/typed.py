"""Frozen dataclasses from plain JSON values, and back.

A value must be of its field's type; nothing is coerced, except that a whole number may stand for a
number. What a file lacks takes the field's default, and keys that a class does not know are left
out, unless it has a field made by `rest()`, which holds them. It needs the standard library alone,
since a bundle is read by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    list: "a list",
    dict: "an object",
}
"""What JSON calls the values of a type."""


class MisfitError(ValueError):
    """A value that is not what its field must hold; says so in half a sentence."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"field {name!r} {problem}")

    @classmethod
    def of(cls, name: str, value: Any, wanted: str) -> "MisfitError":
        """Tell a value, cut to a few words, from what is wanted."""
        text = repr(value)
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        return cls(name, f"is {shown}; it must be {wanted}")


def rest() -> Any:
    """Make the field that holds the keys which its class does not name; they stay flat in the file."""
    return field(default_factory=dict, metadata={"rest": True})


def from_json(kind: type[T], value: Any) -> T:
    """Build a value of a type from plain JSON values; what is of the type already passes.

    Args:
        kind: a dataclass, or a type that its fields may have.
        value: what the file holds.

    Raises:
        MisfitError: a value is of another type, or a field without a default is missing.
    """
    built: T = _build(kind, value, "")
    return built


def _build(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if kind is Any or (is_dataclass(kind) and isinstance(value, kind)):  # type: ignore[arg-type]
        return value
    if is_dataclass(kind):
        return _build_fields(kind, value, name)
    if origin in (Union, UnionType):
        return _build_one_of(arguments, value, name)
    if origin is Literal:
        if value in arguments:
            return value
        raise MisfitError.of(name, value, " or ".join(map(repr, arguments)))
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        return _build_items(origin, arguments, value, name)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _build(arguments[1], item, _join(name, key)) for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    plain = {tuple: list, Sequence: list, Mapping: dict}.get(origin, origin)
    raise MisfitError.of(name, value, WORDS[plain])


def _build_fields(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise MisfitError.of(name, value, WORDS[dict])
    types, unknown, arguments = _types(kind), dict(value), {}
    for entry in fields(kind):
        path = _join(name, entry.name)
        if entry.name in value and not _is_rest(entry):
            arguments[entry.name] = _build(types[entry.name], unknown.pop(entry.name), path)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise MisfitError(path, "is missing")
    for entry in filter(_is_rest, fields(kind)):
        arguments[entry.name] = _build(types[entry.name], unknown, name)
    return kind(**arguments)


def _build_items(
    origin: Any, arguments: tuple[Any, ...], value: Sequence[Any], name: str
) -> Sequence[Any]:
    is_fixed = origin is tuple and arguments[-1] is not Ellipsis
    if is_fixed and len(value) != len(arguments):
        raise MisfitError.of(name, value, f"a list of {len(arguments)}")
    kinds = arguments if is_fixed else (arguments[0],) * len(value)
    pairs = enumerate(zip(kinds, value, strict=True))
    items = [_build(kind, item, _join(name, str(i))) for i, (kind, item) in pairs]
    return tuple(items) if origin is tuple else items


def _build_one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """Take null where it is allowed, else the first type that fits; of one type its own message."""
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    for kind in others[:-1]:
        try:
            return _build(kind, value, name)
        except MisfitError:
            continue
    return _build(others[-1], value, name)


def to_json(value: Any, sparse: bool = False) -> Any:
    """Return plain JSON values; if `sparse`, without the fields that have their defaults."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: to_json(item, sparse) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, sparse) for item in value]
    if not is_dataclass(value):
        return value
    plain: dict[str, Any] = {}
    for entry in fields(value):
        item = getattr(value, entry.name)
        if _is_rest(entry):
            plain |= item
        elif not (sparse and item == _default(entry)):
            plain[entry.name] = to_json(item, sparse)
    return plain


def _is_rest(entry: "Field[Any]") -> bool:
    return bool(entry.metadata.get("rest"))


def _default(entry: "Field[Any]") -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


@lru_cache(maxsize=256)
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
