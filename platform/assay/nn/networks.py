"""Networks for whole images by name, without their last linear layer: LUNA, small residual networks, torchvision's and timm's."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.error import URLError

import timm
import torch
import torchvision
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from assay.config import Settings
from assay.errors import ConfigError
from assay.fetch import check_sha256, fetch
from assay.files import describe
from assay.nn.backbone import blocks_of, check_name, create_backbone, timm_name
from assay.nn.cifar_resnet import FLAT, NUM_BLOCKS, CifarResNet
from assay.nn.layout import lay_channels_last
from assay.nn.luna import Luna
from assay.nn.norms import Norm, normalise_layers, refuse_frozen
from assay.nn.plain_vit import form_of
from assay.nn.weights import find_weights, load_weights

LUNA = ("luna", "luna-softmax")

CIFAR = (*NUM_BLOCKS, *(name + FLAT for name in NUM_BLOCKS))

TORCHVISION = ("alexnet", "resnet18", "efficientnet_v2_s", "convnext_tiny", "vit_b_16", "swin_t")
"""What means torchvision's nets, whatever timm calls so."""

ODD = ("googlenet", "inception_v3", "maxvit_t", "mnasnet*", "squeezenet*")
"""Torchvision's nets that are no chain of layers with a linear one at its end, or load their weights by versions."""

VIT_PX = 224
"""Side of the images that torchvision's vision transformers were trained on."""

HEADS = ("avgpool", "classifier", "fc", "head")
"""How torchvision calls what comes behind a net's last maps."""

BLOCKS = {
    "stem": r"^(?:conv1|bn1|stem|class_token|conv_proj|encoder\.pos_embedding)",
    "blocks": [
        (r"^(?:layer|stage)(\d+)\.(\d+)", None),
        (r"^trunk_output\.block(\d+)\.block\d+-(\d+)", None),
        (r"^features\.(\d+)\.(\d+)\.(?!weight$|bias$)", None),
        (r"^(?:features\.|layers\.|encoder\.layers\.encoder_layer_)(\d+)", (0,)),
        (r"^(?:norm|encoder\.ln|classifier\.0)", (99999,)),
    ],
    "conv5": r"^conv5",
    "classifier": r"^classifier\.(\d+)",
}
"""Blocks of torchvision's nets, in the form of timm's group_matcher."""


