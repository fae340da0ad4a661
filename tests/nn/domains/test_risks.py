"""Variance of risks, and the worst domain's."""

import numpy as np
import pytest
import torch


def test_vrex_is_the_variance_of_risks_and_weighs_it_late(make_batch, algorithm_of, close):
    batch = make_batch()
    seen = batch.seen
    risks = np.array([part.mean().item() for part in batch.parts(seen().losses)])
    algorithm = algorithm_of("vrex")
    close(algorithm(seen(0.05))["loss"].double(), risks.mean() + risks.var(), rtol=1e-5, atol=1e-5)
    expected = risks.mean() + 10 * risks.var()
    close(algorithm(seen(0.1))["loss"].double(), expected, rtol=1e-5, atol=1e-5)


def test_groupdro_climbs_to_the_worst_domain(make_batch, algorithm_of, close):
    batch, algorithm = make_batch(), algorithm_of("groupdro", eta=0.1)
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
def test_groupdro_forgets_no_domain_and_takes_any_step(make_batch, algorithm_of, close, eta):
    algorithm = algorithm_of("groupdro", eta=eta)
    for _ in range(100):
        algorithm(make_batch().seen())
    assert torch.isfinite(algorithm.weights).all()
    alone = make_batch(domains=(2,) * 12).seen()  # seen for the first time
    close(algorithm(alone)["loss"], alone.losses.mean())
