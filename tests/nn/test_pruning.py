"""Pruning by depth: what stays is what was published, has its weights, and costs less."""

import pytest
import timm
import torch

from assay.errors import ConfigError
from assay.nn.backbone import create_backbone
from assay.nn.macs import count_macs
from assay.nn.pruning import kept_blocks, prune_blocks


def test_blocks_that_stay_are_distilberts() -> None:
    assert kept_blocks(12, 6) == [0, 2, 4, 7, 9, 11]
    assert kept_blocks(24, 2) == [0, 23]
    assert kept_blocks(5, 5) == [0, 1, 2, 3, 4]
    assert kept_blocks(5, 1) == [0]


@pytest.mark.parametrize(("name", "size"), [("32x5x8", 32), ("vit_tiny_patch16_224", 224)])
def test_a_pruned_network_has_the_weights_of_the_blocks_that_stay(name: str, size: int) -> None:
    torch.manual_seed(0)
    whole = create_backbone(name, img_size=size).eval()
    torch.manual_seed(0)
    pruned = create_backbone(name, img_size=size)
    prune_blocks(pruned, name, 3)
    pruned.eval()
    kept = kept_blocks(len(whole.blocks), 3)
    others = {n: t for n, t in whole.state_dict().items() if not n.startswith("blocks.")}
    expected = others | {
        f"blocks.{index}.{n}": tensor
        for index, block in enumerate(kept)
        for n, tensor in whole.blocks[block].state_dict().items()
    }
    found = pruned.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], tensor) for n, tensor in expected.items())
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        tokens = whole.norm_pre(whole.patch_drop(whole._pos_embed(whole.patch_embed(image))))
        for block in kept:
            tokens = whole.blocks[block](tokens)
        torch.testing.assert_close(pruned(image), whole.norm(tokens)[:, 0])
    macs = [count_macs(network, image[:1])[0] for network in (whole, pruned)]
    stem = count_macs(whole.patch_embed, image[:1])[0]
    depth = len(whole.blocks)
    assert macs[1] - stem == pytest.approx((macs[0] - stem) * 3 / depth)


def test_what_was_pruned_is_a_network_of_fewer_blocks() -> None:
    """By the name of its form other tasks may begin with it."""
    pruned = create_backbone("32x4x8", img_size=32)
    prune_blocks(pruned, "32x4x8", 2)
    create_backbone("32x2x8", img_size=32).load_state_dict(pruned.state_dict())


def test_transformers_with_rotated_positions_are_pruned_too() -> None:
    network = timm.create_model("vit_small_patch16_dinov3", num_classes=0, depth=4, embed_dim=96)
    prune_blocks(network, "dinov3", 2)
    network.eval()
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 96)


@pytest.mark.parametrize(
    ("name", "num", "why"),
    [("test_resnet", 2, "test_resnet is none"), ("32x2x8", 3, "has 2 blocks")],
)
def test_what_cannot_be_pruned_is_refused(name: str, num: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        prune_blocks(create_backbone(name, img_size=32), name, num)
