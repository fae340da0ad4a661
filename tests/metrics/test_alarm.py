"""The alarm against Page's recursion in plain Python, and its run lengths against a Markov chain."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import ConfigError
from assay.metrics.alarm import (
    AlarmConfig,
    AlarmState,
    advance,
    delay_s,
    false_alarms_per_hour,
    first_above,
    fit_threshold,
    path,
)

LOGITS = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40)


@given(LOGITS, st.floats(-1, 1), st.floats(0, 5))
def test_cusum_is_pages_recursion_frame_by_frame_and_all_at_once(logits, reference, threshold):
    config = AlarmConfig(reference=reference)
    values = path(config, np.array(logits))
    total, raised, state = 0.0, False, AlarmState()
    for value, logit in zip(values, logits, strict=True):
        total = max(0.0, total + logit - reference)
        assert value == pytest.approx(total, abs=1e-9)
        raised = raised or total > threshold
        state = advance(config, threshold, state, logit)
        state = AlarmState.from_dict(json.loads(json.dumps(state.to_dict())))
        assert (state.total, state.is_raised) == (pytest.approx(total), raised)


@given(LOGITS, st.integers(1, 8), st.floats(-2, 2))
def test_the_moving_average_is_numpys(logits, window, threshold):
    config = AlarmConfig(kind="average", window=window)
    values, state = path(config, np.array(logits)), AlarmState()
    for frame, logit in enumerate(logits):
        if frame + 1 < window:
            assert values[frame] == -math.inf
        else:
            expected = np.mean(logits[frame + 1 - window : frame + 1])
            assert values[frame] == pytest.approx(expected, abs=1e-9)
        state = advance(config, threshold, state, logit)
        assert len(state.recent) == min(frame + 1, window)
    near = np.isclose(values, threshold, atol=1e-9).any()
    assert near or state.is_raised == bool((values > threshold).any())


def mean_run_length(mean: float, threshold: float, num_states: int = 400) -> float:
    """Mean frames until Page's sum of normal logits exceeds a threshold (Brook and Evans 1972).

    The sum is a Markov chain on a grid: state 0 takes all that falls to 0, state i what comes within
    half a step of i steps.
    """
    step = 2 * threshold / (2 * num_states - 1)
    edges = (np.arange(num_states) + 0.5) * step
    centres = np.arange(num_states) * step
    below = 0.5 * (
        1 + np.vectorize(math.erf)((edges[None] - centres[:, None] - mean) / math.sqrt(2))
    )
    moves = np.diff(below, axis=1, prepend=0.0)
    return float(np.linalg.solve(np.eye(num_states) - moves, np.ones(num_states))[0])


def test_the_chain_gives_the_published_run_lengths():
    """Reference 1/2, threshold 4 (Lucas and Crosier 1982): one-sided 336 in control, 8.38 after one deviation."""
    assert mean_run_length(-0.5, 4.0) == pytest.approx(336, rel=0.01)
    assert mean_run_length(0.5, 4.0) == pytest.approx(8.38, rel=0.005)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_run_lengths_of_simulated_prints(mean):
    """Within four standard errors of the mean of 2000 prints."""
    rng = np.random.default_rng(0)
    logits = rng.normal(mean, 1, (2000, 4000 if mean == 0 else 200))
    values = path(AlarmConfig(reference=0.5), logits)
    lengths = np.array([first_above(row, 4.0) for row in values], dtype=float) + 1
    assert not np.isnan(lengths).any()
    error = lengths.std() / math.sqrt(len(lengths))
    assert abs(lengths.mean() - mean_run_length(mean - 0.5, 4.0)) < 4 * error


def test_false_alarms_in_an_hour_are_the_inverse_of_the_run_length():
    """Prints that end early are censored, which does not bias the rate."""
    rng = np.random.default_rng(1)
    config = AlarmConfig(reference=0.5)
    paths = [path(config, rng.normal(0, 1, rng.integers(50, 400))) for _ in range(3000)]
    rate = false_alarms_per_hour(paths, 4.0, frame_s=0.5)
    expected = 7200 / mean_run_length(-0.5, 4.0)
    num_alarms = sum(first_above(values, 4.0) is not None for values in paths)
    # a run begins at 0, where it is for some frames safer than later: censored prints have fewer alarms
    assert rate == pytest.approx(expected, rel=4 / math.sqrt(num_alarms) + 0.05)


@pytest.mark.parametrize("kind", ["cusum", "average"])
@pytest.mark.parametrize("budget", [0.0, 5.0, 40.0])
def test_the_threshold_is_the_lowest_that_keeps_the_budget(kind, budget):
    rng = np.random.default_rng(2)
    config = AlarmConfig(kind=kind, window=5, false_per_hour=budget)
    prints = [rng.normal(-0.5, 1, rng.integers(3, 60)) for _ in range(30)]
    paths = [path(config, logits) for logits in prints]
    threshold = fit_threshold(config, prints, frame_s=0.5)
    assert false_alarms_per_hour(paths, threshold, 0.5) <= budget
    values = np.unique(np.concatenate(paths))
    lower = values[np.isfinite(values) & (values < threshold)]
    assert len(lower)
    assert all(false_alarms_per_hour(paths, t, 0.5) > budget for t in lower)


def test_the_delay_runs_from_the_onset():
    values = np.array([0.0, 0.0, 1.0, 2.0, 0.0])
    assert delay_s(values, 0.5, onset=1, frame_s=0.5) == 0.5
    assert delay_s(values, 1.5, onset=4, frame_s=0.5) == -0.5
    assert delay_s(values, 2.0, onset=0, frame_s=0.5) == math.inf


def test_an_alarm_stays_on():
    state = advance(AlarmConfig(), 1.0, AlarmState(), 3.0)
    for _ in range(5):
        state = advance(AlarmConfig(), 1.0, state, -9.0)
    assert (state.total, state.is_raised) == (0.0, True)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="not a number"):
        advance(AlarmConfig(), 1.0, AlarmState(), math.nan)
    with pytest.raises(ConfigError, match="no frame of one"):
        fit_threshold(AlarmConfig(), [np.zeros(0)], 0.5)
    assert set(AlarmConfig().idle()) == {"window"}
    assert set(AlarmConfig(kind="average").idle()) == {"reference"}
