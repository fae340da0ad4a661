"""The alarm against Page's recursion in plain Python, and its run lengths against a Markov chain."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import ConfigError
from assay.metrics.alarm import (
    Alarm,
    AlarmConfig,
    AlarmState,
    false_alarms_per_hour,
    first_above,
    log_odds,
)
from assay.typed import from_json, to_json

LOGITS = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40)


def alarm_of(**fields) -> Alarm:
    return Alarm(**{"kind": "cusum", "reference": 0.0, "window": 1, "threshold": 1.0} | fields)


def page_sums(logits: np.ndarray, reference: float) -> np.ndarray:
    """Page's sum in closed form: the cumulative sum less its lowest value so far, 0 included."""
    sums = np.cumsum(logits - reference, axis=-1)
    return sums - np.minimum(np.minimum.accumulate(sums, axis=-1), 0)


@given(LOGITS, st.floats(-1, 1), st.floats(0, 5))
def test_cusum_is_pages_recursion_and_its_closed_form(logits, reference, threshold):
    alarm = alarm_of(reference=reference, threshold=threshold)
    values = alarm.path(np.array(logits))
    np.testing.assert_allclose(values, page_sums(np.array(logits), reference), atol=1e-9)
    total = 0.0
    for value, logit in zip(values, logits, strict=True):
        total = max(0.0, total + logit - reference)
        assert value == total


@given(LOGITS, st.integers(1, 8))
def test_the_moving_average_is_numpys(logits, window):
    values = alarm_of(kind="average", window=window).path(np.array(logits))
    assert len(values) == len(logits)
    for frame in range(len(logits)):
        if frame + 1 < window:
            assert values[frame] == -math.inf
        else:
            expected = np.mean(logits[frame + 1 - window : frame + 1])
            assert values[frame] == pytest.approx(expected, abs=1e-9)


@given(LOGITS, st.sampled_from(["cusum", "average"]), st.integers(1, 8), st.integers(0, 39))
def test_frame_by_frame_gives_what_the_whole_print_gives(logits, kind, window, at):
    """To the bit, also where the threshold is a value that the print reaches, as fitted ones are, and by way of JSON."""
    values = alarm_of(kind=kind, window=window).path(np.array(logits))
    reached = float(values[at % len(values)])
    alarm = alarm_of(kind=kind, window=window, threshold=reached if reached > -math.inf else 0.0)
    alarm, state = from_json(Alarm, to_json(alarm)), AlarmState()
    first = first_above(values, alarm.threshold)
    for frame, logit in enumerate(logits):
        state = alarm.advance(state, logit)
        assert (state.num, state.value) == (frame + 1, values[frame])
        assert state.first == (None if first is None or first > frame else first)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=4), st.integers(0, 1))
def test_odds_are_of_p_against_all_others(logits, positive):
    shares = np.exp(np.array(logits) - max(logits))
    others = np.delete(shares, positive).sum()
    (odds,) = log_odds(np.array([logits]), positive)
    assert odds == pytest.approx(math.log(shares[positive] / others), abs=1e-9)


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
    values = page_sums(logits, 0.5)
    lengths = np.array([first_above(row, 4.0) for row in values], dtype=float) + 1
    assert not np.isnan(lengths).any()
    error = lengths.std() / math.sqrt(len(lengths))
    assert abs(lengths.mean() - mean_run_length(mean - 0.5, 4.0)) < 4 * error


def test_false_alarms_in_an_hour_are_the_inverse_of_the_run_length():
    """Prints that end early are censored, which does not bias the rate."""
    rng = np.random.default_rng(1)
    alarm = alarm_of(reference=0.5)
    paths = [alarm.path(rng.normal(0, 1, rng.integers(50, 400))) for _ in range(3000)]
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
    alarm = Alarm.fit(config, prints, frame_s=0.5)
    paths, threshold = [alarm.path(logits) for logits in prints], alarm.threshold
    assert alarm == replace(alarm_of(kind=kind, window=5), threshold=threshold)
    assert false_alarms_per_hour(paths, threshold, 0.5) <= budget
    values = np.unique(np.concatenate(paths))
    lower = values[np.isfinite(values) & (values < threshold)]
    assert len(lower)
    assert all(false_alarms_per_hour(paths, t, 0.5) > budget for t in lower)


def test_an_alarm_stays_on():
    state = alarm_of().advance(AlarmState(), 3.0)
    for _ in range(5):
        state = alarm_of().advance(state, -9.0)
    assert (state.value, state.first) == (0.0, 0)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="not a number"):
        alarm_of().advance(AlarmState(), math.nan)
    with pytest.raises(ConfigError, match="no frame of one"):
        Alarm.fit(AlarmConfig(), [np.zeros(0)], 0.5)
    assert set(AlarmConfig().idle()) == {"window"}
    assert set(AlarmConfig(kind="average").idle()) == {"reference"}
