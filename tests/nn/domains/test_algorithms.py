"""Each algorithm against a closed form, another library, or a derivation of its own."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor, nn

from assay.errors import ConfigError
from assay.nn.domains.adversary import build_discriminator, reversal_strength, reverse
from assay.nn.domains.base import Algorithm, Sizes, TrainBatch, rows_by_domain
from assay.nn.domains.build import ALGORITHMS, build_algorithm
from assay.nn.domains.config import PUBLISHED, AlgorithmConfig, domainbed_space
from assay.nn.domains.consistency import disagreement, divergence, logit_variance
from assay.nn.domains.gradients import weight_gradients
from assay.nn.domains.mixing import draw_partners
from assay.nn.domains.sagnet import randomise
from assay.space import sample

SIZES = Sizes(num_features=5, num_flat=20, num_classes=3, num_domains=4)


def algorithm_of(name: Any, **fields: Any) -> Algorithm:
    """An algorithm with weights of its own, the same each time."""
    torch.manual_seed(1)
    return build_algorithm(AlgorithmConfig(name=name, **fields), SIZES)


class Batch:
    """Twelve rows of domains 0, 1 and 3; domain 2 is absent."""

    def __init__(self, seed: int = 0, domains: tuple[int, ...] = (0, 0, 1, 1, 3, 3) * 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        num = len(domains)
        self.head = nn.Linear(5, 3)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.normal_(generator=generator)
        self.maps = torch.randn(num, 5, 2, 2, generator=generator).requires_grad_()
        self.truth = torch.randint(3, (num,), generator=generator)
        self.domains = torch.tensor(domains)
        self.groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 5, 5])[:num]

    def seen(self, progress: float = 0.9, phase: str = "main", **changed: Tensor) -> TrainBatch:
        vectors = changed.pop("vectors", self.maps.mean((2, 3)))
        logits = changed.pop("logits", self.head(vectors))
        losses = nn.functional.cross_entropy(logits, self.truth, reduction="none")
        fields = {"domains": self.domains, "groups": self.groups} | changed
        return TrainBatch(
            features=self.maps,
            vectors=vectors,
            logits=logits,
            losses=losses,
            truth=self.truth,
            progress=progress,
            phase=phase,
            **fields,
        )

    def parts(self, values: Tensor) -> list[Tensor]:
        return [values[self.domains == code] for code in (0, 1, 3)]


NAMES = sorted(set(PUBLISHED) - {"mixstyle"})


def close(actual, expected, **tolerance) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), **tolerance)


# Rows without labels

UNLABELLED = sorted(name for name, algorithm in ALGORITHMS.items() if algorithm.takes_unlabelled)


FIELDS = ("features", "vectors", "logits", "losses", "truth", "domains", "groups")
PHASES = [("dann-alternating", "discriminator"), *((name, "main") for name in UNLABELLED)]


def test_what_needs_no_labels_takes_rows_without():
    assert UNLABELLED == ["coral", "dann", "dann-alternating", "mmd"]


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_rows_without_labels_enter_the_loss_of_domains_alone(name, phase):
    """Its term is that of all rows together, and the risk that of those with labels."""
    batch, weight = Batch(), 0.7
    is_new, seen = batch.domains == 3, batch.seen(phase=phase)
    labelled = {field: getattr(seen, field)[~is_new] for field in FIELDS}
    part = replace(seen, **labelled, unlabelled=(seen.vectors[is_new], seen.domains[is_new]))
    algorithm = algorithm_of(name, weight=weight)
    found, whole = algorithm(part), algorithm(seen)
    term = "distance_loss" if "distance_loss" in found else "domain_loss"
    close(found[term], whole[term])
    found["loss"].backward()
    if phase == "discriminator":
        assert batch.maps.grad is None
        return
    sign = -1 if name == "dann-alternating" else 1
    close(found["loss"], part.losses.mean() + sign * weight * found[term])
    assert (batch.maps.grad[is_new] != 0).any()


@pytest.mark.parametrize("name", UNLABELLED)
def test_a_part_of_a_batch_without_any_label_has_no_risk(name):
    batch = Batch()
    seen = batch.seen()
    none = {field: getattr(seen, field)[:0] for field in FIELDS}
    outputs = algorithm_of(name)(replace(seen, **none, unlabelled=(seen.vectors, seen.domains)))
    assert torch.isfinite(outputs["loss"])
    outputs["loss"].backward()
    assert torch.isfinite(batch.maps.grad).all()


# Settings


def test_every_algorithm_has_published_values_and_a_class():
    assert set(ALGORITHMS) == set(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_what_an_algorithm_does_not_use_is_idle_and_what_it_uses_has_a_value(name):
    config = AlgorithmConfig(name=name)
    used = PUBLISHED[name]
    assert not set(used) & set(config.idle())
    for field, entry in used.items():
        assert config.value(field) == entry.default
        # the published value is within what the setting allows
        assert AlgorithmConfig(name=name, **{field: entry.default}).value(field) == entry.default


class Lowest:
    """Draws the lowest, or the highest, of everything."""

    def __init__(self, end: int) -> None:
        self.end = end

    def suggest_float(self, name, low, high, *, log):
        return (low, high)[self.end]

    suggest_int = suggest_float

    def suggest_categorical(self, name, choices):
        return choices[-self.end]


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_both_ends_of_every_range_are_allowed(name, end):
    space = domainbed_space(name)
    drawn = sample(space, AlgorithmConfig(), Lowest(end))
    fields = {key.split(".")[1]: v for key, v in drawn.items() if key.startswith("algorithm.")}
    AlgorithmConfig(name=name, **fields)
    assert drawn["optim.lr"] == pytest.approx((1e-5, 10**-3.5)[end])


# What holds for all


@pytest.mark.parametrize("name", NAMES)
def test_the_network_learns_from_every_algorithm(name):
    batch, algorithm = Batch(), algorithm_of(name)
    algorithm(batch.seen())["loss"].backward()
    assert batch.maps.grad.abs().sum() > 0
    assert torch.isfinite(batch.maps.grad).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("domains", [(3,) * 4, (0,), (0, 1, 3)])
def test_few_rows_and_few_domains_are_no_trouble(name, domains):
    """A worker's share of the last batch may hold one domain, or one row of each."""
    batch, algorithm = Batch(domains=domains), algorithm_of(name)
    for phase in algorithm.phases:
        outputs = algorithm(batch.seen(phase=phase))
        assert torch.isfinite(outputs["loss"])
        assert outputs["loss"].grad_fn is not None


