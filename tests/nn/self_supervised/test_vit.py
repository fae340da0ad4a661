"""Vision transformers with hidden places, against timm's own forward pass."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from assay.errors import ConfigError
from assay.nn.self_supervised.vit import MaskedVit, VitConfig

SMALL = VitConfig(backbone="32x2x8", drop_path=0.0, registers=2)


def net(config: VitConfig = SMALL, size: tuple[int, int] = (32, 32)) -> MaskedVit:
    torch.manual_seed(0)
    return MaskedVit(config, size).eval()


def test_tokens_are_those_of_timm_and_stand_row_by_row() -> None:
    model, images = net(), torch.randn(2, 3, 32, 48)
    classes, patches = model(images)
    tokens = model.vit.forward_features(images)
    assert torch.equal(classes, tokens[:, 0])
    assert torch.equal(patches, tokens[:, 3:])
    assert patches.shape == (2, 4 * 6, 32)


def test_what_is_hidden_has_no_effect_and_what_is_not_has() -> None:
    model = net()
    images = torch.randn(1, 3, 32, 32)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 6] = True  # row 1, column 2
    changed = images.clone()
    changed[:, :, 8:16, 16:24] += 1
    assert torch.equal(model(images, mask)[0], model(changed, mask)[0])
    assert not torch.allclose(model(images)[0], model(changed)[0])
    changed[:, :, 0, 0] += 1
    assert not torch.allclose(model(images, mask)[0], model(changed, mask)[0])
    model.mask_token.data[0, :16] = 3.0  # LayerNorm takes out what all entries have
    assert not torch.allclose(model(images, mask)[0], net()(images, mask)[0])
    # a mask is of one pass alone
    assert torch.equal(model(images)[0], net()(images)[0])


def test_the_last_tokens_are_those_of_the_last_blocks_normalised() -> None:
    """The last block's are what a pass gives; those before come from a net that ends there."""
    model = net(VitConfig(backbone="32x3x8", drop_path=0.0, registers=2))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.last_tokens(images, 2)
        assert tokens.shape == (2, 3, 32)
        classes, patches = model(images)
        torch.testing.assert_close(tokens[:, 1], classes)
        torch.testing.assert_close(tokens[:, 2], patches.mean(1))
        assert model.last_tokens(images, 9).shape == (2, 4, 32)  # of three blocks
        model.vit.blocks = model.vit.blocks[:2]
        torch.testing.assert_close(tokens[:, 0], model(images)[0])


def test_positions_of_another_size_are_interpolated() -> None:
    model = net()
    one = torch.zeros(1, 3, 16, 16)
    classes, patches = model(one)
    assert patches.shape == (1, 4, 32)
    assert torch.isfinite(classes).all()
    with torch.no_grad():
        model.vit.pos_embed.zero_()
    # without positions all patches of a blank image are alike
    assert torch.allclose(model(one)[1][:, 0], model(one)[1][:, 3], atol=1e-5)


def test_every_block_is_left_out_as_often() -> None:
    model = MaskedVit(VitConfig(backbone="32x3x8", drop_path=0.4), (32, 32))
    rates = [block.drop_path1.drop_prob for block in model.vit.blocks]
    assert rates == [0.4] * 3
    model.train()
    images = torch.randn(1, 3, 32, 32)
    assert len({model(images)[0].sum().item() for _ in range(8)}) > 1
    model.eval()
    assert len({model(images)[0].sum().item() for _ in range(3)}) == 1


def test_branches_are_scaled_as_asked() -> None:
    model = net(VitConfig(backbone="32x2x8", layer_scale=1e-5, drop_path=0.0))
    assert float(model.vit.blocks[1].ls1.gamma[0].detach()) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("name", "registers", "num_prefix"),
    [("vit_small_patch14_reg4_dinov2", None, 5), ("vit_small_patch16_dinov3", 3, 4)],
)
def test_dinos_backbones_are_had_by_name(name: str, registers: int | None, num_prefix: int) -> None:
    with torch.device("meta"):
        model = MaskedVit(VitConfig(backbone=name, registers=registers), (112, 112))
    assert model.vit.num_prefix_tokens == num_prefix


def test_weights_are_loaded_whole(tmp_path: Path) -> None:
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(whole.state_dict(), tmp_path / "tiny.safetensors")
    config = VitConfig(backbone="vit_tiny_patch16_224", weights=str(tmp_path / "tiny.safetensors"))
    model = net(config, (224, 224))
    assert torch.equal(model.vit.blocks[3].attn.qkv.weight, whole.blocks[3].attn.qkv.weight)
    save_file({"cls_token": whole.cls_token.data}, tmp_path / "part.safetensors")
    with pytest.raises(ConfigError, match="1 of its 150 tensors fit, 149 missing"):
        net(VitConfig(backbone=config.backbone, weights=str(tmp_path / "part.safetensors")))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (VitConfig(backbone="resnet18"), "give a vision transformer of timm"),
        (VitConfig(backbone="vit_base_patch16_gap_224"), "class token"),
        (VitConfig(backbone="vit_relpos_small_patch16_224"), "class token"),
        (VitConfig(backbone="40x2x8"), "width in 32s"),
        (VitConfig(backbone="32x2x8", weights="hub"), "no pretrained weights for 32x2x8"),
    ],
)
def test_what_cannot_be_had_is_said(config: VitConfig, says: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=says):
        MaskedVit(config, (64, 64))
