"""Backbones by name: what they give, what they refuse, what training leaves alone."""

import pickle
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from assay.errors import ConfigError
from assay.nn.backbone import create_backbone, create_head, normalise_layers


@pytest.mark.parametrize("name", ["texture_small", "resnet18", "convnext_atto"])
def test_patches_become_embeddings(name):
    backbone = create_backbone(name)
    with torch.no_grad():
        embeddings = backbone(torch.rand(3, 3, 48, 48))
    assert embeddings.shape == (3, backbone.num_features)


def test_models_of_fixed_input_take_the_size_of_the_patch():
    backbone = create_backbone("vit_tiny_patch16_224", img_size=48, drop_path=0.1)
    with torch.no_grad():
        assert backbone(torch.rand(2, 3, 48, 48)).shape == (2, 192)
    create_backbone("resnet18", img_size=48)  # no such option, and none is needed


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
        create_backbone("test_resnet.r160_in1k", pretrained=True)
    with pytest.raises(ConfigError, match="no pretrained weights"):
        create_backbone("texture_small", pretrained=True)


def test_weights_come_from_a_file(tmp_path: Path):
    torch.manual_seed(0)
    source = timm.create_model("test_resnet", num_classes=10)
    patches = torch.rand(2, 3, 48, 48)
    source.eval()
    expected = source.forward_head(source.forward_features(patches), pre_logits=True)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "a.safetensors")
    torch.save(source.state_dict(), tmp_path / "a.pth")
    for file in ("a.safetensors", "a.pth"):
        backbone = create_backbone("test_resnet", weights=tmp_path / file, norm="batch").eval()
        torch.testing.assert_close(backbone(patches), expected)
    with pytest.raises(ConfigError, match="does not hold the weights of test_vit"):
        create_backbone("test_vit", weights=tmp_path / "a.safetensors")


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("content", ["pickle", "torch", "noise", "nothing"])
def test_no_pickle_is_run(tmp_path: Path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.pth"
    if content == "pickle":
        file.write_bytes(pickle.dumps(Payload(), protocol=2))
    elif content == "torch":
        torch.save({"weight": Payload()}, file)
    elif content == "noise":
        file.write_bytes(b"\x93 no weights")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        create_backbone("test_resnet", weights=file)
    assert not Path("executed").exists()


def test_frozen_statistics_stay_frozen_in_training():
    backbone = create_backbone("test_efficientnet", norm="frozen").train()
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


@pytest.mark.parametrize("name", ["texture_small", "test_vit", "resnet18"])
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
    embeddings = torch.rand(2, 10)
    assert create_head("linear", 10, 3)(embeddings).shape == (2, 3)
    mlp = create_head("mlp", 10, 3)
    assert mlp(embeddings).shape == (2, 3)
    assert mlp[0].out_features == 5


def test_texture_net_does_not_see_light():
    """A constant added to a patch changes nothing but its border."""
    backbone = create_backbone("texture_small")
    patches = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(backbone(patches + 0.7), backbone(patches), rtol=1e-3, atol=1e-4)
