"""Bring a file's tensors to a model: under the names it has today, from below what was saved around it, or not at all.

Every tensor that a model has must be there, of its shape and finite; what a file holds beyond them, as a classifier, is left,
but for further layers of the same kinds: those are of a deeper model. Only the counters of batch normalisation may be missing: files of
before 2018 have none, and nothing is computed from them.
"""

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import ConfigError

State = dict[str, Tensor]

COUNTER = "num_batches_tracked"
"""Batches that a batch normalisation has seen; used only where its momentum is None, which no model here has."""

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Numbers that stand for themselves; those of 8 bits are nothing without the scales that lie beside them."""

MOST_ZEROS = 0.5
"""Share of a model's values that may lie in tensors of nothing but zeros: layers that begin so, and learnt nothing."""

TEACHER = "teacher.backbone."
"""What a run of self-supervision calls what it embeds by."""


def fit_weights(model: nn.Module, name: str, state: State, source: str) -> None:
    """Put a file's tensors into timm's model of this name.

    Args:
        model: takes them, all or none.
        name: timm's.
        state: what the file holds, whole networks around the model among it.
        source: what the file is called in a sentence.

    Raises:
        ConfigError: they are not of this model, or no training left them.
    """
    wanted = model.state_dict()
    adapted = _adapt(model, state)
    if _misfit(wanted, adapted):
        below = _below_prefixes(model, wanted, state)
        fitting = [prefix for prefix in below if not _misfit(wanted, below[prefix])]
        prefixes = _learnt(fitting) or _learnt(list(below))
        if fitting and len(prefixes) > 1:
            raise ConfigError(
                f"{source} holds the weights of {name} {len(prefixes)} times, below {' and '.join(prefixes)}; give a file of one of them."
            )
        if len(prefixes) == 1:
            adapted = below[prefixes[0]]
            _refuse_spare(wanted, adapted, name, source, prefixes[0])
    refuse_misfit(wanted, adapted, name, source)
    _refuse_deeper(wanted, adapted, name, source)
    state = _with_counters(wanted, adapted)
    # as the model would hold them: what lies beyond its numbers is no number there
    _refuse_unsound({key: state[key].to(value.dtype) for key, value in wanted.items()}, source)
    model.load_state_dict({key: state[key] for key in wanted})


def _refuse_unsound(state: State, source: str) -> None:
    """Refuse tensors that no training leaves."""
    unsound = [
        key
        for key, value in state.items()
        if value.is_meta
        or not torch.isfinite(value).all()
        or (key.endswith("running_var") and (value < 0).any())
    ]
    if unsound:
        raise ConfigError(
            f"{source} holds values that are no numbers, variances below 0 or tensors that were never filled (first: {unsound[0]}); "
            "give weights of a training that did not fail."
        )
    zeros = sum(value.numel() for value in state.values() if not value.any())
    share = zeros / sum(value.numel() for value in state.values())
    if share > MOST_ZEROS:
        raise ConfigError(
            f"{source} holds tensors of nothing but zeros, {share:.0%} of its values, as a download that was cut and filled up; fetch it "
            "again."
        )


def _adapt(model: nn.Module, state: State) -> State:
    """Bring tensors to the names that timm's model has today; those of another net stay as they are."""
    adapt = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    if adapt is None:
        return state
    try:
        adapted: State = adapt(dict(state), model)
    except Exception:  # it looks up, and cuts, what only its own nets have
        return state
    return adapted


def _below_prefixes(model: nn.Module, wanted: State, state: State) -> dict[str, State]:
    """Return what may be the model's tensors in a file that was saved from around it, by what stands before their names."""
    first = next(iter(wanted))
    prefixes = sorted({key.removesuffix(first) for key in state if key.endswith(f".{first}")})
    sets = {}
    for prefix in prefixes:
        below = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
        sets[prefix] = _adapt(model, _fold_scales(wanted, below))
    return sets