class Network(nn.Module):
    """A network up to what its last linear layer sees.

    Args:
        net: LUNA, or a model of torchvision or timm without its last linear layer.
        height_px: of the images.
        width_px: of the images.
        dropout: probability with which a feature is left out in training.

    Raises:
        RuntimeError, AssertionError, ValueError: whatever `net` raises of images of another size than it takes.
    """

    num_features: int
    num_flat: int
    """What `forward` gives of an image, places and all."""
    is_mean: bool
    """Whether features are the mean of the last maps over their places, so that `forward` gives those."""

    def __init__(self, net: nn.Module, height_px: int, width_px: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = net
        features, maps = self._probe(height_px, width_px)
        self.num_features = features.shape[1]
        self.is_mean = (
            maps is not None
            and maps.shape[1] == features.shape[1]
            and torch.allclose(maps.mean((2, 3)), features, rtol=1e-3, atol=1e-5)
        )
        self.num_flat = maps[0].numel() if self.is_mean and maps is not None else self.num_features
        # a channel of maps that is left out everywhere is one feature of their mean
        self.dropout = nn.Dropout2d(dropout) if self.is_mean else nn.Dropout(dropout)

    def _probe(self, height_px: int, width_px: int) -> tuple[Tensor, Tensor | None]:
        """Compute features and maps, where there are any, of one image: a gradient of light."""
        image = torch.linspace(-1, 1, 3 * height_px * width_px).view(1, 3, height_px, width_px)
        self.net.eval()
        with torch.no_grad():
            features = self.net(image)
            try:
                maps = self.maps(image)
            except ConfigError:
                maps = None
        self.net.train()
        return features, maps

    def maps(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d rows columns"]:
        """Compute the last maps; of transformers, the tokens of patches at their places.

        Raises:
            ConfigError: the net keeps no places, or does not tell them.
        """
        net: Any = self.net
        if isinstance(net, VisionTransformer):
            return _vit_maps(net, images)
        if hasattr(net, "forward_features"):
            return _timm_maps(net, net.forward_features(images))
        maps = images
        for name, child in net.named_children():
            if name in HEADS:
                break
            maps = child(maps)
        return maps

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d ..."]:
        """Compute features (n d), or where they are its mean over places the maps (n d rows columns)."""
        features: Tensor = self.dropout(self.maps(images) if self.is_mean else self.net(images))
        return features

    def blocks(self) -> list[list[str]]:
        """Name the parameters of each block, from input to output."""
        named = hasattr(self.net, "group_matcher") or hasattr(self.net, "forward_features")
        blocks = blocks_of(self.net) if named else blocks_of(self.net, BLOCKS)
        return [[f"net.{key}" for key in block] for block in blocks]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Settings, section="model"):
    """What looks at an image."""

    network: str = "luna"
    """luna, luna-softmax (as published, trained on its probabilities), cifar_resnet10, 18 or 34 (no stride before the first block; with -flat every place is a feature of its own, as published), alexnet, resnet18, efficientnet_v2_s, convnext_tiny, vit_b_16, swin_t (torchvision's), dino_vits8, a plain vision transformer by its form (64x4x8), or any other model of timm or torchvision."""
    weights: str = "none"
    """none, hub (ImageNet's, fetched by torchvision or timm), the path or URI of a file (.safetensors, or a .pth of tensors), or the folder of a run that was pretrained."""
    weights_sha256: str = ""
    """SHA-256 of that file, which is compared before it is read; one of the web must have it."""
    norm: Norm = "batch"
    """Batch normalisation: per worker's batch, replaced by group norm, frozen (what is loaded), or synced over GPUs."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout of the features before the linear layer (probability)."""

    def __post_init__(self) -> None:
        """Refuse what is no SHA-256."""
        super().__post_init__()
        if self.weights_sha256 and not re.fullmatch("[0-9a-f]{64}", self.weights_sha256):
            raise ConfigError(
                f"--model.weights-sha256 is {self.weights_sha256!r}; give 64 digits of 0 to 9 and a to f."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        if self.weights in ("none", "hub"):
            return {"weights_sha256": f"model.weights is {self.weights}"}
        return {}

    def fetch(self) -> str:
        """Fetch the weights to this machine; return none, timm's hub, or the path of their file.

        Raises:
            ConfigError: they cannot be had, or are others than their SHA-256 says.
        """
        if self.weights == "hub" and is_torchvision(self.network):
            return str(_torchvision_file(self.network))
        if "://" in self.weights:
            return str(fetch(self.weights, self.weights_sha256, "--model.weights-sha256"))
        file = find_weights(timm_name(self.network), self.weights)
        if file and self.weights_sha256 and self.weights != "hub":
            check_sha256(file, self.weights_sha256, "--model.weights-sha256")
        return self.weights

    def build(self, height_px: int, width_px: int) -> Network:
        """Build the network for images of this size, on the CPU.

        Raises:
            ConfigError: there is none of this name, its weights cannot be had or do not fit, or it does not
                take such images.
        """
        net = create_network(self, height_px, width_px)
        try:
            return Network(net, height_px, width_px, self.dropout)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise _refusal(self.network, height_px, width_px, describe(error)) from error


def create_network(config: NetworkConfig, height_px: int, width_px: int) -> nn.Module:
    """Build the model that a network is made of, without its last linear layer.

    Raises:
        ConfigError: as for `NetworkConfig.build`.
    """
    name, norm = config.network, config.norm
    _check_network(name)
    if name not in (*LUNA, *CIFAR) and not is_torchvision(name):
        size = height_px if height_px == width_px else (height_px, width_px)
        try:
            return create_backbone(
                timm_name(name), weights=config.fetch(), norm=norm, img_size=size
            )
        except (AssertionError, RuntimeError, ValueError) as error:
            raise _refusal(name, height_px, width_px, describe(error)) from error
    if name in CIFAR:
        net: nn.Module = CifarResNet(name, height_px, width_px)
    else:
        net = Luna() if name in LUNA else _torchvision(config, height_px, width_px)
    load_weights(net, name, config.fetch())
    if config.weights == "none":
        refuse_frozen(net, norm, f"--model.weights none with the network {name}")
    return lay_channels_last(normalise_layers(net, norm))


def is_torchvision(name: str) -> bool:
    """Tell whether a name means torchvision's net."""
    return name in TORCHVISION or (name in _torchvision_names() and not timm.is_model(name))


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(torchvision.models, exclude=ODD)
    return names


def _check_network(name: str) -> None:
    names = [*LUNA, *CIFAR, *_torchvision_names(), "dino_vits8"]
    if form_of(name) is None and not timm.is_model(timm_name(name)):
        check_name(name, [*names, *timm.list_models()], "network")


def _torchvision(config: NetworkConfig, height_px: int, width_px: int) -> nn.Module:
    """Build torchvision's net without its last linear layer.

    Raises:
        ConfigError: it does not take images of this size.
    """
    name, is_vit = config.network, config.network.startswith("vit")
    if is_vit and height_px != width_px:
        raise _refusal(name, height_px, width_px, "it takes square ones")
    if is_vit and config.weights == "hub" and height_px != VIT_PX:
        why = f"its published weights are for {VIT_PX} x {VIT_PX} px"
        raise _refusal(name, height_px, width_px, why)
    options = {"image_size": height_px} if is_vit else {}
    try:
        net: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    except AssertionError as error:
        raise _refusal(name, height_px, width_px, describe(error)) from error
    *_, last = (key for key, module in net.named_modules() if isinstance(module, nn.Linear))
    net.set_submodule(last, nn.Identity())
    if name.startswith("efficientnet"):  # as the published classifiers of castings do
        net.set_submodule("classifier.0", nn.Identity())
    return net


def _torchvision_file(name: str) -> Path:
    """Find torchvision's ImageNet weights of a net, fetching them where they are not here.

    Raises:
        ConfigError: there are none, or the download fails or is not what was published.
    """
    published = torchvision.models.get_model_weights(name)
    if "IMAGENET1K_V1" not in published.__members__:
        raise ConfigError(
            f"torchvision has no weights IMAGENET1K_V1 of {name}; use --model.weights FILE, or none."
        )
    weights = published["IMAGENET1K_V1"]
    try:
        weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, TimeoutError, RuntimeError) as error:
        raise ConfigError(
            f"The weights of {name} are not on this machine and cannot be fetched from {weights.url} ({describe(error)}); "
            "use --model.weights FILE, or none."
        ) from error
    return Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)


