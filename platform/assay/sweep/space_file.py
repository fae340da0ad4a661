"""A search space from a YAML file: our own, or a W&B sweep.

Ours is a mapping of settings to dimensions; W&B's has the same mapping under `parameters`, beside
`method` and the like:

    optim.lr: {min: 1e-4, max: 1e-2, distribution: log_uniform_values}
    model.k: {values: [2, 4, 8]}

What W&B documents is taken as W&B takes it, or refused by its name. Source: the schema of W&B's sweeps
and its page of sweep configuration options (2026).
"""

import math
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from assay.config import Settings
from assay.errors import ConfigError
from assay.space import Choice, Dimension, Space, value_of
from assay.strict_yaml import read_yaml
from assay.sweep.space_text import is_whole, make_choice, make_range, parse_scalar

Method = Literal["tpe", "random", "grid"]


METHODS: Mapping[str, Method] = {"bayes": "tpe", "random": "random", "grid": "grid"}
"""W&B's methods and ours."""


WHERE = {"program", "command", "name", "project", "entity", "description", "apiVersion", "kind"}
ELSEWHERE = {"controller", "job", "image_uri"}
"""What of a W&B sweep says where it runs and not what."""


UNDERSTOOD = {"parameters", "method", "metric", "early_terminate", "run_cap"}
"""What of a W&B sweep is taken over."""


ENDS = {"min", "max"}


KEYS: Mapping[str, set[str]] = {
    "constant": {"value"},
    "categorical": {"values"},
    "int_uniform": ENDS,
    "uniform": ENDS,
    "q_uniform": ENDS,
    "log_uniform": ENDS,
    "q_log_uniform": ENDS,
    "inv_log_uniform": ENDS,
    "log_uniform_values": ENDS,
    "q_log_uniform_values": ENDS,
    "inv_log_uniform_values": ENDS,
}
"""W&B's distributions that are drawn here, and what each must say; those of a step (q_) may also say `q`."""


EXPONENTS = ("log_uniform", "q_log_uniform", "inv_log_uniform")
"""Distributions whose ends are exponents of e."""


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
    content = read_yaml(path, "give a YAML file of settings")
    try:
        if not isinstance(content, dict) or "parameters" not in content:
            return SpaceFile(space=_space(content, config, names))
        return _read_sweep(content, config, names)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read_sweep(
    content: Mapping[Any, Any], config: Settings, names: Mapping[str, str]
) -> SpaceFile:
    unknown = content.keys() - WHERE - ELSEWHERE - UNDERSTOOD
    if unknown:
        raise ConfigError(
            f"{min(map(str, unknown))!r} is not understood; take it out and say it on the command line."
        )
    method = content.get("method", "random")
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"The method is {_show(method)}; allowed: {', '.join(METHODS)}.")
    grace, eta = _halving(content.get("early_terminate"))
    cap = content.get("run_cap")
    return SpaceFile(
        space=_space(content["parameters"], config, names),
        method=METHODS[method],
        objective=_objective(content.get("metric")),
        trials=None if cap is None else _whole("run_cap", cap),
        grace=grace,
        eta=eta,
    )


def _objective(metric: Any) -> Literal["score", "nll"] | None:
    if metric is None:
        return None
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise ConfigError(
            f"The metric is {_show(metric)}; write metric: {{name: val_loss, goal: minimize}}."
        )
    name, goal = metric["name"], metric.get("goal", "minimize")
    unknown = metric.keys() - {"name", "goal"}
    if unknown:
        raise ConfigError(
            f"The metric has {min(map(str, unknown))!r}, which no sweep here does; take it out."
        )
    if not name.strip() or any(word in name.lower() for word in ("test", "train")):
        raise ConfigError(
            f"The metric is {name!r}; a sweep is chosen by val alone: name a metric of val, such as val_accuracy."
        )
    is_loss = any(word in name.lower() for word in ("loss", "nll"))
    wanted, taken = (
        ("minimize", "nll") if is_loss else ("maximize", "main score (accuracy, or IoU of masks)")
    )
    if goal != wanted:
        raise ConfigError(
            f"The metric {name!r} has the goal {_show(goal)} (W&B's own is minimize); {'nll' if is_loss else 'the score'} of val is what a sweep here can {wanted}: write goal: {wanted}, or name another metric."
        )
    print(f"The metric {name!r} is val's {taken} here.", file=sys.stderr)
    return "nll" if is_loss else "score"


