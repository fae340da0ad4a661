"""Networks from a patch to an embedding: any timm model by name, or the house's texture net."""

import difflib
import inspect
import math
import pickle
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import huggingface_hub
import timm
import torch
from annotated_types import Ge
from jaxtyping import Float
from safetensors import SafetensorError
from timm.layers.norm_act import (
    BatchNormAct2d,
    GroupNormAct,
    convert_sync_batchnorm,
    freeze_batch_norm_2d,
)
from timm.models import group_parameters, load_state_dict
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from assay.config import Settings
from assay.errors import ConfigError

Norm = Literal["group", "frozen", "sync", "batch"]
Head = Literal["linear", "mlp"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Settings, section="model"):
    """What embeds a patch."""

    backbone: str = "efficientnetv2_rw_s"
    """Any timm model, or texture_small (a tiny net for textures, trained from scratch)."""
    weights: str = "none"
    """Backbone weights: none, hub (fetched by timm), or a .safetensors file."""
    norm: Norm = "frozen"
    """Batch normalisation: replaced by group norm, frozen, synced over GPUs, or per worker's batch."""
    trainable_blocks: Annotated[int, Ge(-1)] = -1
    """Blocks of the backbone that are trained, from the end; -1: all of it."""
    head: Literal["none", "linear", "mlp"] = "linear"
    """Projection from the backbone's features to the transformer's width, before the transformer's own."""

    def build(self, img_size: int) -> nn.Module:
        """Build the backbone for patches of this side (see `create_backbone`)."""
        return create_backbone(
            self.backbone,
            pretrained=self.weights == "hub",
            weights=None if self.weights in ("hub", "none") else Path(self.weights),
            norm=self.norm,
            trainable_blocks=None if self.trainable_blocks < 0 else self.trainable_blocks,
            img_size=img_size,
        )


