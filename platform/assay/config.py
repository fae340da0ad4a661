"""Settings: frozen dataclasses, to JSON and back, and the fingerprint of what they say.

A configuration says *what* is computed and is part of a run's identity. *Where* it is computed
(workers, devices, folders) is a different dataclass, in `run.py`, and is not.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from assay.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of every configuration: fields are documented in place, unknown keys are refused."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


S = TypeVar("S", bound=Settings)


def to_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain JSON values."""
    from pydantic import TypeAdapter  # a bundle opens without it

    dumped: dict[str, Any] = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return dumped


def from_dict(kind: type[S], values: dict[str, Any]) -> S:
    """Rebuild settings of one kind from `to_dict`'s values.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type; names the first such key.
    """
    from pydantic import TypeAdapter, ValidationError  # a bundle opens without it

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"The saved setting {key!r} is {first['input']!r}: {first['msg']}. "
            "Correct it, or remove it to take the default."
        ) from None


def fingerprint(value: Any) -> str:
    """Return 12 hex digits that depend on the JSON form of `value` and on nothing else."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
