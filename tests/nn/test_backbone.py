"""Backbones by name: what they give, what they refuse, what training leaves alone."""

import pickle
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from assay.errors import ConfigError
from assay.nn.backbone import (
    NAMES,
    BackboneConfig,
    create_backbone,
    create_head,
    feature_width,
    timm_name,
)
from assay.nn.norms import normalise_layers

WIDTHS = {
    "texture_small": 128,
    "resnet18": 512,
    "convnext_atto": 320,
    # of these the width is that of layers after the features
    "inception_next_atto": 960,
    "lcnet_035": 1280,
}


@pytest.mark.parametrize("name", WIDTHS)
def test_patches_become_embeddings_of_the_width_that_is_said(name):
    backbone = create_backbone(name).eval()
    assert feature_width(backbone) == WIDTHS[name]
    with torch.no_grad():
        embeddings = backbone.eval()(torch.rand(3, 3, 64, 64))
    assert embeddings.shape == (3, WIDTHS[name])


def test_names_of_the_source_are_models_of_timm_with_weights():
    published = set(timm.list_models(pretrained=True))
    assert set(NAMES.values()) <= published
    assert timm_name("facebook/dinov3-vits16-pretrain-lvd1689m") == NAMES["dinov3-vits16"]
    assert timm_name("eva02").startswith("eva02_large_patch14_448")
    assert timm_name("resnet18") == "resnet18"


def test_frozen_statistics_that_no_data_made_are_refused():
    """timm begins the last gain of a residual block at 0: frozen, the block would never learn."""
    with pytest.raises(ConfigError, match=r"--model.norm frozen .* --model.norm group"):
        create_backbone("test_resnet", norm="frozen")
    create_backbone("test_vit", norm="frozen")  # has no such layer


def test_models_of_fixed_input_take_the_size_of_the_patch():
    backbone = create_backbone("vit_tiny_patch16_224", img_size=48, drop_path=0.1)
    with torch.no_grad():
        assert backbone(torch.rand(2, 3, 48, 48)).shape == (2, 192)
    create_backbone("resnet18", img_size=48)  # no such option, and none is needed


def test_images_of_another_size_than_a_model_takes_are_refused():
    with pytest.raises(
        ConfigError, match=r"test_vit does not take images of 33 x 33 px, as patches"
    ):
        BackboneConfig(backbone="test_vit").build(33)
    with pytest.raises(ConfigError, match=r"cuts patches of 64 pixels, and images are 32 x 32"):
        create_backbone("32x2x64", img_size=32)
    backbone, _ = BackboneConfig(backbone="test_vit").build(32)
    assert backbone.training


def test_unknown_name_names_the_three_closest():
    with pytest.raises(ConfigError, match=r"'resnett18'; the closest are resnet18, \w+, \w+ \("):
        create_backbone("resnett18")
    with pytest.raises(ConfigError, match=r"closest are resnet18\.a1_in1k"):
        create_backbone("resnet18.a1_in1kk")


def test_unreachable_hub_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(ConfigError, match=r"cannot be reached .* --model.weights none"):
        create_backbone("test_resnet.r160_in1k", weights="hub")
    with pytest.raises(ConfigError, match="no pretrained weights"):
        create_backbone("texture_small", weights="hub")


def test_weights_come_from_a_file(tmp_path: Path):
    torch.manual_seed(0)
    source = timm.create_model("test_resnet", num_classes=10)
    patches = torch.rand(2, 3, 48, 48)
    source.eval()
    expected = source.forward_head(source.forward_features(patches), pre_logits=True)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "a.safetensors")
    torch.save(source.state_dict(), tmp_path / "a.pth")
    for file in ("a.safetensors", "a.pth"):
        backbone = create_backbone("test_resnet", weights=str(tmp_path / file), norm="batch").eval()
        torch.testing.assert_close(backbone(patches), expected)
    with pytest.raises(ConfigError, match="does not hold the weights of test_vit"):
        create_backbone("test_vit", weights=str(tmp_path / "a.safetensors"))


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("content", ["pickle", "torch", "noise", "nothing"])
def test_no_pickle_is_run(tmp_path: Path, monkeypatch, content, recwarn):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.pth"
    if content == "pickle":
        file.write_bytes(pickle.dumps(Payload(), protocol=4))
    elif content == "torch":
        torch.save({"weight": Payload()}, file)
    elif content == "noise":
        file.write_bytes(b"\x93 no weights")
    with pytest.raises(ConfigError, match=r"cannot be read as weights|is no file"):
        create_backbone("test_resnet", weights=str(file))
    assert not Path("executed").exists()
    assert not recwarn.list  # the sentence stands alone


