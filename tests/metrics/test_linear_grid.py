"""Linear heads: their inputs, SGD against torch's, and what val chooses where the answer is planted."""

import numpy as np
import pytest
import torch

from assay.metrics import linear_grid
from assay.metrics.linear_grid import RATES, choose_head, inputs_of, learn_heads


def test_heads_are_given_the_last_blocks_with_and_without_the_mean_of_patches() -> None:
    tokens = np.arange(2.0 * 5 * 3).reshape(2, 5, 3)
    inputs = inputs_of(tokens)
    assert list(inputs) == [(1, False), (1, True), (4, False), (4, True)]
    np.testing.assert_array_equal(inputs[1, False], tokens[:, 3])
    np.testing.assert_array_equal(inputs[1, True], tokens[:, 3:].reshape(2, -1))
    np.testing.assert_array_equal(inputs[4, False], tokens[:, :4].reshape(2, -1))
    np.testing.assert_array_equal(inputs[4, True], tokens.reshape(2, -1))
    assert list(inputs_of(tokens[:, 3:])) == [(1, False), (1, True)]  # of a single block


def test_all_heads_learn_as_torch_would_learn_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD with momentum, rates by the batch's size and on a cosine, the same batches for all."""
    monkeypatch.setattr(linear_grid, "FEWEST_UPDATES", 25)
    monkeypatch.setattr(linear_grid, "PASSES", 1)
    rng = np.random.default_rng(0)
    features, truth = rng.normal(size=(40, 3)), rng.integers(0, 4, 40)
    weights, biases = learn_heads({(1, False): features}, truth, 4)[1, False]
    for index in (3, 9, 12):
        draws = np.random.default_rng(0)
        first = draws.normal(0, 0.01, (len(RATES), 3, 4))[index]
        head = torch.nn.Linear(3, 4, dtype=torch.float64)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(first.T))
            head.bias.zero_()
        optimizer = torch.optim.SGD(head.parameters(), lr=RATES[index] * 40 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25)
        for _ in range(25):
            rows = draws.integers(0, 40, 40)
            optimizer.zero_grad()
            logits = head(torch.from_numpy(features[rows]))
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(truth[rows])).backward()
            optimizer.step()
            schedule.step()
        np.testing.assert_allclose(weights[index], head.weight.detach().numpy().T, atol=1e-9)
        np.testing.assert_allclose(biases[index, 0], head.bias.detach().numpy(), atol=1e-9)


@pytest.mark.parametrize(("part", "expected"), [(0, (4, False)), (4, (1, True))])
def test_val_chooses_the_input_that_tells_the_class(
    part: int, expected: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part of the tokens tells the class, the others are noise; the smaller input that holds it wins, or one that holds it."""
    monkeypatch.setattr(linear_grid, "FEWEST_UPDATES", 200)
    rng = np.random.default_rng(part)
    truth, asked = rng.integers(0, 3, 300), rng.integers(0, 3, 200)

    def tokens(of: np.ndarray) -> np.ndarray:
        values = rng.normal(size=(len(of), 5, 4))
        values[:, part, :3] += 1.5 * np.eye(3)[of]
        return values

    val = np.arange(100), asked[:100]
    head = choose_head(tokens(asked), tokens(truth), truth, val, 3)
    assert (head.blocks == 4) >= (expected[0] == 4)
    assert head.pooled >= expected[1]
    assert head.rate in RATES
    assert (head.logits.argmax(1) == asked)[100:].mean() > 0.6


def test_rows_that_are_not_vals_choose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_grid, "FEWEST_UPDATES", 30)
    rng = np.random.default_rng(3)
    bank, queries = rng.normal(size=(60, 2, 4)), rng.normal(size=(40, 2, 4))
    truth, asked = rng.integers(0, 2, 60), rng.integers(0, 2, 20)
    val = np.arange(20), asked
    head = choose_head(queries, bank, truth, val, 2)
    others = np.concatenate([queries[:20], -queries[20:]])
    again = choose_head(others, bank, truth, val, 2)
    assert head[:3] == again[:3]