class TextureNet(nn.Module):
    """A very small net for fine texture, to be trained from scratch on a CPU: "texture_small".

    Grey values less their local mean (light, colour and most of an outline are no texture); the
    local energy in 24 bands, by pairs of filters that start as Gabor wavelets in quadrature,
    eight directions of three periods (Gabor 1946; Bovik et al. 1990 for textures), and are
    trained like all else; two convolutions; the mean and the maximum over positions.
    """

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        wavelets = nn.Conv2d(1, 48, 9, stride=2, padding=4, bias=False)
        with torch.no_grad():
            wavelets.weight.copy_(_gabor(9, directions=8, periods=(2.8, 4.0, 5.6)))
        self.blocks = nn.ModuleList(
            [
                wavelets,
                nn.Sequential(nn.GroupNorm(1, 24), _convolution(24, 48)),
                _convolution(48, 64),
            ]
        )

    def forward(self, patches: Float[Tensor, "n 3 p p"]) -> Float[Tensor, "n features"]:
        """Embed patches of any size from 16 px on."""
        wavelets, *rest = self.blocks
        grey = patches.mean(1, keepdim=True)
        texture = grey - avg_pool2d(grey, 5, 1, 2, count_include_pad=False)
        even, odd = wavelets(texture).chunk(2, dim=1)
        features = (even.square() + odd.square() + 1e-6).sqrt()
        for block in rest:
            features = block(features)
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Name blocks the way timm models do."""
        return {"blocks": r"^blocks\.(\d+)"}


def _convolution(in_chans: int, chans: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chans, chans, 3, 2, 1, bias=False), nn.GroupNorm(chans // 8, chans), nn.SiLU()
    )


def _gabor(side: int, directions: int, periods: tuple[float, ...]) -> Tensor:
    """Draw the even, then the odd wavelets (2 * directions * periods, 1, side, side), each of norm 1."""
    reach = torch.arange(side) - side // 2
    angle = torch.arange(directions)[:, None, None, None] * math.pi / directions
    along = reach * angle.cos() + reach[:, None] * angle.sin()
    phase = 2 * math.pi * along / torch.tensor(periods)[:, None, None]
    envelope = torch.exp(-(reach.square() + reach[:, None].square()) / (2 * (side / 4) ** 2))
    waves = torch.stack([phase.cos(), phase.sin()]) * envelope
    waves = waves - waves.mean((-2, -1), keepdim=True)
    waves = waves / waves.square().sum((-2, -1), keepdim=True).sqrt()
    return waves.reshape(-1, 1, side, side)


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    norm: Norm = "group",
    trainable_blocks: int | None = None,
    drop_path: float = 0.0,
    img_size: int | None = None,
) -> nn.Module:
    """Build a network from patches (n 3 p p) to embeddings (n f); f is its `num_features`.

    Args:
        name: A timm model, or "texture_small".
        pretrained: Fetch timm's weights for this model from the hub (or its local cache).
        weights: A safetensors file (or a .pth of plain tensors) to load instead. A classifier
            in it is ignored; every other weight must be there.
        norm: What to make of batch normalisation (see `normalise_layers`).
        trainable_blocks: None trains all, 0 nothing, n only the last n blocks.
        drop_path: Rate of stochastic depth.
        img_size: Side of the patches; for models whose input size is fixed when they are built.

    Raises:
        ConfigError: The name is unknown, the weights cannot be had or do not fit, or the
            model lacks the option or the number of blocks.
    """
    model = _build(name, drop_path, img_size)
    if weights is not None:
        load_weights(model, name, weights)
    elif pretrained:
        _load(model, name, _fetch(name), "the hub's file")
    # convolutions are about 1.7 times faster so on a CPU
    model = normalise_layers(model, norm).to(memory_format=torch.channels_last)
    if trainable_blocks is not None:
        _freeze(model, name, trainable_blocks)
    return model


def create_head(kind: Head, num_features: int, num_outputs: int) -> nn.Module:
    """Build a head, or a projection, on embeddings.

    Args:
        kind: "linear", or "mlp" with one hidden layer of half the features (the first recipe of
            the fingerprint reference).
        num_features: Width of the embeddings.
        num_outputs: Width of what the head puts out.
    """
    if kind == "linear":
        return nn.Linear(num_features, num_outputs)
    hidden = num_features // 2
    return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs))


def normalise_layers(model: nn.Module, norm: Norm) -> nn.Module:
    """Replace the batch normalisation of a model, whose statistics depend on the batch.

    "group": GroupNorm with 8 channels a group, scale and shift kept; statistics of each sample
    alone. "frozen": stored statistics, scale and shift, never updated, whatever `train()` says.
    "sync": statistics over the workers' batches together (GPU only). "batch": left as it is.

    Raises:
        ConfigError: "sync" on a machine without GPU.
    """
    if norm == "group":
        return _to_group_norm(model)
    if norm == "frozen":
        return freeze_batch_norm_2d(model)
    if norm == "sync":
        if not torch.cuda.is_available():
            raise ConfigError(
                "norm 'sync' needs GPUs and this machine has none: "
                "take --model.norm group (or frozen, batch)."
            )
        return convert_sync_batchnorm(model)
    return model


def _build(name: str, drop_path: float, img_size: int | None) -> nn.Module:
    if name == "texture_small":
        return TextureNet()
    names = ["texture_small", *timm.list_models(pretrained="." in name)]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
        raise ConfigError(
            f"There is no backbone {name!r}; the closest are {', '.join(nearest)} "
            "(timm.list_models() names them all)."
        )
    options: dict[str, Any] = {}
    if img_size is not None and _config(name).fixed_input_size:
        options["img_size"] = img_size
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, num_classes=0, **options)
    except TypeError as error:
        raise ConfigError(
            f"The backbone {name} does not take {' and '.join(options)} ({error}); "
            "leave it out or take another backbone."
        ) from error


def _config(name: str) -> timm.models.PretrainedCfg:
    config = timm.models.get_pretrained_cfg(name)
    return config if config is not None else timm.models.PretrainedCfg()


def _fetch(name: str) -> dict[str, Tensor]:
    repo = _config(name).hf_hub_id
    if not repo:
        raise ConfigError(
            f"There are no pretrained weights for the backbone {name}; "
            "use --model.weights FILE or --model.weights none."
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
            f"({type(error).__name__}); use --model.weights FILE or --model.weights none."
        ) from error
    return load_state_dict(cached, weights_only=True)


def _read(weights: Path) -> dict[str, Tensor]:
    try:
        return load_state_dict(str(weights), weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ConfigError(
            f"{weights} cannot be read as weights ({type(error).__name__}); give a safetensors "
            "file, or a .pth file that holds tensors only."
        ) from error


def load_weights(model: nn.Module, name: str, weights: Path) -> None:
    """Load a safetensors file (or a .pth of plain tensors) that holds every tensor of a model.

    Raises:
        ConfigError: It cannot be read, or does not hold them.
    """
    _load(model, name, _read(weights), str(weights))


def _load(model: nn.Module, name: str, state: dict[str, Tensor], source: str) -> None:
    adapt = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    if adapt is not None:
        state = adapt(state, model)
    wanted = model.state_dict()
    missing = wanted.keys() - state.keys()
    misfit = [key for key in wanted.keys() - missing if wanted[key].shape != state[key].shape]
    if missing or misfit:
        raise ConfigError(
            f"{source} does not hold the weights of {name}: {len(missing)} of {len(wanted)} "
            f"tensors are missing and {len(misfit)} have another shape "
            f"(first: {min([*missing, *misfit])}); name the backbone they belong to."
        )
    model.load_state_dict({key: state[key] for key in wanted})


def _freeze(model: nn.Module, name: str, trainable_blocks: int) -> None:
    blocks = group_parameters(model, cast(Any, model).group_matcher(coarse=False))
    if not 0 <= trainable_blocks <= len(blocks):
        raise ConfigError(
            f"--model.trainable-blocks {trainable_blocks} is not possible: {name} has "
            f"{len(blocks)} blocks; give 0 to {len(blocks)}."
        )
    last = sorted(blocks)[len(blocks) - trainable_blocks :]
    trainable = {key for block in last for key in blocks[block]}
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trainable)


def _to_group_norm(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _group_norm(module)
    for name, child in module.named_children():
        setattr(module, name, _to_group_norm(child))
    return module


def _group_norm(old: nn.modules.batchnorm._BatchNorm) -> nn.GroupNorm:
    chans = old.num_features
    groups = math.gcd(chans, max(chans // 8, 1))
    if isinstance(old, BatchNormAct2d):
        new: nn.GroupNorm = GroupNormAct(chans, groups, eps=old.eps)
        new.drop, new.act = old.drop, old.act
    else:
        new = nn.GroupNorm(groups, chans, eps=old.eps)
    if old.affine:
        new.load_state_dict({"weight": old.weight, "bias": old.bias})
    return new
