"""Grids and scales of the scorer."""

import pytest
import torch

from assay.nn.scorer import Scorer


@pytest.mark.parametrize(
    ("trunk", "overview_px", "cells"),
    [
        ("resnet18", 850, 52),
        ("resnet18", 128, 7),
        ("resnet18", 131, 7),
        ("small", 128, 32),
        ("small", 97, 25),
        ("small", 98, 25),
        ("small", 101, 26),
    ],
)
def test_grid_is_what_the_net_gives(trunk, overview_px, cells):
    scorer = Scorer(trunk).eval()
    assert scorer.grid(overview_px) == cells
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
