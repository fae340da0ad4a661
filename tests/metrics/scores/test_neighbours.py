"""What embeddings are worth, against scikit-learn, closed forms and planted copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from assay.metrics.scores.neighbours import (
    TEMPERATURE,
    effective_rank,
    neighbour_logits,
)


def clouds(num: int, num_classes: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes about centres of their own."""
    rng = np.random.default_rng(seed)
    truth = np.arange(num) % num_classes
    centres = np.random.default_rng(99).normal(0, 1, (num_classes, dim))
    return centres[truth] + rng.normal(0, 1.0, (num, dim)), truth


@settings(max_examples=30)
@given(st.integers(1, 25), st.integers(2, 5), st.integers(2, 9), st.integers(0, 999))
def test_neighbours_vote_as_scikit_learn_lets_them(
    k: int, num_classes: int, dim: int, seed: int
) -> None:
    bank, truth = clouds(60, num_classes, dim, seed)
    queries, _ = clouds(40, num_classes, dim, seed + 1)
    strangers = np.zeros((40, 60), bool)
    logits = neighbour_logits(queries, bank, truth, num_classes, strangers, k)

    def weigh(distances: np.ndarray) -> np.ndarray:  # of unit vectors: cos = 1 - d^2 / 2
        return np.exp(-(distances**2) / 2 / TEMPERATURE)

    unit_bank, unit = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries)
    )
    model = KNeighborsClassifier(k, weights=weigh, algorithm="brute").fit(unit_bank, truth)
    votes = model.predict_proba(unit)
    weights = weigh(model.kneighbors(unit)[0])
    spare = 1e-3 * weights[:, -1:] / weights.sum(1, keepdims=True)
    expected = (votes + spare) / (1 + num_classes * spare)
    np.testing.assert_allclose(np.exp(logits), expected, atol=1e-9)
    np.testing.assert_allclose(np.exp(logits).sum(1), 1)
    # length says nothing
    rng = np.random.default_rng(seed)
    longer = queries * rng.uniform(0.1, 10, (40, 1)), bank * rng.uniform(0.1, 10, (60, 1))
    again = neighbour_logits(*longer, truth, num_classes, strangers, k)
    np.testing.assert_allclose(again, logits, atol=1e-6)


def test_another_photo_of_the_same_part_never_votes() -> None:
    """Embeddings tell parts and no classes: what looks like knowledge is a copy of one's own part."""
    rng = np.random.default_rng(0)
    parts = rng.normal(0, 1, (400, 32))
    group = np.repeat(np.arange(400), 2)
    photos = parts[group] + rng.normal(0, 0.01, (800, 32))
    truth = rng.integers(0, 4, 400)[group]
    same = group[:, None] == group
    itself = np.eye(800, dtype=bool)
    leaky = neighbour_logits(photos, photos, truth, 4, itself).argmax(1) == truth
    fair = neighbour_logits(photos, photos, truth, 4, same).argmax(1) == truth
    assert leaky.mean() > 0.99
    # chance, within four standard errors of 400 parts
    assert abs(fair.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_rows_of_the_own_part_change_nothing_however_few_others_there_are() -> None:
    bank, truth = clouds(30, 3, 5, 1)
    query = -bank.sum(0, keepdims=True)  # far from everything
    for num_others in (1, 3, 20):
        same = np.ones((1, 30), bool)
        same[:, :num_others] = False
        logits = neighbour_logits(query, bank, truth, 3, same)
        few = np.zeros((1, num_others), bool)
        alone = neighbour_logits(query, bank[:num_others], truth[:num_others], 3, few)
        np.testing.assert_allclose(logits, alone, atol=1e-12)


def test_where_all_rows_are_of_the_own_part_no_class_is_preferred() -> None:
    bank, truth = clouds(9, 3, 5, 2)
    logits = neighbour_logits(bank, bank, np.zeros_like(truth), 3, np.ones((9, 9), bool))
    np.testing.assert_allclose(logits, np.log(1 / 3))


def test_a_vector_of_zeros_has_an_answer() -> None:
    bank, truth = clouds(9, 3, 5, 2)
    logits = neighbour_logits(np.zeros((1, 5)), bank, truth, 3, np.zeros((1, 9), bool))
    np.testing.assert_allclose(np.exp(logits), 1 / 3)  # all cosines are 0


@given(st.integers(1, 12), st.floats(0.01, 100))
def test_a_basis_uses_all_directions_and_a_line_one(dim: int, length: float) -> None:
    assert effective_rank(length * np.eye(dim)) == pytest.approx(dim)
    rng = np.random.default_rng(dim)
    line = np.outer(rng.normal(size=20), rng.normal(size=dim) + 3)
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)


def test_rank_is_the_exponential_of_the_entropy_of_shares() -> None:
    values = np.array([5.0, 3.0, 2.0])
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(size, 3)))[0] for size in (40, 7))
    rank = effective_rank(left @ np.diag(values) @ right.T)
    assert rank == pytest.approx(0.5**-0.5 * 0.3**-0.3 * 0.2**-0.2)
    assert effective_rank(np.zeros((4, 3))) == 1.0


@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 99))
def test_rank_lies_between_one_and_all_and_turns_with_the_space(
    num: int, dim: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(num, dim))
    rank = effective_rank(embeddings)
    assert 1 - 1e-9 <= rank <= min(num, dim) + 1e-9
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    assert effective_rank(7 * embeddings @ turn) == pytest.approx(rank)
