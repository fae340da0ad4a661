"""Drift: a planted move is found in its own unit, chance alone is small, too little says nothing."""

import numpy as np
import pytest

from assay.metrics.drift import IMAGES, LEAST, WINDOW, Drift, describe

SPREAD = np.array([1.0, 2.0, 5.0])
SCATTER = np.sqrt(30)  # root of the summed variances


def draw(num: int, moved: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(num)
    return rng.normal(3, 1, (num, 3)) * SPREAD + np.array([moved, 0, 0])


@pytest.mark.parametrize("moved", [0.0, 1.5])
def test_a_planted_move_is_found_in_the_unit_of_scatter(moved):
    fields = describe(draw(4000), draw(2000, moved * SCATTER))
    drift = Drift.from_card(fields)
    for embedding in draw(WINDOW, moved * SCATTER):
        drift.add(embedding)
    assert fields["num"] == 4000
    assert drift.scatter == pytest.approx(SCATTER, rel=0.03)
    assert drift.value == pytest.approx(moved, abs=0.15)
    assert drift.val == pytest.approx(moved, abs=0.08)


def test_of_images_like_those_of_training_it_is_one_by_the_root_of_their_number():
    drift = Drift(3 * SPREAD, SCATTER)
    drifts = [drift.of(batch) for batch in np.split(draw(200 * IMAGES), 200)]
    assert np.sqrt(np.mean(np.square(drifts))) == pytest.approx(1 / np.sqrt(IMAGES), rel=0.1)


def test_old_answers_are_forgotten_and_few_say_nothing():
    drift = Drift(np.zeros(2), 1.0)
    for i in range(LEAST):
        assert (drift.value is None) == (i < LEAST)
        drift.add(np.array([9.0, 0.0]))
    assert drift.value == pytest.approx(9.0)
    for _ in range(WINDOW):
        drift.add(np.array([0.0, -1.0]))
    assert drift.value == pytest.approx(1.0)


@pytest.mark.parametrize("odd", [1e30, np.inf, np.nan])
def test_an_odd_answer_is_forgotten_as_every_other(odd):
    drift = Drift(np.zeros(2), 1.0)
    drift.add(np.array([odd, odd], np.float32))
    with np.errstate(invalid="ignore"):
        for number in range(2 * WINDOW):
            drift.add(np.array([np.sin(number), 2.0], np.float32))
    kept = [[np.sin(number), 2.0] for number in range(WINDOW, 2 * WINDOW)]
    assert drift.value == pytest.approx(np.linalg.norm(np.mean(kept, axis=0)), rel=1e-6)


def test_graphs_without_an_embedding_have_none():
    assert Drift.from_card(None) is None
