"""The networks of tasks/segment.py: how they begin, what they take and answer, and which are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.errors import ConfigError
from assay.nn.mask_net import MaskNetConfig, create_mask_net
from assay.train.source import TaskSource, load_task
from assay.train.task_config import TaskConfig

SCRIPT = Path(__file__).parents[2] / "tasks" / "segment.py"
TASK = load_task(TaskSource.read(SCRIPT))
SMOKE = TASK.presets()["smoke"]


def no_images(classes: str = "a") -> Dataset:
    """A dataset without rows, whose masks mark what each letter names."""
    empty = pa.table({"label": pa.array([], pa.string()), "group": pa.array([], pa.string())})
    named = empty.replace_schema_metadata({"classes": json.dumps([*classes])})
    return Dataset.of(Manifest(named), Pixels(Store(""), []))


def model(classes: str = "a") -> Any:
    torch.manual_seed(0)
    masks = replace(SMOKE.masks, classes=tuple(classes), files="{name}_{kind}.png")
    return TASK(replace(SMOKE, masks=masks), no_images(classes))


def crops(value: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8),
        "mask": np.full((2, 64, 64), value, np.uint8),
        "mean": np.full((2, 3), 0.5, np.float32),
        "std": np.full((2, 3), 0.3, np.float32),
    }


def test_what_is_marked_is_watched_against_collapse():
    """Limits of what forward logs: nothing marked, everything marked; of a clean batch nothing is said."""
    task = model()
    limits = {limit.name: limit for limit in task.limits()}

    class Constant(nn.Module):
        def __init__(self, logit: float) -> None:
            super().__init__()
            self.logit = nn.Parameter(torch.tensor(logit))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logit.expand(len(x), 1, *x.shape[2:])

    task.net = Constant(-20.0)
    assert float(task(crops(1), 0.0)["marked_ratio"]) < limits["marked_ratio"].low
    assert "marked_ratio" not in task(crops(0), 0.0)
    task.net = Constant(20.0)
    assert float(task(crops(0), 0.0)["marked_share"]) > limits["marked_share"].high
    assert limits["marked_share"].then == limits["marked_ratio"].then == "stop"


def test_each_class_has_a_mask_of_its_own():
    """A pixel of class 2 is inside for the second logit alone."""
    task = model(classes="ab")
    slopes = {}
    for value in (0, 1, 2):
        batch = crops(value)
        task.zero_grad()
        torch.manual_seed(0)
        task.train()(batch, 0.0)["loss"].backward()
        slopes[value] = task.net.segmentation_head[0].bias.grad.clone()
    assert (slopes[0] > 0).all()
    assert slopes[1][0] < 0 < slopes[1][1]
    assert slopes[2][1] < 0 < slopes[2][0]


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [("unet", "mobilenet_v3"), ("unettt", "mobilenet_v2"), ("unet", "tu-nothing")],
)
def test_a_network_that_does_not_exist_is_refused(arch, encoder):
    config = replace(SMOKE.model, arch=arch, encoder=encoder, decoder_channels=())
    with pytest.raises(ConfigError, match="There is no network"):
        TASK(replace(SMOKE, model=config), no_images())


def of_arch(arch: str, encoder: str, side: int) -> TaskConfig:
    """Settings with another network, crops and tiles of one side."""
    model = replace(SMOKE.model, arch=arch, encoder=encoder, decoder_channels=(), norm="group")
    crops, tiles = (
        replace(SMOKE.crops, crop_px=side),
        replace(SMOKE.tiles, tile_px=side, size="fixed"),
    )
    return replace(SMOKE, model=model, crops=crops, tiles=tiles)


@pytest.mark.parametrize("arch", [*smp.MODEL_ARCHITECTURES_MAPPING])
def test_every_architecture_is_taken_by_name(arch):
    """Each starts at its prior of rare pixels, and describes a tile beside answering for it."""
    side = {"dpt": 224, "pan": 256}.get(arch, 64)
    encoder = "tu-vit_tiny_patch16_224" if arch == "dpt" else SMOKE.model.encoder
    config = of_arch(arch, encoder, side)
    if arch == "pan":  # pools to one pixel, of which groups of one channel have no deviation
        config = replace(config, model=replace(config.model, norm="batch"))
    task = TASK(config, no_images()).eval()
    tile = torch.zeros(1, 3, side, side)
    logits, embedding = task.describe(tile)
    assert torch.equal(logits, task.logits(tile))
    assert logits.shape == (1, 1, side, side)
    assert embedding.shape == (1, embedding.numel())
    head = [m for m in task.net.segmentation_head.modules() if isinstance(m, nn.Conv2d)][-1]
    assert head.bias.sigmoid().tolist() == pytest.approx([0.01])
    assert arch == "pan" or not any(isinstance(m, nn.BatchNorm2d) for m in task.modules())


def test_a_size_that_the_encoder_does_not_take_is_refused():
    with pytest.raises(ConfigError, match=r"does not take crops\.crop-px 128"):
        TASK(of_arch("dpt", "tu-vit_tiny_patch16_224", 128), no_images())


def test_light_is_not_changed_where_the_image_normalises_it_away():
    """Else it would be added to what the image's own statistics have taken away."""
    base: Any = TASK.presets()["files"]
    by_image = replace(base, tiles=replace(base.tiles, normalise="image"))
    assert {"crops.brightness", "crops.contrast"} <= by_image.idle().keys()
    assert not {"crops.brightness", "crops.contrast"} & base.idle().keys()


