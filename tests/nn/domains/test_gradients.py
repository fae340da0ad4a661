"""Penalties of gradients against autograd's."""

import numpy as np
import torch
from torch import nn

from assay.nn.domains.gradients import weight_gradients


def test_irm_is_autograds_gradient_by_the_scale(make_batch, algorithm_of, close):
    batch = make_batch()
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


def test_the_gradient_of_irm_is_that_of_differences(make_batch, algorithm_of, close):
    """The penalty is differentiated a second time."""
    batch, algorithm = make_batch(), algorithm_of("irm")
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


def test_gradients_of_rows_are_autograds(make_batch, close):
    batch = make_batch()
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


def test_fishr_follows_the_variance_of_gradients(make_batch, algorithm_of, close):
    """Two batches: averages from 0, divided by 1 - decay, compared over the domains that are there."""
    algorithm = algorithm_of("fishr", decay=0.9)
    averages = np.zeros((4, 18))
    for seed in (0, 1):
        batch = make_batch(seed)
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