def test_rows_of_domains():
    rows = rows_by_domain(torch.tensor([5, 2, 5, 7]), at_least=2)
    assert [r.tolist() for r in rows] == [[0, 2]]


def test_erm_is_the_mean_loss():
    seen = Batch().seen()
    close(algorithm_of("erm")(seen)["loss"], seen.losses.mean())


# Adversaries


def test_the_reversal_strength_is_ganins():
    assert reversal_strength(0.0) == 0
    assert reversal_strength(0.3) == pytest.approx(math.tanh(1.5))  # 2 sigmoid(10 p) - 1
    assert reversal_strength(0.9, ceiling=0.25) == 0.25


def test_reversal_is_the_identity_whose_gradient_is_turned():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = reverse(x, 0.7)
    close(y, x)
    (y**3).sum().backward()
    close(x.grad, -0.7 * 3 * x.detach() ** 2)


def test_the_discriminator_has_domainbeds_shape():
    mlp = build_discriminator(AlgorithmConfig(name="dann", width=7, depth=3), 5, 4)
    assert sum(p.numel() for p in mlp.parameters()) == (5 + 1) * 7 + (7 + 1) * 7 + (7 + 1) * 4


def test_dann_reverses_for_the_features_and_not_for_the_discriminator():
    """Against two passes without any reversal: one for each side of the game."""
    batch, algorithm = Batch(), algorithm_of("dann", weight=0.6)
    outputs = algorithm(batch.seen(progress=0.2))
    outputs["loss"].backward()
    vectors = batch.maps.detach().mean((2, 3)).requires_grad_()
    domain_loss = nn.functional.cross_entropy(algorithm.discriminator(vectors), batch.domains)
    risk = nn.functional.cross_entropy(batch.head(vectors), batch.truth)
    expected = torch.autograd.grad(
        risk - 0.6 * math.tanh(1.0) * domain_loss, vectors, retain_graph=True
    )
    close(batch.maps.grad.sum((2, 3)), expected[0])
    taught = torch.autograd.grad(0.6 * domain_loss, list(algorithm.discriminator.parameters()))
    for parameter, gradient in zip(algorithm.discriminator.parameters(), taught, strict=True):
        close(parameter.grad, gradient)
    close(outputs["domain_loss"], domain_loss)