def _learnt(prefixes: list[str]) -> list[str]:
    """Choose what a run has learnt: its teacher by self-supervision, its student from a teacher that stays as it is."""
    if {"backbone.", "teacher."} <= set(prefixes):
        return ["backbone."]
    return [prefix for prefix in prefixes if prefix.startswith("teacher.")] or prefixes


def _fold_scales(wanted: State, state: State) -> State:
    """Multiply layer scales into the layers before them, for a model that has none: gamma (W y + b) = (gamma W) y + gamma b."""
    folded = dict(state)
    for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
        for key in [key for key in state if key.endswith(f".{scale}.gamma")]:
            block, gamma = key.removesuffix(f"{scale}.gamma"), state[key]
            if key in wanted or f"{block}{layer}.weight" not in state:
                continue
            del folded[key]
            folded[f"{block}{layer}.weight"] = gamma[:, None] * state[f"{block}{layer}.weight"]
            folded[f"{block}{layer}.bias"] = gamma * state[f"{block}{layer}.bias"]
    return folded


def _refuse_spare(wanted: State, state: State, name: str, source: str, prefix: str) -> None:
    """Refuse a run's backbone of more than the model has: without its registers it computes something else."""
    spare = [key for key in state if key not in wanted]
    if prefix.startswith(TEACHER) and spare and not _misfit(wanted, state):
        raise ConfigError(
            f"{source} is a run whose backbone has more than {name} ({_few(spare)}); name the network that it is of, or pretrain without (--model.registers 0)."
        )


def _refuse_deeper(wanted: State, state: State, name: str, source: str) -> None:
    """Refuse the weights of a model that has all layers of this one and more: cut short it computes something else."""
    kinds = {_kind(key, value) for key, value in wanted.items() if _kind(key, value)[0] != key}
    deeper = [k for k, v in state.items() if k not in wanted and _kind(k, v) in kinds]
    if deeper:
        raise ConfigError(
            f"{source} holds more layers than {name} has ({_few(deeper)}), as the weights of a deeper network; name the network that they belong to."
        )


def _kind(key: str, value: Tensor) -> tuple[str, torch.Size]:
    """Name a tensor as those of other layers of its kind are named; without numbers it is alone."""
    return re.sub(r"\d+", "#", key), value.shape


def _with_counters(wanted: State, state: State) -> State:
    counters = {key: value for key, value in wanted.items() if key.endswith(COUNTER)}
    return counters | state


def _misfit(wanted: State, state: State) -> list[str]:
    """Name what is missing, or has another shape or kind of numbers."""
    state = _with_counters(wanted, state)
    return [
        key
        for key, value in wanted.items()
        if key not in state
        or value.shape != state[key].shape
        or value.is_floating_point() != state[key].is_floating_point()
        or state[key].layout != torch.strided
        or (state[key].is_floating_point() and state[key].dtype not in NUMBERS)
    ]


def refuse_misfit(wanted: State, state: State, name: str, source: str) -> None:
    """Refuse tensors of which one that is wanted is missing, or of another shape or kind of numbers."""
    misfit = _misfit(wanted, state)
    if misfit:
        missing = [key for key in misfit if key not in state]
        others = [_compared(key, wanted[key], state[key]) for key in misfit if key in state]
        differences = {
            "missing": missing,
            "of another shape or type": others,
            "not its own": [key for key in state if key not in wanted],
        }
        lists = [f"{len(keys)} {what} ({_few(keys)})" for what, keys in differences.items() if keys]
        raise ConfigError(
            f"{source} does not hold the weights of {name}: {len(wanted) - len(misfit)} of its {len(wanted)} tensors fit, "
            f"{'; '.join(lists)}; give weights of {name}, or name the network that these belong to."
        )


def _few(keys: Sequence[Any]) -> str:
    shown = ", ".join(str(key)[:80] for key in keys[:3])
    return f"{shown}, ..." if len(keys) > 3 else shown


def _compared(key: str, wanted: Tensor, present: Tensor) -> str:
    kinds = [f"{'x'.join(map(str, t.shape))} {str(t.dtype)[6:]}" for t in (present, wanted)]
    return f"{key}: {kinds[0]} for {kinds[1]}"
