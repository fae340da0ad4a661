"""What becomes of batch normalisation, whose statistics depend on the batch."""

import math
from typing import Literal

import torch
from timm.layers.norm_act import (
    BatchNormAct2d,
    GroupNormAct,
    convert_sync_batchnorm,
    freeze_batch_norm_2d,
)
from torch import nn

from assay.errors import ConfigError

Norm = Literal["group", "frozen", "sync", "batch"]


def refuse_frozen(model: nn.Module, norm: Norm, what: str) -> None:
    """Refuse to freeze batch normalisation that was never trained.

    Its statistics say nothing then, and where timm begins the last gain of a residual block at 0 it stays 0,
    so that the block never learns.

    Raises:
        ConfigError: the model has such layers.
    """
    is_batch = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if norm == "frozen" and is_batch:
        raise ConfigError(
            f"--model.norm frozen keeps statistics that no data have made, as there is {what}; "
            "give weights (hub or a file), or take --model.norm group (or batch)."
        )


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