def test_the_discriminators_accuracy_is_judged_late_alone():
    seen = Batch().seen
    algorithm = algorithm_of("dann")
    assert "late_domain_accuracy" not in algorithm(seen(progress=0.4))
    outputs = algorithm(seen(progress=0.5))
    answers = algorithm.discriminator(Batch().maps.mean((2, 3))).argmax(1)
    expected = (answers == Batch().domains).float().mean()
    close(outputs["late_domain_accuracy"], expected)
    close(outputs["domain_accuracy"], expected)


def test_the_source_stands_as_it_does_there():
    """One linear layer on the flattened map, weights 0.6 and 4, and a print loss without a gradient."""
    batch, algorithm = Batch(), algorithm_of("dann-source")
    seen = batch.seen()
    outputs = algorithm(seen)
    assert sum(p.numel() for p in algorithm.parameters()) == (20 + 1) * 4
    flat = batch.maps.reshape(12, 20)
    domain_loss = nn.functional.cross_entropy(algorithm.discriminator(flat), batch.domains)
    print_loss = disagreement(seen.logits, seen.groups)
    close(outputs["loss"], seen.losses.mean() + 0.6 * domain_loss + 4 * print_loss)
    assert not outputs["print_loss"].requires_grad


@pytest.mark.parametrize("name", ["dann-alternating", "cdann"])
def test_players_in_turn_move_only_their_own(name):
    batch, algorithm = Batch(), algorithm_of(name, d_steps=2, grad_penalty=1.0)
    assert algorithm.phases == ("discriminator", "discriminator", "main")
    algorithm(batch.seen(phase="discriminator"))["loss"].backward()
    assert batch.maps.grad is None
    # a last bias does not bear on the gradient penalty, but on the loss
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in algorithm.parameters())
    algorithm.zero_grad(set_to_none=True)
    algorithm(batch.seen(phase="main"))["loss"].backward()
    assert all(p.grad is None for p in algorithm.parameters())
    assert batch.maps.grad.abs().sum() > 0


def test_the_gradient_penalty_is_that_of_a_linear_discriminator():
    """Of softmax regression the gradient of a row's loss by its input is (p - onehot) W."""
    batch = Batch()
    algorithm = algorithm_of("dann-alternating", grad_penalty=0.3, weight=2.0)
    algorithm.discriminator = linear = nn.Linear(5, 4)
    seen = batch.seen()
    logits = linear(seen.vectors)
    wrong = logits.softmax(1) - nn.functional.one_hot(seen.domains, 4)
    penalty = (wrong @ linear.weight).square().sum(1).mean()
    domain_loss = nn.functional.cross_entropy(logits, seen.domains) + 0.3 * penalty
    close(algorithm(batch.seen(phase="discriminator"))["loss"], domain_loss)
    close(algorithm(seen)["loss"], seen.losses.mean() - 2.0 * domain_loss)


def test_cdann_adds_the_class_and_balances_classes():
    batch, algorithm = Batch(), algorithm_of("cdann", weight=1.0)
    seen = batch.seen()
    logits = algorithm.discriminator(seen.vectors + algorithm.embeddings.weight[seen.truth])
    losses = nn.functional.cross_entropy(logits, seen.domains, reduction="none")
    by_class = torch.stack([losses[seen.truth == code].mean() for code in seen.truth.unique()])
    close(algorithm(seen)["domain_loss"], by_class.mean())


# Moments


def test_coral_is_numpys_moments_of_all_pairs():
    batch = Batch()
    seen = batch.seen()
    parts = [part.detach().double().numpy() for part in batch.parts(seen.vectors)]
    pairs = [
        ((x.mean(0) - y.mean(0)) ** 2).mean() + ((np.cov(x.T) - np.cov(y.T)) ** 2).mean()
        for x, y in combinations(parts, 2)
    ]
    outputs = algorithm_of("coral", weight=3.0)(seen)
    close(outputs["distance_loss"].double(), np.mean(pairs), rtol=1e-4, atol=1e-6)
    risks = torch.stack([part.mean() for part in batch.parts(seen.losses)])
    close(outputs["loss"], risks.mean() + 3 * outputs["distance_loss"])


