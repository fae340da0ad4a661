"""Grids and scales of the scorer."""

import pytest
import torch
from safetensors.torch import save_file

from assay.errors import ConfigError
from assay.nn.backbone import create_backbone
from assay.nn.scorer import Scorer, grid_side


@pytest.mark.parametrize(
    ("trunk", "overview_px", "cells"),
    [
        ("resnet18", 850, 52),
        ("resnet18", 128, 7),
        ("resnet18", 131, 7),
        ("tf_efficientnet_lite0", 850, 52),
        ("convnext_atto", 160, 9),
        ("small", 128, 32),
        ("small", 97, 25),
        ("small", 98, 25),
        ("small", 101, 26),
    ],
)
def test_grid_is_what_the_net_gives(trunk, overview_px, cells):
    scorer = Scorer(trunk).eval()
    assert grid_side(trunk, overview_px) == cells
    with torch.no_grad():
        scores = scorer(torch.rand(1, 3, overview_px, overview_px))
    assert scores.shape == (1, cells, cells)


def test_scores_of_each_image_run_from_zero_to_one():
    scorer = Scorer()
    with torch.no_grad():
        scores = scorer(torch.rand(3, 3, 64, 96) * torch.tensor([0.01, 1, 100]).view(3, 1, 1, 1))
    assert scores.shape == (3, 16, 24)
    assert (scores.amin((1, 2)) == 0).all()
    torch.testing.assert_close(scores.amax((1, 2)), torch.ones(3), rtol=0, atol=1e-3)


def test_asking_for_a_grid_draws_no_random_number():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    grid_side.cache_clear()
    grid_side("resnet18", 128)
    assert torch.equal(torch.rand(3), expected)


def test_a_trunk_takes_the_weights_of_the_whole_model(tmp_path):
    """Of any timm model: its maps are then those of the model up to there."""
    whole = create_backbone("test_resnet", norm="batch")
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter)
    state = {key: value.contiguous() for key, value in whole.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    scorer = Scorer("test_resnet", "frozen", str(tmp_path / "a.safetensors"))
    loaded = scorer.net[0].features.state_dict()
    assert loaded
    for key, value in loaded.items():
        torch.testing.assert_close(value, state[key.removeprefix("model.")])
    with pytest.raises(ConfigError, match="does not hold the weights of resnet18"):
        Scorer("resnet18", "frozen", str(tmp_path / "a.safetensors"))


def test_every_trained_parameter_of_a_pretrained_scorer_has_a_gradient(lite0):
    """Frozen from scratch, 663,552 of resnet18's 682,304 had none."""
    scorer = Scorer("tf_efficientnet_lite0", "frozen", str(lite0))
    scores = scorer(torch.rand(2, 3, 96, 96))
    (scores * torch.rand_like(scores)).sum().backward()
    trained = [p for p in scorer.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


def test_a_flat_image_is_no_division_by_zero():
    scorer = Scorer()
    torch.nn.init.zeros_(scorer.net[-1].weight)
    scores = scorer(torch.ones(1, 3, 64, 64))
    assert torch.equal(scores, torch.zeros(1, 16, 16))


def test_a_cell_sees_its_own_part_of_the_image():
    """The cell whose score a spot changes most is the cell the spot lies on."""
    torch.manual_seed(0)
    net, base = Scorer().net, torch.zeros(1, 3, 128, 128)
    spot = base.clone()
    spot[..., 40:44, 80:84] = 5.0
    with torch.no_grad():
        change = (net(spot) - net(base)).abs()[0, 0]
    row, col = divmod(int(change.argmax()), 32)
    assert max(abs(row - 10), abs(col - 20)) <= 3
