"""Mixup and MixStyle: what is mixed, and what stays."""

import pytest
import torch
from torch import nn

from assay.errors import ConfigError
from assay.nn.domains.mixing import draw_partners


def test_partners_are_of_other_domains():
    torch.manual_seed(0)
    domains = torch.tensor([0, 0, 1, 3, 3, 3])
    for _ in range(20):
        partner = draw_partners(domains)
        assert (domains[partner] != domains).all()
    assert draw_partners(torch.tensor([2, 2])).tolist() == [0, 1]


def test_mixup_mixes_images_and_answers_by_the_same_share(make_batch, algorithm_of, close):
    torch.manual_seed(0)
    batch, algorithm = make_batch(), algorithm_of("mixup", alpha=1.0)
    # twelve pixels: each image has one of its own, as each answer a class of its own
    images, targets = torch.eye(12).reshape(12, 3, 2, 2), torch.eye(12)
    mixed, answers = algorithm.mix(images, targets, batch.domains)
    close(mixed.reshape(12, 12), answers)
    close(answers.sum(1), torch.ones(12))
    kept = answers.diagonal()
    assert ((kept > 0) & (kept < 1)).all()
    for code in (0, 1, 3):
        assert len(kept[batch.domains == code].unique()) == 1
    other = (answers - torch.diag(kept)).argmax(1)
    assert (batch.domains[other] != batch.domains).all()


def test_the_loss_of_a_mixed_answer_is_the_mixture_of_losses(close):
    logits, share = torch.randn(6, 3), 0.3
    first, second = torch.randint(3, (6,)), torch.randint(3, (6,))
    one_hot = nn.functional.one_hot
    mixed = share * one_hot(first, 3) + (1 - share) * one_hot(second, 3)
    ce = nn.functional.cross_entropy
    close(ce(logits, mixed), share * ce(logits, first) + (1 - share) * ce(logits, second))


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Identity()

    def forward(self, x):
        return self.layer1(x)


def test_mixstyle_mixes_the_statistics_and_keeps_the_content(algorithm_of, close):
    torch.manual_seed(0)
    algorithm = algorithm_of("mixstyle", alpha=1.0, mix_after=("layer1",))
    domains = torch.tensor([0, 0, 1, 1])
    maps = torch.randn(4, 3, 8, 8) * torch.tensor([1.0, 1.0, 5.0, 5.0])[:, None, None, None] + 2
    mixed = algorithm.mix_maps(maps, domains)

    def content(x):
        return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)

    close(content(mixed), content(maps), rtol=1e-4, atol=1e-4)
    deviations, before = mixed.std((2, 3)), maps.std((2, 3))
    # each lies between the two domains' deviations, and none is where it was
    assert (deviations > before.min()).all()
    assert (deviations < before.max()).all()
    assert ((deviations - before).abs() > 1e-3).all()


def test_mixstyle_acts_in_half_of_the_passes_and_only_in_its_context(algorithm_of):
    torch.manual_seed(0)
    algorithm = algorithm_of("mixstyle", mix_after=("layer1",), alpha=1.0)
    network, maps = Maps(), torch.randn(4, 3, 4, 4)
    domains = torch.tensor([0, 0, 1, 1])
    changed = 0
    for _ in range(400):
        with algorithm.inside(network, domains):
            changed += not torch.equal(network(maps), maps)
    assert abs(changed - 200) < 4 * 10  # four standard deviations
    assert torch.equal(network(maps), maps)


def test_mixstyle_without_a_place_is_refused(algorithm_of):
    with pytest.raises(ConfigError, match="mix-after names no module"):
        algorithm_of("mixstyle")
    algorithm = algorithm_of("mixstyle", mix_after=("layer9",))
    with pytest.raises(ConfigError, match=r"'layer9'.* in or below layer1"):
        algorithm.refuse_strangers(Maps())
    with pytest.raises(ConfigError, match="names ''"):
        algorithm_of("mixstyle", mix_after=("",)).refuse_strangers(Maps())
    algorithm_of("mixstyle", mix_after=("layer1",)).refuse_strangers(Maps())


def test_mixstyle_behind_what_gives_no_maps_is_refused(algorithm_of):
    algorithm = algorithm_of("mixstyle", mix_after=("layer1",))
    for output in (torch.zeros(4, 3), [torch.zeros(4, 3, 2, 2)]):
        with pytest.raises(ConfigError, match="layer1, not all of which give maps"):
            algorithm.maps_of(output)