def test_mmd_is_scikit_learns_kernels_of_all_pairs():
    batch = Batch()
    seen = batch.seen()
    parts = [part.detach().double().numpy() for part in batch.parts(seen.vectors)]

    def kernel(x, y):
        return sum(rbf_kernel(x, y, gamma=10.0**power).mean() for power in range(-3, 4))

    pairs = [kernel(x, x) + kernel(y, y) - 2 * kernel(x, y) for x, y in combinations(parts, 2)]
    outputs = algorithm_of("mmd")(seen)
    close(outputs["distance_loss"].double(), np.mean(pairs), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_equal_domains_are_at_no_distance_and_moved_ones_are(name):
    batch = Batch()
    vectors = torch.randn(4, 5).repeat(3, 1)
    domains = torch.tensor([0] * 4 + [1] * 4 + [3] * 4)
    algorithm = algorithm_of(name)
    same = algorithm(batch.seen(vectors=vectors, domains=domains))["distance_loss"]
    close(same, 0.0, atol=1e-5, rtol=0)
    moved = vectors + 2.0 * (domains == 1)[:, None]
    assert algorithm(batch.seen(vectors=moved, domains=domains))["distance_loss"] > 0.1


# Risks


def test_vrex_is_the_variance_of_risks_and_weighs_it_late():
    batch = Batch()
    seen = batch.seen
    risks = np.array([part.mean().item() for part in batch.parts(seen().losses)])
    algorithm = algorithm_of("vrex")
    close(algorithm(seen(0.05))["loss"].double(), risks.mean() + risks.var(), rtol=1e-5, atol=1e-5)
    expected = risks.mean() + 10 * risks.var()
    close(algorithm(seen(0.1))["loss"].double(), expected, rtol=1e-5, atol=1e-5)


def test_groupdro_climbs_to_the_worst_domain():
    batch, algorithm = Batch(), algorithm_of("groupdro", eta=0.1)
    seen = batch.seen()
    risks = torch.stack([part.mean() for part in batch.parts(seen.losses)]).detach()
    outputs = algorithm(seen)
    q = torch.full((4,), 0.25)
    q[[0, 1, 3]] *= torch.exp(0.1 * risks)
    q /= q.sum()
    close(algorithm.weights, q)
    close(outputs["loss"], (q[[0, 1, 3]] * risks).sum() / q[[0, 1, 3]].sum())
    # after t equal batches q is proportional to exp(eta t risk)
    for _ in range(299):
        algorithm(batch.seen())
    gap = risks.sort().values[-1] - risks.sort().values[-2]
    present = algorithm.weights[[0, 1, 3]]
    ratio = present.sort().values[-1] / present.sort().values[-2]
    close(ratio.log(), 30 * gap, rtol=1e-3, atol=1e-3)
    assert set(algorithm.state_dict()) == {"weights"}


@pytest.mark.parametrize("eta", [5.0, 1e6])
def test_groupdro_forgets_no_domain_and_takes_any_step(eta):
    algorithm = algorithm_of("groupdro", eta=eta)
    for _ in range(100):
        algorithm(Batch().seen())
    assert torch.isfinite(algorithm.weights).all()
    alone = Batch(domains=(2,) * 12).seen()  # seen for the first time
    close(algorithm(alone)["loss"], alone.losses.mean())


# Gradients


def test_irm_is_autograds_gradient_by_the_scale():
    batch = Batch()
    seen = batch.seen()
    products = []
    for logits, truth in zip(batch.parts(seen.logits), batch.parts(batch.truth), strict=True):
        halves = []
        for half in (slice(0, None, 2), slice(1, None, 2)):
            scale = torch.ones((), requires_grad=True)
            risk = nn.functional.cross_entropy(scale * logits[half], truth[half])
            halves.append(torch.autograd.grad(risk, scale)[0])
        products.append(halves[0] * halves[1])
    outputs = algorithm_of("irm")(seen)
    close(outputs["invariance_loss"], torch.stack(products).mean())
    risks = torch.stack([part.mean() for part in batch.parts(seen.losses)])
    close(outputs["loss"], risks.mean() + 100 * outputs["invariance_loss"])


def test_the_gradient_of_irm_is_that_of_differences():
    """The penalty is differentiated a second time."""
    batch, algorithm = Batch(), algorithm_of("irm")
    logits = batch.seen().logits.detach()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))

    def penalty(step: float):
        moved = (logits + step * direction).double().requires_grad_()
        losses_of = batch.seen(logits=moved)
        return moved, algorithm(losses_of)["invariance_loss"]

    leaf, value = penalty(0.0)
    (gradient,) = torch.autograd.grad(value, leaf)
    difference = (penalty(1e-2)[1] - penalty(-1e-2)[1]) / 2e-2
    close((gradient * direction).sum().float(), difference.float(), rtol=1e-2, atol=1e-4)


