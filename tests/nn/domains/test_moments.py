"""CORAL by numpy, MMD by scikit-learn."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel


def test_coral_is_numpys_moments_of_all_pairs(make_batch, algorithm_of, close):
    batch = make_batch()
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


def test_mmd_is_scikit_learns_kernels_of_all_pairs(make_batch, algorithm_of, close):
    batch = make_batch()
    seen = batch.seen()
    parts = [part.detach().double().numpy() for part in batch.parts(seen.vectors)]

    def kernel(x, y):
        return sum(rbf_kernel(x, y, gamma=10.0**power).mean() for power in range(-3, 4))

    pairs = [kernel(x, x) + kernel(y, y) - 2 * kernel(x, y) for x, y in combinations(parts, 2)]
    outputs = algorithm_of("mmd")(seen)
    close(outputs["distance_loss"].double(), np.mean(pairs), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_equal_domains_are_at_no_distance_and_moved_ones_are(make_batch, algorithm_of, close, name):
    batch = make_batch()
    vectors = torch.randn(4, 5).repeat(3, 1)
    domains = torch.tensor([0] * 4 + [1] * 4 + [3] * 4)
    algorithm = algorithm_of(name)
    same = algorithm(batch.seen(vectors=vectors, domains=domains))["distance_loss"]
    close(same, 0.0, atol=1e-5, rtol=0)
    moved = vectors + 2.0 * (domains == 1)[:, None]
    assert algorithm(batch.seen(vectors=moved, domains=domains))["distance_loss"] > 0.1