def _refusal(name: str, height_px: int, width_px: int, why: str) -> ConfigError:
    return ConfigError(
        f"The network {name} does not take images of {height_px} x {width_px} px ({why}); "
        f"set --image.height-px and --image.width-px to what it takes (most take {VIT_PX})."
    )


def _vit_maps(net: VisionTransformer, images: Tensor) -> Tensor:
    patches = net.conv_proj(images)
    token = net.class_token.expand(len(images), -1, -1)
    tokens = net.encoder(torch.cat([token, patches.flatten(2).transpose(1, 2)], dim=1))
    return tokens[:, 1:].transpose(1, 2).reshape(patches.shape)


def _timm_maps(net: Any, maps: Any) -> Tensor:
    """Bring what timm's `forward_features` gives to maps (n d rows columns).

    Raises:
        ConfigError: it gives tokens of unknown places, or several sets of them.
    """
    if isinstance(maps, Tensor) and maps.dim() == 4:
        return maps.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "") == "NHWC" else maps
    rows, columns = getattr(getattr(net, "patch_embed", None), "grid_size", (0, 0))
    first = getattr(net, "num_prefix_tokens", 0)
    if not isinstance(maps, Tensor) or maps.shape[1] - first != rows * columns:
        raise ConfigError(
            f"timm does not tell which places the last features of {type(net).__name__} are of, so there are no maps of it; take another network for them."
        )
    return maps[:, first:].transpose(1, 2).reshape(-1, maps.shape[2], rows, columns)