def test_gradients_of_rows_are_autograds():
    batch = Batch()
    seen = batch.seen()
    expected = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(loss, [*batch.head.parameters()], retain_graph=True)
            ]
        )
        for loss in seen.losses
    ]
    close(weight_gradients(seen), torch.stack(expected))


def test_fishr_follows_the_variance_of_gradients():
    """Two batches: averages from 0, divided by 1 - decay, compared over the domains that are there."""
    algorithm = algorithm_of("fishr", decay=0.9)
    averages = np.zeros((4, 18))
    for seed in (0, 1):
        batch = Batch(seed)
        seen = batch.seen()
        gradients = weight_gradients(seen).detach().double().numpy()
        for code in (0, 1, 3):
            rows = gradients[batch.domains.numpy() == code]
            averages[code] = 0.9 * averages[code] + 0.1 * rows.var(0)
        present = averages[[0, 1, 3]] / 0.1
        penalty = ((present - present.mean(0)) ** 2).mean()
        outputs = algorithm(seen)
        close(outputs["scatter_loss"].double(), penalty, rtol=1e-4, atol=1e-8)
    close(algorithm.averages.double(), averages, rtol=1e-4, atol=1e-8)
    early = algorithm(batch.seen(0.29))
    close(early["loss"], torch.stack([p.mean() for p in batch.parts(seen.losses)]).mean())


# Mixing


def test_partners_are_of_other_domains():
    torch.manual_seed(0)
    domains = torch.tensor([0, 0, 1, 3, 3, 3])
    for _ in range(20):
        partner = draw_partners(domains)
        assert (domains[partner] != domains).all()
    assert draw_partners(torch.tensor([2, 2])).tolist() == [0, 1]


def test_mixup_mixes_images_and_answers_by_the_same_share():
    torch.manual_seed(0)
    batch, algorithm = Batch(), algorithm_of("mixup", alpha=1.0)
    # twelve pixels: each image has one of its own, as each answer a class of its own
    images, targets = torch.eye(12).reshape(12, 3, 2, 2), torch.eye(12)
    mixed, answers = algorithm.mix(images, targets, batch.domains)
    close(mixed.reshape(12, 12), answers)
    close(answers.sum(1), torch.ones(12))
    own = answers.diagonal()
    assert ((own > 0) & (own < 1)).all()
    for code in (0, 1, 3):
        assert len(own[batch.domains == code].unique()) == 1
    other = (answers - torch.diag(own)).argmax(1)
    assert (batch.domains[other] != batch.domains).all()


def test_the_loss_of_a_mixed_answer_is_the_mixture_of_losses():
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


def test_mixstyle_mixes_the_statistics_and_keeps_the_content():
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


def test_mixstyle_acts_in_half_of_the_passes_and_only_in_its_context():
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


def test_mixstyle_without_a_place_is_refused():
    with pytest.raises(ConfigError, match="mix-after names no module"):
        algorithm_of("mixstyle")
    algorithm = algorithm_of("mixstyle", mix_after=("layer9",))
    with pytest.raises(ConfigError, match=r"'layer9'.* in or below layer1"):
        algorithm.refuse_strangers(Maps())
    with pytest.raises(ConfigError, match="names ''"):
        algorithm_of("mixstyle", mix_after=("",)).refuse_strangers(Maps())
    algorithm_of("mixstyle", mix_after=("layer1",)).refuse_strangers(Maps())


def test_mixstyle_behind_what_gives_no_maps_is_refused():
    algorithm = algorithm_of("mixstyle", mix_after=("layer1",))
    for output in (torch.zeros(4, 3), [torch.zeros(4, 3, 2, 2)]):
        with pytest.raises(ConfigError, match="layer1, not all of which give maps"):
            algorithm.maps_of(output)