def bundled(state):
    """Ways in which others save a model's tensors: wrapped by a trainer, in 16 bits, of before 2018, by another name."""
    half = {key: v.half() if v.is_floating_point() else v for key, v in state.items()}
    old = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    return {
        "a": {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
        "b": {"model": {f"module.{key}": value for key, value in state.items()}},
        "c": {"net": state, "args": {"lr": 0.1}},
        "d": half,
        "e": old,
        "f": {f"backbone.{key}": v for key, v in state.items()} | {"head.weight": torch.rand(3)},
    }


def test_weights_are_taken_from_the_wrappers_that_trainers_put_around_them(tmp_path: Path):
    torch.manual_seed(0)
    source = timm.create_model("test_resnet", num_classes=10).eval()
    torch.nn.init.normal_(source.bn1.running_mean)
    patches = torch.rand(2, 3, 48, 48)
    expected = source.forward_head(source.forward_features(patches), pre_logits=True)
    for name, content in bundled(source.state_dict()).items():
        file = tmp_path / f"{name}.pth"
        torch.save(content, file)
        backbone = create_backbone("test_resnet", weights=str(file), norm="batch").eval()
        tolerance = 1e-2 if name == "d" else 1e-5
        torch.testing.assert_close(backbone(patches), expected, rtol=tolerance, atol=tolerance)
    file = tmp_path / "safetensors_by_another_name.pth"
    safetensors.torch.save_file(source.state_dict(), file)
    create_backbone("test_resnet", weights=str(file))


@pytest.mark.parametrize("name", ["convnext_atto", "test_vit", "test_resnet", "texture_small"])
def test_whatever_a_file_of_weights_holds_it_is_refused_in_a_sentence(
    tmp_path: Path, name, damages
):
    state = timm.create_model("resnet18").state_dict()
    own = create_backbone(name, norm="batch").state_dict()
    first = next(iter(own))
    contents = {
        "resnet18": state,
        "a list": [1, 2, 3],
        "a number": 7,
        "nothing": {},
        "no tensors": {"state_dict": {"a": 1}},
        "state_dict is none": {"state_dict": None},
        "names are numbers": {1: torch.rand(3)},
        "two nets": {"student": own, "teacher": own},
        "two prefixes": {f"{p}.{key}": v for p in ("online", "target") for key, v in own.items()},
        "no numbers": own | {first: torch.full_like(own[first], torch.nan)},
        "never filled": own | {first: own[first].to("meta")},
        "zeros": {key: torch.zeros_like(value) for key, value in own.items()},
        "8 bits": {key: value.to(torch.int8) for key, value in own.items()},
        "floats of 8 bits": {key: value.to(torch.float8_e4m3fn) for key, value in own.items()},
        "beyond floats": own | {first: torch.full_like(own[first], 1e300, dtype=torch.float64)},
        "sparse": own | {first: own[first].to_sparse()},
        "another shape": own | {first: own[first][..., None]},
    }
    file = tmp_path / "a.pth"
    for content in contents.values():
        torch.save(content, file)
        with pytest.raises(ConfigError, match=r"^\S+a\.pth (cannot be|does not|holds)"):
            create_backbone(name, weights=str(file))
    variances = {key: -1 - value for key, value in own.items() if key.endswith("running_var")}
    if variances:
        torch.save(own | variances, file)
        with pytest.raises(ConfigError, match="variances below 0"):
            create_backbone(name, weights=str(file), norm="frozen")
    for start in (b"version https://git-lfs.github.com/spec/v1\noid", b"<!DOCTYPE html>\n<html>"):
        file.write_bytes(start)
        with pytest.raises(ConfigError, match=r"Git LFS pointer|web page"):
            create_backbone(name, weights=str(file))
    plain = {key: value.contiguous() for key, value in own.items()}
    safetensors.torch.save_file(plain, tmp_path / "b.safetensors")
    for path in (file, tmp_path / "b.safetensors"):
        for _ in damages(path):
            with pytest.raises(ConfigError, match=r"cannot be read as weights|is no file"):
                create_backbone(name, weights=str(path))


def test_weights_of_a_deeper_network_are_refused_by_their_further_layers(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    own = timm.create_model("test_vit", num_classes=10).state_dict()
    own |= {"head.mlp.0.weight": torch.rand(64, 64), "decoder.blocks.0.norm1.bias": torch.rand(64)}
    safetensors.torch.save_file(own, file)
    create_backbone("test_vit", weights=str(file))
    depth = len({key.split(".")[1] for key in own if key.startswith("blocks.")})
    deeper = timm.create_model("test_vit", depth=depth + 2).state_dict()
    for prefix in ("", "backbone."):
        state = {f"{prefix}{key}": value for key, value in deeper.items()}
        safetensors.torch.save_file(state, file)
        with pytest.raises(ConfigError, match=rf"more layers than test_vit has \(blocks\.{depth}"):
            create_backbone("test_vit", weights=str(file))


def test_frozen_statistics_stay_frozen_in_training():
    backbone = normalise_layers(
        create_backbone("test_efficientnet", norm="batch"), "frozen"
    ).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    patches = torch.rand(4, 3, 48, 48)
    torch.manual_seed(0)
    together = backbone(patches)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    torch.testing.assert_close(together[:1], backbone(patches[:1]), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_group_norm_makes_a_sample_independent_of_its_batch(name):
    patches = torch.rand(4, 3, 48, 48)
    backbone = create_backbone(name, norm="group").train()
    torch.testing.assert_close(backbone(patches)[:1], backbone(patches[:1]), rtol=1e-3, atol=1e-4)
    batch = create_backbone(name, norm="batch").train()
    assert not torch.allclose(batch(patches)[:1], batch(patches[:1]), rtol=1e-2)


def test_group_norm_keeps_scale_shift_and_activation():
    old = timm.layers.BatchNormAct2d(24)
    torch.nn.init.normal_(old.weight)
    new = normalise_layers(torch.nn.Sequential(old), "group")[0]
    features = torch.randn(2, 24, 5, 5)
    expected = torch.nn.functional.group_norm(features, 3, old.weight, old.bias, old.eps).relu()
    torch.testing.assert_close(new(features), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused on machines without GPU only")
def test_sync_needs_a_gpu():
    with pytest.raises(ConfigError, match="norm 'sync' needs GPUs"):
        create_backbone("test_resnet", norm="sync")


@pytest.mark.parametrize("name", ["texture_small", "test_vit", "resnet18", "poolformer_s12"])
def test_only_the_last_blocks_train(name):
    total = sum(p.numel() for p in create_backbone(name).parameters())
    shares = []
    for blocks in (0, 1, 2):
        backbone = create_backbone(name, trainable_blocks=blocks)
        trains = [p.requires_grad for p in backbone.parameters()]
        assert trains == sorted(trains)  # the trainable ones are the last
        shares.append(sum(p.numel() for p in backbone.parameters() if p.requires_grad) / total)
    assert shares[0] == 0 < shares[1] < shares[2] < 1
    with pytest.raises(ConfigError, match="give 0 to"):
        create_backbone(name, trainable_blocks=99)


def test_heads():
    """The recipes of the fingerprint reference: one layer, half the features, two of 2048 with batch norm."""

    def layers(**head: object) -> list[str]:
        net = create_head(BackboneConfig(**head), 10, 3)
        assert net(torch.rand(2, 10)).shape == (2, 3)
        return [type(m).__name__ + str(getattr(m, "out_features", "")) for m in net]

    assert layers(head="linear") == ["Linear3"]
    assert layers(head="mlp") == ["Linear5", "ReLU", "Dropout", "Linear3"]
    block = ["Linear2048", "BatchNorm1d", "ReLU", "Dropout"]
    wide = {"head": "mlp", "head_depth": 2, "head_width": 2048, "head_norm": "batch"}
    assert layers(**wide, head_dropout=0.1) == [*block, *block, "Linear3"]
    assert layers(head="mlp", head_norm="layer")[1] == "LayerNorm"


def test_texture_net_does_not_see_light():
    """A constant added to a patch changes nothing but its border."""
    backbone = create_backbone("texture_small")
    patches = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(backbone(patches + 0.7), backbone(patches), rtol=1e-3, atol=1e-4)