def _halving(early: Any) -> tuple[int | None, int | None]:
    """Read where early stopping begins, in epochs, and how many of the trials go on."""
    if early is None:
        return None, None
    is_hyperband = isinstance(early, dict) and early.get("type") == "hyperband"
    allowed = {"type", "min_iter", "max_iter", "s", "eta", "strict"}
    has_ends = is_hyperband and ("min_iter" in early or {"max_iter", "s"} <= early.keys())
    is_strict = not is_hyperband or isinstance(early.get("strict", False), bool)
    if not (has_ends and is_strict) or not early.keys() <= allowed:
        raise ConfigError(
            f"early_terminate is {_show(early)}; allowed is type hyperband with min_iter, or max_iter and s, and eta, which ASHA takes the place of."
        )
    eta = _whole("early_terminate.eta", early.get("eta", 3), least=2)
    if "max_iter" not in early:
        return _whole("early_terminate.min_iter", early["min_iter"]), eta
    grace = _whole("early_terminate.max_iter", early["max_iter"])
    for _ in range(min(_whole("early_terminate.s", early["s"]), 64)):
        grace = grace // eta or grace  # W&B has no bracket below 1 either
    return grace, eta


def _whole(name: str, value: Any, least: int = 1) -> int:
    number = parse_scalar(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not is_whole(number) or number < least:
        raise ConfigError(f"{name} is {_show(value)}; give a whole number of at least {least}.")
    return int(number)


def _space(specs: Any, config: Settings, names: Mapping[str, str]) -> Space:
    space: dict[str, Dimension] = {}
    for name, spec in _flatten(specs).items():
        plain = name.replace("-", "_")
        setting = names.get(name) or names.get(plain) or plain
        if setting in space:
            raise ConfigError(f"The setting {setting} is named twice, the second time as {name}.")
        space[setting] = _dimension(name, spec, value_of(config, setting))
    return space


def _flatten(specs: Any, prefix: str = "") -> dict[str, Any]:
    """Dot the names of parameters that W&B nests in parameters."""
    if not isinstance(specs, dict) or not specs:
        raise ConfigError(
            f"{_show(specs)} is no mapping of settings; write one per line, such as model.k: {{values: [2, 4]}}."
        )
    flat: dict[str, Any] = {}
    for name, spec in specs.items():
        if not isinstance(name, str):
            raise ConfigError(f"{_show(name)} is no name of a setting; write one such as model.k.")
        is_nested = isinstance(spec, dict) and spec.keys() == {"parameters"}
        inner = (
            _flatten(spec["parameters"], f"{prefix}{name}.")
            if is_nested
            else {f"{prefix}{name}": spec}
        )
        if twice := flat.keys() & inner.keys():
            raise ConfigError(f"The parameter {min(twice)} stands there twice; give it once.")
        flat |= inner
    return flat


def _dimension(name: str, spec: Any, default: Any) -> Dimension:
    if not isinstance(spec, dict):
        return _choice(name, [spec])
    kind = _kind(spec)
    allowed = KEYS.get(kind)
    if allowed is None:
        raise ConfigError(
            f"The parameter {name} has the distribution {kind!r}, which is not drawn here; allowed are {', '.join(KEYS)}."
        )
    given = spec.keys() - {"distribution"} - ({"q"} if kind.startswith("q_") else set())
    if given != allowed:
        raise ConfigError(
            f"The parameter {name} is {_show(spec)}; give values, or min and max ({kind} has {' and '.join(sorted(allowed))})."
        )
    if kind == "constant":
        return _choice(name, [spec["value"]])
    if kind == "categorical":
        return _choice(name, spec["values"])
    low, high = (parse_scalar(spec[end]) for end in ("min", "max"))
    if kind in EXPONENTS:
        low, high = (_power(name, end) for end in (low, high))
    if kind == "inv_log_uniform":
        low, high = 1 / high, 1 / low
    if kind in EXPONENTS:
        print(
            f"The parameter {name} lies between {low:.4g} and {high:.4g}, as the ends of {kind} are exponents of e.",
            file=sys.stderr,
        )
    q = parse_scalar(spec.get("q", 1)) if kind.startswith("q_") else None
    whole = kind == "int_uniform" or is_whole(default)
    return make_range(name, low, high, log="log" in kind, whole=whole, q=q)


def _kind(spec: Mapping[str, Any]) -> str:
    """Name a distribution as W&B does where none is named."""
    if "distribution" in spec:
        kind = spec["distribution"]
        return kind if isinstance(kind, str) else _show(kind)
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "q" in spec:
        return "q_uniform"
    ends = [parse_scalar(spec.get(end)) for end in ("min", "max")]
    return "int_uniform" if all(map(is_whole, ends)) else "uniform"


def _choice(name: str, values: Any) -> Choice:
    plain = [parse_scalar(value) for value in values] if isinstance(values, list) else []
    if not plain or not all(isinstance(value, str | int | float) for value in plain):
        raise ConfigError(
            f"The parameter {name} has the values {_show(values)}; give a list of numbers, texts, true or false."
        )
    return make_choice(name, plain)


def _power(name: str, exponent: Any) -> float:
    """Return e to an exponent."""
    try:
        power = math.exp(exponent)
        if power and math.isfinite(1 / power):
            return power
    except (TypeError, OverflowError):
        pass
    raise ConfigError(
        f"The parameter {name} ends at e to the {_show(exponent)}; log_uniform has exponents of e, log_uniform_values the values themselves."
    )


def _show(value: Any) -> str:
    """Show a value of a file, however large."""
    return reprlib.repr(value)
