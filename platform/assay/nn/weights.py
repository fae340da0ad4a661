"""Weights of timm's models: from the hub, or a file, whole or not at all.

Every tensor that a model has must be there and of its shape; what a file holds beyond them, as a
classifier, is left. Files are safetensors, or .pth of plain tensors; no pickle is run.
"""

import inspect
import pickle
import urllib.request
from pathlib import Path

import huggingface_hub
import timm
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from assay.errors import ConfigError

State = dict[str, Tensor]


def pretrained_config(name: str) -> timm.models.PretrainedCfg:
    """Return what timm knows of a model's published weights: their hub, input size, mean and deviation."""
    config = timm.models.get_pretrained_cfg(name)
    return config if config is not None else timm.models.PretrainedCfg()


def find_weights(name: str, weights: str, option: str = "--model.weights") -> Path | None:
    """Find the file of `weights` for timm's model of this name, fetching it where it is the hub's.

    Args:
        name: timm's name.
        weights: "none", "hub", or a file.
        option: What the user gave them by.

    Raises:
        ConfigError: there is none, or the hub cannot be reached.
    """
    if weights == "none":
        return None
    if weights != "hub":
        if not Path(weights).is_file():
            raise ConfigError(f"{option} is {weights}, which is no file; give one, or hub or none.")
        return Path(weights)
    repo = pretrained_config(name).hf_hub_id
    if not repo:
        raise ConfigError(
            f"There are no pretrained weights for {name}; use {option} FILE or {option} none."
        )
    file = "model.safetensors"
    try:
        cached = huggingface_hub.try_to_load_from_cache(repo, file)
        if not isinstance(cached, str):
            # One request tells an unreachable hub at once; the download would retry for 25 s.
            hub = huggingface_hub.constants.ENDPOINT
            urllib.request.urlopen(f"{hub}/api/models/{repo}", timeout=10).close()
            cached = huggingface_hub.hf_hub_download(repo, file)
    except OSError as error:
        raise ConfigError(
            f"The weights of {name} are not on this machine and the hub cannot be reached "
            f"({type(error).__name__}); use {option} FILE, or {option} none with --model.norm group."
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
    try:
        return load_state_dict(str(weights), weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ConfigError(
            f"{weights} cannot be read as weights ({type(error).__name__}); give a safetensors "
            "file, or a .pth file that holds tensors only."
        ) from error


def _load(model: nn.Module, name: str, state: State, source: str) -> None:
    adapt = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    if adapt is not None:
        state = adapt(state, model)
    wanted = model.state_dict()
    _refuse_misfit(wanted, state, name, source)
    model.load_state_dict({key: state[key] for key in wanted})


def _refuse_misfit(wanted: State, state: State, name: str, source: str) -> None:
    missing = wanted.keys() - state.keys()
    misfit = [key for key in wanted.keys() - missing if wanted[key].shape != state[key].shape]
    if missing or misfit:
        raise ConfigError(
            f"{source} does not hold the weights of {name}: {len(missing)} of {len(wanted)} "
            f"tensors are missing and {len(misfit)} have another shape "
            f"(first: {min([*missing, *misfit])}); name the backbone they belong to."
        )
