"""Losses of masks against those of segmentation-models, and what they cost per image."""

import math

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from assay.nn.mask_loss import mask_loss

KINDS = ("dice", "bce", "focal", "tversky", "combined")


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 16, 16, generator=generator)
    return logits, (torch.rand(3, 2, 16, 16, generator=generator) < 0.3).float()


@pytest.mark.parametrize("kind", ["dice", "tversky"])
def test_overlap_is_that_of_segmentation_models(kind):
    """Their losses see a batch as one image."""
    logits, masks = drawn()
    theirs = {
        "dice": smp.losses.DiceLoss("multilabel", smooth=1.0),
        "tversky": smp.losses.TverskyLoss("multilabel", smooth=1.0, alpha=0.3, beta=0.7),
    }[kind]
    for i in range(3):
        image = logits[i : i + 1], masks[i : i + 1]
        assert mask_loss(kind, *image).item() == pytest.approx(theirs(*image).item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["dice", "tversky"])
def test_overlap_over_the_batch_is_that_of_segmentation_models(kind):
    logits, masks = drawn(4)
    theirs = {
        "dice": smp.losses.DiceLoss("multilabel", smooth=1.0),
        "tversky": smp.losses.TverskyLoss("multilabel", smooth=1.0, alpha=0.3, beta=0.7),
    }[kind]
    losses = mask_loss(kind, logits, masks, over="batch")
    assert losses.tolist() == pytest.approx([theirs(logits, masks).item()] * 3, abs=1e-6)


def test_cross_entropy_is_that_of_segmentation_models_with_pixels_inside_weighted():
    logits, masks = drawn(1)
    theirs = smp.losses.SoftBCEWithLogitsLoss(pos_weight=torch.tensor(40.0))
    assert mask_loss("bce", logits, masks, 40.0).mean().item() == pytest.approx(
        theirs(logits, masks).item(), rel=1e-6
    )
    combined = mask_loss("combined", logits, masks, 40.0)
    parts = mask_loss("bce", logits, masks, 40.0) + mask_loss("dice", logits, masks)
    assert torch.allclose(combined, parts)


def test_focal_starts_at_the_size_of_cross_entropy():
    """At logits 0: 16 (1/2)^2 log 2 times alpha = 1/4 inside and 3/4 outside."""
    masks = torch.zeros(1, 1, 4, 4)
    outside = mask_loss("focal", torch.zeros(1, 1, 4, 4), masks).item()
    inside = mask_loss("focal", torch.zeros(1, 1, 4, 4), 1 - masks).item()
    assert inside == pytest.approx(math.log(2), rel=1e-5)
    assert outside == pytest.approx(3 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_a_pixel_inside_asks_for_none_to_be_marked(kind):
    logits = nn.Parameter(torch.full((2, 1, 8, 8), -1.0))
    loss = mask_loss(kind, logits, torch.zeros(2, 1, 8, 8))
    assert torch.isfinite(loss).all()
    loss.mean().backward()
    assert (logits.grad > 0).all()
    # segmentation-models' own dice is 0 there, and teaches nothing
    assert (
        smp.losses.DiceLoss("binary")(torch.full((2, 1, 8, 8), 5.0), torch.zeros(2, 1, 8, 8)) == 0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_mask_costs_next_to_nothing_and_its_opposite_most(kind):
    masks = drawn(2)[1]
    right = mask_loss(kind, 40 * (masks - 0.5), masks)
    wrong = mask_loss(kind, 40 * (0.5 - masks), masks)
    assert (right < 1e-3).all()
    assert (wrong > 0.9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_costs_the_mean_of_its_images_however_it_is_shared_out(kind):
    logits, masks = drawn(3)
    alone = [mask_loss(kind, logits[i : i + 1], masks[i : i + 1]).item() for i in range(3)]
    assert mask_loss(kind, logits, masks).tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("over", ["image", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_nobody_judged_have_no_part(kind, over):
    """Neither value nor gradient; and half of an image judged is that half beside nothing."""
    logits, masks = drawn(3)
    judged = torch.ones(3, 1, 16, 16)
    judged[..., 8:] = 0
    masks = masks * judged
    logits.requires_grad_()
    loss = mask_loss(kind, logits, masks, 3.0, 0.7, over, judged)
    loss.sum().backward()
    assert not logits.grad[..., 8:].any()
    assert logits.grad[..., :8].any()
    certain = torch.where(judged > 0, logits.detach(), -200.0)  # as sure of no defect as can be
    assert torch.allclose(loss, mask_loss(kind, certain, masks, 3.0, 0.7, over), atol=1e-6)