@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_lite0", "tu-convnext_atto"])
def test_an_encoder_takes_the_weights_of_timms_model(tmp_path, lite0, encoder):
    """By whatever names the part that gives feature maps has them."""
    weights = lite0
    if "lite0" not in encoder:
        torch.manual_seed(3)
        whole = timm.create_model(encoder.removeprefix("tu-"))
        weights = tmp_path / "whole.safetensors"
        save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, weights)
    config = MaskNetConfig(encoder=encoder, weights=str(weights))
    torch.manual_seed(0)
    net: Any = create_mask_net(config, 1)
    state, image = load_file(weights), torch.rand(1, 3, 64, 64)
    reference = timm.create_model(encoder.removeprefix("tu-"), num_classes=0)
    reference.load_state_dict({key: state[key] for key in reference.state_dict()})
    _, expected = reference.eval().forward_intermediates(image)
    with torch.no_grad():
        found = net.eval().encoder(image)
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="does not hold the weights of resnet18"):
        create_mask_net(replace(config, encoder="tu-resnet18"), 1)


def test_constants_of_other_weights_are_doubted():
    base: Any = TASK.presets()["files"]
    lite0 = replace(base.model, encoder="tu-tf_efficientnet_lite0", weights="a.safetensors")
    [doubt] = replace(base, model=lite0).doubts()
    assert doubt.endswith(
        "give --tiles.normalise constants --tiles.mean 0.5 0.5 0.5 --tiles.std 0.5 0.5 0.5."
    )
    halves = replace(base.tiles, normalise="constants")
    by_image = replace(base.tiles, normalise="image")
    for tiles in (halves, by_image):
        assert replace(base, model=lite0, tiles=tiles).doubts() == []
    assert base.doubts() == []


def test_the_rule_asks_for_no_weights():
    base: Any = TASK.presets()["files"]
    missing = replace(base.model, weights="there-is-none.safetensors")
    with pytest.raises(ConfigError, match="which is no file"):
        TASK.fetch(replace(base, model=missing))
    rule = replace(missing, mode="heuristic")
    TASK.fetch(replace(base, model=rule, train=replace(base.train, epochs=0)))


def test_a_network_that_takes_no_tiles_that_fit_is_refused_before_it_learns():
    config = of_arch("pspnet", SMOKE.model.encoder, 64)
    config = replace(config, tiles=replace(config.tiles, size="fit"))
    with pytest.raises(ConfigError, match=r"give --tiles\.size fixed"):
        TASK(config, no_images())


def test_an_encoder_of_the_librarys_own_takes_the_hubs_weights(tmp_path, monkeypatch):
    """From where an earlier download has left them; one request tells that the hub is out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    config = replace(SMOKE, model=replace(SMOKE.model, encoder="resnet18", weights="hub"))
    with pytest.raises(ConfigError, match=r"weights of resnet18 .* cannot be reached \(URLError\)"):
        TASK.fetch(config)
    published = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    repo = f"models--{published['repo_id'].replace('/', '--')}"
    file = tmp_path / repo / "snapshots" / published["revision"] / "model.safetensors"
    file.parent.mkdir(parents=True)
    weights = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    save_file({**weights, "fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, file)
    TASK.fetch(config)
    encoder: Any = create_mask_net(config.model, 1).encoder
    for name, values in encoder.state_dict().items():
        torch.testing.assert_close(values, weights[name])


@pytest.mark.parametrize("encoder", ["mit_b9", "timm-regnetx_002"])
def test_an_encoder_that_nothing_was_published_for_is_named_with_the_nearest(encoder):
    config = replace(SMOKE, model=replace(SMOKE.model, encoder=encoder, weights="hub"))
    with pytest.raises(
        ConfigError, match=rf"no pretrained weights for {encoder}; .*nearest names: "
    ):
        TASK.fetch(config)