# SagNet


def test_randomised_style_keeps_the_content_and_the_other_way_round():
    torch.manual_seed(0)
    vectors = torch.randn(64, 40) * (0.5 + torch.rand(64, 1)) + torch.randn(64, 1)

    def content(x):
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    styled = randomise(vectors, "style")
    close(content(styled), content(vectors), rtol=1e-2, atol=1e-2)
    assert (styled.mean(1) - vectors.mean(1)).abs().mean() > 0.1
    assert styled.mean(1).min() >= vectors.mean(1).min()
    swapped = randomise(vectors, "content")
    close(swapped.mean(1), vectors.mean(1), rtol=1e-4, atol=1e-4)
    close(swapped.std(1), vectors.std(1), rtol=1e-3, atol=1e-3)
    assert (content(swapped) - content(vectors)).abs().mean() > 0.5


def test_sagnets_heads_learn_apart():
    """The network has no gradient of the style head's risk, nor the style head of the adversary."""
    batch, algorithm = Batch(), algorithm_of("sagnet")
    outputs = algorithm(batch.seen())
    outputs["style_loss"].backward(retain_graph=True)
    assert batch.maps.grad is None
    assert algorithm.style_head.weight.grad.abs().sum() > 0
    algorithm.zero_grad(set_to_none=True)
    outputs["adversarial_loss"].backward(retain_graph=True)
    assert algorithm.style_head.weight.grad is None
    assert batch.maps.grad.abs().sum() > 0
    expected = outputs["style_loss"] + 0.1 * outputs["adversarial_loss"]
    close(outputs["loss"], batch.seen().losses.mean() + expected)


def test_a_style_head_that_knows_nothing_is_the_adversarys_minimum():
    """Cross-entropy with the uniform answer is at least ln of the number of classes."""
    batch, algorithm = Batch(), algorithm_of("sagnet")
    assert algorithm(batch.seen())["adversarial_loss"] > math.log(3)
    nn.init.zeros_(algorithm.style_head.weight)
    nn.init.zeros_(algorithm.style_head.bias)
    close(algorithm(batch.seen())["adversarial_loss"], math.log(3))


# Consistency


def test_disagreement_of_two_classes_is_the_sources():
    """min(#0, #1) / n of each print: 1/3, 0 and 1/2."""
    answers = torch.tensor([0, 0, 1, 1, 1, 0, 1])
    groups = torch.tensor([4, 4, 4, 0, 0, 9, 9])
    close(disagreement(nn.functional.one_hot(answers).float(), groups), (1 / 3 + 0 + 1 / 2) / 3)


def test_variance_of_logits_is_numpys():
    batch = Batch()
    logits = batch.seen().logits.detach()
    groups = batch.groups.numpy()
    parts = [logits.double().numpy()[groups == code] for code in np.unique(groups)]
    expected = np.mean([part.var(0).mean() for part in parts if len(part) > 1])
    close(logit_variance(logits, batch.groups).double(), expected, rtol=1e-5, atol=1e-6)


def test_divergence_is_the_mean_kl_from_the_mean():
    batch = Batch()
    logits = batch.seen().logits.detach()
    terms = []
    for code in batch.groups.unique():
        probs = logits[batch.groups == code].softmax(1)
        if len(probs) > 1:
            kl = nn.functional.kl_div(probs.mean(0).log().expand_as(probs), probs, reduction="none")
            terms.append(kl.sum(1).mean())
    close(divergence(logits, batch.groups), torch.stack(terms).mean())


@pytest.mark.parametrize("measure", [logit_variance, divergence])
def test_consistency_has_a_gradient_and_is_0_where_answers_agree(measure):
    groups = torch.tensor([0, 0, 1])
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]], requires_grad=True)
    measure(logits, groups).backward()
    assert (logits.grad[:2].abs() > 1e-3).all()
    assert (logits.grad[2] == 0).all()  # alone in its group
    same = torch.tensor([[1.0, 0.0]] * 3)
    close(measure(same, groups), 0.0, atol=1e-6, rtol=0)
    alone = torch.randn(2, 2, requires_grad=True)
    assert measure(alone, torch.tensor([0, 1])).requires_grad  # and 0
