"""Weights of timm's models: from the hub, or a file, whole or not at all.

Files are safetensors, or .pth of plain tensors, those of a trainer's wrapper too (state_dict, model, module., model.), and runs
that were pretrained, by their folder or their best weights: of self-supervision the teacher's are taken, of feature distillation
the student's; no pickle is run. What must fit is said in `fit_weights`.
"""

import urllib.request
import warnings
from pathlib import Path

import huggingface_hub
import timm
from safetensors.torch import load_file
from timm.models import load_state_dict
from torch import Tensor, nn

from assay.errors import ConfigError
from assay.files import describe, open_file
from assay.nn.fit_weights import State, fit_weights, refuse_misfit

BEST = Path("best", "weights.safetensors")
"""Where a run keeps its best weights."""

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
        fit_weights(model, name, _read(file), "the hub's file" if weights == "hub" else weights)


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
    refuse_misfit(features.state_dict(), renamed, name, weights)
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
