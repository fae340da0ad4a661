"""What holds for every algorithm: settings, small batches, rows without labels."""

from dataclasses import replace

import pytest
import torch

from assay.nn.domains.base import rows_by_domain
from assay.nn.domains.build import ALGORITHMS
from assay.nn.domains.config import PUBLISHED, AlgorithmConfig, domainbed_space
from assay.space import sample

NAMES = sorted(set(PUBLISHED) - {"mixstyle"})
UNLABELLED = sorted(name for name, algorithm in ALGORITHMS.items() if algorithm.takes_unlabelled)
FIELDS = ("features", "vectors", "logits", "losses", "truth", "domains", "groups")
PHASES = [("dann-alternating", "discriminator"), *((name, "main") for name in UNLABELLED)]


def test_what_needs_no_labels_takes_rows_without():
    assert UNLABELLED == ["coral", "dann", "dann-alternating", "mmd"]


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_rows_without_labels_enter_the_loss_of_domains_alone(
    make_batch, algorithm_of, close, name, phase
):
    """Its term is that of all rows together, and the risk that of those with labels."""
    batch, weight = make_batch(), 0.7
    is_new, seen = batch.domains == 3, batch.seen(phase=phase)
    labelled = {field: getattr(seen, field)[~is_new] for field in FIELDS}
    part = replace(seen, **labelled, unlabelled=(seen.vectors[is_new], seen.domains[is_new]))
    algorithm = algorithm_of(name, weight=weight)
    apart, whole = algorithm(part), algorithm(seen)
    term = "distance_loss" if "distance_loss" in apart else "domain_loss"
    close(apart[term], whole[term])
    apart["loss"].backward()
    if phase == "discriminator":
        assert batch.maps.grad is None
        return
    sign = -1 if name == "dann-alternating" else 1
    close(apart["loss"], part.losses.mean() + sign * weight * apart[term])
    assert (batch.maps.grad[is_new] != 0).any()


@pytest.mark.parametrize("name", UNLABELLED)
def test_a_part_of_a_batch_without_any_label_has_no_risk(make_batch, algorithm_of, name):
    batch = make_batch()
    seen = batch.seen()
    none = {field: getattr(seen, field)[:0] for field in FIELDS}
    outputs = algorithm_of(name)(replace(seen, **none, unlabelled=(seen.vectors, seen.domains)))
    assert torch.isfinite(outputs["loss"])
    outputs["loss"].backward()
    assert torch.isfinite(batch.maps.grad).all()


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


@pytest.mark.parametrize("name", NAMES)
def test_the_network_learns_from_every_algorithm(make_batch, algorithm_of, name):
    batch, algorithm = make_batch(), algorithm_of(name)
    algorithm(batch.seen())["loss"].backward()
    assert batch.maps.grad.abs().sum() > 0
    assert torch.isfinite(batch.maps.grad).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("domains", [(3,) * 4, (0,), (0, 1, 3)])
def test_few_rows_and_few_domains_are_no_trouble(make_batch, algorithm_of, name, domains):
    """A worker's share of the last batch may hold one domain, or one row of each."""
    batch, algorithm = make_batch(domains=domains), algorithm_of(name)
    for phase in algorithm.phases:
        outputs = algorithm(batch.seen(phase=phase))
        assert torch.isfinite(outputs["loss"])
        assert outputs["loss"].grad_fn is not None


def test_rows_of_domains():
    rows = rows_by_domain(torch.tensor([5, 2, 5, 7]), at_least=2)
    assert [r.tolist() for r in rows] == [[0, 2]]


def test_erm_is_the_mean_loss(make_batch, algorithm_of, close):
    seen = make_batch().seen()
    close(algorithm_of("erm")(seen)["loss"], seen.losses.mean())
