"""The memory of good places: distances, the coreset, the blur and the scale of its logits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from assay.errors import ConfigError
from assay.nn.patch_memory import BLUR, PatchMemory, PatchMemoryConfig, blur, coreset, nearest

SMALL = PatchMemoryConfig(backbone="test_resnet", weights="none", stages=(1, 2), memory=20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nearest_distances_are_scipys() -> None:
    rows, others = torch.randn(30, 7, generator=seeded()), torch.randn(11, 7, generator=seeded(1))
    expected = cdist(rows.numpy(), others.numpy()).min(1)
    np.testing.assert_allclose(nearest(rows, others).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert nearest(others, others).max() < 2e-3  # of itself, but for rounding


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 2**31))
def test_each_chosen_row_is_the_farthest_from_those_before(n: int, num: int, seed: int) -> None:
    rows = torch.randn(n, 3, generator=seeded(seed))
    chosen = coreset(rows, num, seeded())
    if n <= num:
        assert chosen.tolist() == list(range(n))
        return
    distances = cdist(rows.numpy(), rows.numpy())
    for i in range(1, num):
        least = distances[:, chosen[:i].numpy()].min(1)
        assert least[chosen[i]] == pytest.approx(least.max(), rel=1e-5)


def test_few_random_dimensions_choose_nearly_as_well() -> None:
    """Three clusters far apart in 500 dimensions: three rows chosen are one of each."""
    centres = 10 * torch.randn(3, 500, generator=seeded(2))
    rows = centres.repeat_interleave(20, 0) + 0.1 * torch.randn(60, 500, generator=seeded(3))
    assert sorted((coreset(rows, 3, seeded()) // 20).tolist()) == [0, 1, 2]


def test_the_blur_is_scipys() -> None:
    maps = torch.randn(2, 1, 40, 50, generator=seeded())
    for ours, theirs in zip(blur(maps)[:, 0].numpy(), maps[:, 0].numpy(), strict=True):
        expected = gaussian_filter(theirs, BLUR, mode="nearest", truncate=3)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_places_are_means_of_three_by_three_at_the_first_stages_size() -> None:
    net = PatchMemory(SMALL)
    images = torch.randn(2, 3, 32, 48, generator=seeded())
    maps, features = net.backbone(images), net.features(images)
    assert features.shape[2:] == maps[0].shape[2:] == (8, 12)
    expected = maps[0][:, :, 2:5, 4:7].mean((2, 3))
    torch.testing.assert_close(features[:, : maps[0].shape[1], 3, 5], expected)


def test_good_places_have_low_logits_and_a_planted_one_far_higher() -> None:
    net = PatchMemory(SMALL)
    good = [torch.randn(1, 3, 64, 64, generator=seeded(i)) for i in range(6)]
    net.remember(good[:4], good[4:], seeded())
    middle, high = net.bounds.tolist()
    assert 0 < middle < high
    places = torch.cat([net.features(each).permute(0, 2, 3, 1).flatten(0, 2) for each in good[:4]])
    assert all((net.bank == place).all(1).any() for place in places[coreset(places, 20, seeded())])
    others = torch.cat([net.features(each).permute(0, 2, 3, 1).flatten(0, 2) for each in good[4:]])
    distances = nearest(others, net.bank)
    assert (distances <= middle).float().mean() == pytest.approx(0.5, abs=0.01)
    assert (distances > high * 1.0001).sum() == 1
    planted = good[5].clone()
    planted[..., 24:40, 24:40] += 8
    before, after = net(good[5])[0, 0], net(planted)[0, 0]
    flat = net.logits(torch.zeros(1, net.bank.shape[1], 8, 8), (64, 64))
    far = net.bank.norm(dim=1).min()
    torch.testing.assert_close(flat, (2 * (far - middle) / (high - middle) - 6).expand_as(flat))
    assert before.max() < -3
    assert after[24:40, 24:40].min() > before.max()
    assert after[24:40, 24:40].max() > 0


def test_a_memory_larger_than_what_is_seen_holds_all_of_it() -> None:
    net = PatchMemory(
        PatchMemoryConfig(backbone="test_resnet", weights="none", stages=(3,), memory=30)
    )
    image = torch.randn(1, 3, 64, 64, generator=seeded())
    net.remember([image], [torch.randn(1, 3, 64, 64, generator=seeded(1))], seeded())
    places = net.features(image).permute(0, 2, 3, 1).flatten(0, 2)
    assert len(places) < 30
    assert {tuple(row) for row in net.bank.tolist()} == {tuple(row) for row in places.tolist()}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"backbone": "resnet1"}, "take a convolutional network of timm"),
        ({"backbone": "resnet18", "stages": (2, 9)}, "stages that it has"),
    ],
)
def test_what_cannot_be_built_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PatchMemory(PatchMemoryConfig(**{"weights": "none"} | settings))  # type: ignore[arg-type]


def test_stages_rise() -> None:
    with pytest.raises(ConfigError, match="each once, rising"):
        PatchMemoryConfig(stages=(3, 2))
