"""Measures of disagreement within a part, by numpy and by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from assay.nn.domains.consistency import disagreement, divergence, logit_variance


def test_disagreement_of_two_classes_is_the_sources(close):
    """min(#0, #1) / n of each print: 1/3, 0 and 1/2."""
    answers = torch.tensor([0, 0, 1, 1, 1, 0, 1])
    groups = torch.tensor([4, 4, 4, 0, 0, 9, 9])
    close(disagreement(nn.functional.one_hot(answers).float(), groups), (1 / 3 + 0 + 1 / 2) / 3)


def test_variance_of_logits_is_numpys(make_batch, close):
    batch = make_batch()
    logits = batch.seen().logits.detach()
    groups = batch.groups.numpy()
    parts = [logits.double().numpy()[groups == code] for code in np.unique(groups)]
    expected = np.mean([part.var(0).mean() for part in parts if len(part) > 1])
    close(logit_variance(logits, batch.groups).double(), expected, rtol=1e-5, atol=1e-6)


def test_divergence_is_the_mean_kl_from_the_mean(make_batch, close):
    batch = make_batch()
    logits = batch.seen().logits.detach()
    terms = []
    for code in batch.groups.unique():
        probs = logits[batch.groups == code].softmax(1)
        if len(probs) > 1:
            kl = nn.functional.kl_div(probs.mean(0).log().expand_as(probs), probs, reduction="none")
            terms.append(kl.sum(1).mean())
    close(divergence(logits, batch.groups), torch.stack(terms).mean())


@pytest.mark.parametrize("measure", [logit_variance, divergence])
def test_consistency_has_a_gradient_and_is_0_where_answers_agree(close, measure):
    groups = torch.tensor([0, 0, 1])
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]], requires_grad=True)
    measure(logits, groups).backward()
    assert (logits.grad[:2].abs() > 1e-3).all()
    assert (logits.grad[2] == 0).all()  # alone in its group
    same = torch.tensor([[1.0, 0.0]] * 3)
    close(measure(same, groups), 0.0, atol=1e-6, rtol=0)
    alone = torch.randn(2, 2, requires_grad=True)
    assert measure(alone, torch.tensor([0, 1])).requires_grad  # and 0
