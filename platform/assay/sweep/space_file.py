"""A search space from a YAML file: our own, or a W&B sweep.

Ours is a mapping of settings to dimensions; W&B's has the same mapping under `parameters`, beside
`method` and the like:

    optim.lr: {min: 1e-4, max: 1e-2, distribution: log_uniform_values}
    model.k: {values: [2, 4, 8]}
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from assay.config import Settings
from assay.errors import ConfigError
from assay.space import Choice, Dimension, Space, value_of
from assay.sweep.space_text import is_whole, make_range, parse_scalar

Method = Literal["tpe", "random", "grid"]


METHODS: Mapping[str, Method] = {"bayes": "tpe", "random": "random", "grid": "grid"}
"""W&B's methods and ours."""


IGNORED = {"program", "command", "name", "project", "entity", "description"}
"""What of a W&B sweep says where it runs and not what."""


UNDERSTOOD = {"parameters", "method", "metric", "early_terminate", "run_cap"}
"""What of a W&B sweep is taken over."""


PLAIN = ("", "uniform", "q_uniform", "int_uniform", "log_uniform_values", "q_log_uniform_values")
"""W&B's distributions whose ends are given as they are; log_uniform's are exponents of e."""


@dataclass(frozen=True, kw_only=True)
class SpaceFile:
    """What a file declares; None: nothing."""

    space: Space
    method: Method | None = None
    objective: Literal["score", "nll"] | None = None
    trials: int | None = None
    grace: int | None = None
    """Epochs before early stopping may begin."""
    eta: int | None = None
    """One of so many trials goes on at each rung of early stopping."""


def read(path: Path, config: Settings, names: Mapping[str, str]) -> SpaceFile:
    """Read a file.

    Args:
        path: the file.
        config: the settings that the space is about.
        names: settings by the names that other programs have for them.

    Raises:
        ConfigError: it cannot be read, or has what no sweep here can do; names it.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{path} cannot be read ({reason}); give a YAML file of settings."
        ) from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"{path} holds no mapping; write one setting per line, such as model.k: {{values: [2, 4]}}."
        )
    if "parameters" not in content:
        return SpaceFile(space=_space(content, config, names))
    unknown = content.keys() - IGNORED - UNDERSTOOD
    if unknown:
        raise ConfigError(
            f"{path} has {min(unknown)!r}, which is not understood; take it out and say it on the command line."
        )
    method = content.get("method", "random")
    if method not in METHODS:
        raise ConfigError(f"{path} has the method {method!r}; allowed: {', '.join(METHODS)}.")
    grace, eta = _halving(content.get("early_terminate"), path)
    return SpaceFile(
        space=_space(content["parameters"], config, names),
        method=METHODS[method],
        objective=_objective(content.get("metric"), path),
        trials=content.get("run_cap"),
        grace=grace,
        eta=eta,
    )


def _objective(metric: Any, path: Path) -> Literal["score", "nll"] | None:
    if metric is None:
        return None
    name = str(metric.get("name", ""))
    if "test" in name.lower():
        raise ConfigError(
            f"{path} chooses by {name!r}; a sweep is chosen by val alone: name a metric of val, such as val_accuracy."
        )
    return "nll" if any(word in name.lower() for word in ("loss", "nll")) else "score"


def _halving(early: Any, path: Path) -> tuple[int | None, int | None]:
    if early is None:
        return None, None
    if early.get("type") != "hyperband" or "min_iter" not in early:
        raise ConfigError(
            f"{path} stops early by {early}; allowed is type hyperband with min_iter and eta, which ASHA takes the place of."
        )
    return int(early["min_iter"]), int(early.get("eta", 3))


def _space(specs: Mapping[str, Any], config: Settings, names: Mapping[str, str]) -> Space:
    space: dict[str, Dimension] = {}
    for name, spec in _flatten(specs).items():
        setting = names.get(name, name)
        space[setting] = _dimension(name, spec, value_of(config, setting))
    return space


def _flatten(specs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dot the names of parameters that W&B nests in parameters."""
    flat: dict[str, Any] = {}
    for name, spec in specs.items():
        if isinstance(spec, dict) and isinstance(spec.get("parameters"), dict):
            flat |= _flatten(spec["parameters"], f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = spec
    return flat


def _dimension(name: str, spec: Any, default: Any) -> Dimension:
    if not isinstance(spec, dict):
        return Choice(values=(parse_scalar(spec),))
    kind = spec.get("distribution", "")
    if "value" in spec or kind == "constant":
        return Choice(values=(parse_scalar(spec.get("value")),))
    if "values" in spec and "probabilities" not in spec:
        return Choice(values=tuple(parse_scalar(value) for value in spec["values"]))
    if "min" not in spec or "max" not in spec:
        raise ConfigError(
            f"The parameter {name} is {spec}; give values, or min and max (chances of values, and normal distributions, are not drawn here)."
        )
    low, high = parse_scalar(spec["min"]), parse_scalar(spec["max"])
    step = parse_scalar(spec["q"]) if "q" in spec else None
    if kind in ("log_uniform", "q_log_uniform"):
        low, high = math.exp(float(low)), math.exp(float(high))
    elif kind not in PLAIN:
        raise ConfigError(
            f"The parameter {name} has the distribution {kind!r}; allowed are uniform, int_uniform, q_uniform, log_uniform and log_uniform_values."
        )
    return make_range(name, low, high, log="log" in kind, whole=is_whole(default), step=step)
