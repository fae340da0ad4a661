"""Weights of timm's models: from the hub, or a file, whole or not at all.

Every tensor that a model has must be there, of its shape and finite; what a file holds beyond them,
as a classifier, is left, but for further layers of the same kinds: those are of a deeper model. Only the counters of batch normalisation may be missing: files of before 2018
have none, and nothing is computed from them. Files are safetensors, or .pth of plain tensors, those of
a trainer's wrapper too (state_dict, model, module., model.), and runs that were pretrained, by their folder or their
best weights: of self-supervision the teacher's are taken, of feature distillation the student's; no pickle is run.
"""

import inspect
import re
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors.torch import load_file
from timm.models import load_state_dict
from torch import Tensor, nn

from assay.errors import ConfigError
from assay.files import describe, open_file

State = dict[str, Tensor]

COUNTER = "num_batches_tracked"
"""Batches that a batch normalisation has seen; used only where its momentum is None, which no model here has."""

BEST = Path("best", "weights.safetensors")
"""Where a run keeps its best weights."""

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Numbers that stand for themselves; those of 8 bits are nothing without the scales that lie beside them."""

MOST_ZEROS = 0.5
"""Share of a model's values that may lie in tensors of nothing but zeros: layers that begin so, and learnt nothing."""

TEACHER = "teacher.backbone."
"""What a run of self-supervision calls what it embeds by."""

FOREIGN = {
    b"version https://git-lfs": "it is a Git LFS pointer: fetch what it stands for by git lfs pull",
    b"<!doctype html": "it is a web page, not the file that it links to",
    b"<html": "it is a web page, not the file that it links to",
}
"""What files begin with that were saved in the place of weights."""


def pretrained_config(name: str) -> timm.models.PretrainedCfg:
    """Return what timm knows of a model's published weights: their hub, input size, mean and deviation."""
    config = timm.models.get_pretrained_cfg(name)
    return config if config is not None else timm.models.PretrainedCfg()


def find_weights(
    name: str, weights: str, option: str = "--model.weights", has_norm: bool = True
) -> Path | None:
    """Find the file of `weights` for timm's model of this name, fetching it where it is the hub's.

    Args:
        name: timm's name.
        weights: "none", "hub", a file, or the folder of a run.
        option: What the user gave them by.
        has_norm: Whether what begins without them may be normalised by groups.

    Raises:
        ConfigError: there is none, or the hub cannot be reached.
    """
    if weights == "none":
        return None
    if weights != "hub":
        path = Path(weights)
        path = path / BEST if path.is_dir() else path
        if not path.is_file():
            raise ConfigError(
                f"{option} is {weights}, which is no file, nor the folder of a run with {BEST}; give one, or hub or none."
            )
        return path
    repo = pretrained_config(name).hf_hub_id
    if not repo:
        raise ConfigError(
            f"There are no pretrained weights for {name}; use {option} FILE or {option} none."
        )
    return find_hub(name, repo, None, option, has_norm)


def find_hub(
    name: str,
    repo: str,
    revision: str | None,
    option: str = "--model.weights",
    has_norm: bool = True,
) -> Path:
    """Find the weights of a model's repository on the hub, fetching them where they are not on this machine.

    Raises:
        ConfigError: the hub cannot be reached.
    """
    file = "model.safetensors"
    try:
        cached = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
        if not isinstance(cached, str):
            # One request tells an unreachable hub at once; the download would retry for 25 s.
            hub = huggingface_hub.constants.ENDPOINT
            urllib.request.urlopen(f"{hub}/api/models/{repo}", timeout=10).close()
            cached = huggingface_hub.hf_hub_download(repo, file, revision=revision)
    except OSError as error:
        norm = " with --model.norm group" if has_norm else ""
        raise ConfigError(
            f"The weights of {name} are not on this machine and the hub cannot be reached "
            f"({type(error).__name__}); use {option} FILE, or {option} none{norm}."
        ) from error
    return Path(cached)


def load_weights(
    model: nn.Module, name: str, weights: str, option: str = "--model.weights"
) -> None:
    """Load `weights` into timm's model of this name (see `find_weights`).

    Raises:
        ConfigError: they cannot be had or read, or do not fit.
    """
    file = find_weights(name, weights, option)
    if file is not None:
        _load(model, name, _read(file), "the hub's file" if weights == "hub" else weights)


def load_features(
    features: nn.Module, name: str, weights: str, option: str = "--model.weights"
) -> None:
    """Load `weights` of timm's model of this name into a part of it that gives feature maps.

    timm builds such parts from the same layers under names with other separators (stages.0 as
    stages_0), or as `model` of a wrapper.

    Raises:
        ConfigError: they cannot be had or read, do not fit, or the part has a tensor that the model
            does not have.
    """
    if weights == "none":
        return
    whole = timm.create_model(name, num_classes=0)
    load_weights(whole, name, weights, option)
    state = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    names = {key: key.replace(".", "_").removeprefix("model_") for key in features.state_dict()}
    renamed = {key: state[plain] for key, plain in names.items() if plain in state}
    _refuse_misfit(features.state_dict(), renamed, name, weights)
    features.load_state_dict(renamed)


def _read(weights: Path) -> State:
    """Read a file's tensors by name.

    Raises:
        ConfigError: it is no such file, or holds several sets of tensors.
    """
    start = b""
    try:
        with open_file(weights) as file:
            start = file.read(32)
        is_safe = start[8:9] == b"{" and not start.startswith(b"{")  # whatever its name ends in
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's of pickles, beside the sentence below
            content = (
                load_file(weights) if is_safe else load_state_dict(str(weights), weights_only=True)
            )
        return _tensors(content)
    # torch, timm and safetensors raise what they like of a file that is none of theirs
    except Exception as error:
        known = [why for first, why in FOREIGN.items() if start.lower().startswith(first)]
        raise ConfigError(
            f"{weights} cannot be read as weights ({known[0] if known else describe(error)}); give a safetensors "
            "file, or a .pth file that holds tensors only."
        ) from None


def _tensors(content: object) -> State:
    """Return the tensors of a mapping, or of the one mapping in it that has any."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    outer = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    inner = {key: value for key, value in content.items() if isinstance(value, dict)}
    sets = {
        key: {name: value for name, value in values.items() if isinstance(value, Tensor)}
        for key, values in inner.items()
    }
    sets = {key: tensors for key, tensors in sets.items() if tensors}
    if outer or len(sets) == 1:
        return outer or next(iter(sets.values()))
    names = ", ".join(map(str, sets))
    raise ValueError(f"it holds several sets of tensors: {names}" if sets else "it has no tensor")


def _load(model: nn.Module, name: str, state: State, source: str) -> None:
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
    _refuse_misfit(wanted, adapted, name, source)
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


def _refuse_misfit(wanted: State, state: State, name: str, source: str) -> None:
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
