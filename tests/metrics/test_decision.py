"""A decision planted or read from settings: its sets and answers, and what they are worth on test, by hand."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from assay.config import from_dict, to_dict
from assay.errors import ConfigError
from assay.metrics.decide import DecideConfig, Decision, measure_decision
from assay.typed import from_json, to_json

CLASSES = ["good", "crack", "pore"]


def fit(logits: Any, truth: Any, group: Any = None, **chosen: Any) -> Decision:
    group = np.arange(len(truth)) if group is None else group
    return Decision.fit(logits, truth, group, CLASSES, DecideConfig(**chosen))


def decide_with(**changes: Any) -> Decision:
    """Plant the named parts of a decision."""
    values = {
        "temperature": 1.0,
        "coverage": 0.9,
        "quantile": 0.5,
        "costs": None,
        "positive": None,
        "threshold": None,
        "num": 100,
        "num_groups": 50,
    }
    return Decision(**values | changes)


def test_a_set_holds_every_class_that_is_likely_enough_and_always_the_likeliest() -> None:
    decision = decide_with(quantile=0.6)
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.45, 0.05], [0.39, 0.31, 0.3]])
    assert decision.sets(probs).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, False, False],
    ]
    assert decision.rejected(probs).tolist() == [False, True, False]


def test_a_threshold_gives_the_class_its_due_and_leaves_the_rest_to_the_likeliest() -> None:
    probs = np.array([[0.6, 0.3, 0.1], [0.6, 0.29, 0.11], [0.05, 0.5, 0.45], [0.2, 0.2, 0.6]])
    low = decide_with(positive=1, threshold=0.3)
    assert low.answers(probs).tolist() == [1, 0, 1, 2]
    high = decide_with(positive=1, threshold=0.55)
    assert high.answers(probs).tolist() == [0, 0, 2, 2]  # row 2: the likeliest is not enough
    assert decide_with().answers(probs).tolist() == [0, 0, 1, 2]


# Settings


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"coverage": 1.0}, r"coverage is 1\.0; .* at least 0\.5 and below 1"),
        ({"coverage": 0.0}, r"coverage is 0\.0"),
        ({"coverage": math.nan}, "coverage is nan"),
        ({"positive": "crack", "recall": 1.1}, r"recall is 1\.1; .* at least 0 and at most 1"),
        ({"recall": 0.9}, r"recall is 0\.9, but no class is named"),
        ({"costs": ("crack>good=2",), "positive": "crack", "recall": 0.9}, "one rule"),
        ({"costs": ("crack>good=2", "crack>good=3")}, "crack>good=3, which names a pair .* twice"),
        ({"costs": ("crack>good",)}, "'crack>good'; write truth>answer=cost"),
        ({"costs": ("crack=2",)}, "'crack=2'"),
        ({"costs": ("crack>good>pore=2",)}, "crack>good>pore"),
        ({"costs": ("crack>good=2=3",)}, "crack>good=2=3"),
        ({"costs": ("a=b>good=2",)}, "a=b>good"),
        ({"costs": ("crack>good=-1",)}, "finite number from 0"),
        ({"costs": ("crack>good=inf",)}, "finite number from 0"),
        ({"costs": ("crack>good=nan",)}, "finite number from 0"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(chosen: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecideConfig(**chosen)


@pytest.mark.parametrize(
    "chosen", [{"positive": "dent"}, {"costs": ("dent>good=2",)}, {"costs": ("good>dent=2",)}]
)
def test_an_unknown_class_is_answered_with_those_there_are(
    random_scores: Callable[..., Any], chosen: Any
) -> None:
    logits, truth = random_scores(0)
    with pytest.raises(ConfigError, match=r"'dent'.*the classes are: good, crack, pore\."):
        fit(logits, truth, **chosen)


def test_settings_survive_json() -> None:
    config = DecideConfig(coverage=0.8, costs=("line 1: a-b>good (ok)=2.5",))
    assert from_dict(DecideConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"costs": ("crack>good=20",), "positive": "crack"},
        {"positive": "crack", "recall": 0.9},
        {"coverage": 0.999},
    ],
)
def test_a_decision_survives_json(random_scores: Callable[..., Any], chosen: Any) -> None:
    logits, truth = random_scores(5)
    decision = fit(logits, truth, np.arange(300) % 40, **chosen)
    assert (decision.num, decision.num_groups) == (300, 40)
    again = from_json(Decision, json.loads(json.dumps(to_json(decision), allow_nan=False)))
    assert again == decision
    probs = decision.probs(logits)
    np.testing.assert_array_equal(again.sets(again.probs(logits)), decision.sets(probs))
    np.testing.assert_array_equal(again.answers(probs), decision.answers(probs))


# What a decision is worth on test


def test_worth_counted_by_hand() -> None:
    probs = np.array(
        [
            [0.8, 0.15, 0.05],  # good: set {good}, right
            [0.6, 0.35, 0.05],  # crack, group a: set {good}, accepted and wrong unless threshold
            [0.5, 0.45, 0.05],  # crack: set {good, crack}, rejected
            [0.1, 0.2, 0.7],  # pore: set {pore}, right
            [0.1, 0.2, 0.7],  # good: set {pore}, wrong
        ]
    )
    truth, group = np.array([0, 1, 1, 2, 0]), np.array(["a", "a", "a", "b", "c"])
    logits = 3 * np.log(probs)
    plain = measure_decision(decide_with(quantile=0.6, temperature=3.0), logits, truth, group)
    values = {name: estimate.value for name, estimate in plain.items()}
    assert values == pytest.approx(
        {
            "set_coverage": (2 / 3 + 1 + 0) / 3,  # by group
            "set_size": 6 / 5,
            "rejected": 1 / 5,
            "accepted_accuracy": 2 / 4,
            "calibrated_nll": -np.log([0.8, 0.35, 0.45, 0.7, 0.1]).mean(),
            # bins of fifteenths: .8 in (.73, .8], .6 in (.53, .6], .5 in (.47, .53], .7 twice
            "calibrated_ece": (0.2 + 0.6 + 0.5 + 0.4) / 5,
        }
    )
    assert (plain["accepted_accuracy"].num, plain["accepted_accuracy"].num_groups) == (4, 3)
    assert (plain["set_size"].num, plain["set_size"].num_groups) == (5, 3)

    watchful = decide_with(quantile=0.6, temperature=3.0, positive=1, threshold=0.19)
    values = {
        name: estimate.value
        for name, estimate in measure_decision(watchful, logits, truth, group).items()
    }
    more = {"decided_accuracy", "recall", "precision", "escapes", "overkill"}
    assert values.keys() - plain.keys() == more
    assert values["decided_accuracy"] == 3 / 5
    assert values["recall"] == 1.0
    assert values["precision"] == 2 / 4
    assert values["escapes"] == 0.0
    assert values["overkill"] == pytest.approx(2 / 3)
    assert values["accepted_accuracy"] == 2 / 4

    thrifty = decide_with(
        temperature=3.0, costs=[[0.0, 1.0, 1.0], [9.0, 0.0, 9.0], [1.0, 1.0, 0.0]]
    )
    values = {
        name: estimate.value
        for name, estimate in measure_decision(thrifty, logits, truth, group).items()
    }
    assert values.keys() - plain.keys() == {"decided_accuracy", "cost", "cost_of_argmax"}
    # crack is answered from a tenth on: all five rows
    assert values["decided_accuracy"] == 2 / 5
    assert values["cost"] == pytest.approx(3 / 5)
    assert values["cost_of_argmax"] == pytest.approx((9 + 9 + 1) / 5)


def test_of_one_group_nothing_but_the_range_is_known() -> None:
    logits = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]))
    decision = decide_with(costs=[[0.0, 1.0, 1.0], [20.0, 0.5, 1.0], [1.0, 1.0, 0.0]])
    estimates = measure_decision(decision, logits, np.array([0, 0]), np.array(["a", "a"]))
    ranges = {name: (estimate.low, estimate.high) for name, estimate in estimates.items()}
    assert ranges.pop("set_size") == (1.0, 3.0)
    assert ranges.pop("cost") == ranges.pop("cost_of_argmax") == (0.0, 20.0)
    assert ranges.pop("calibrated_nll") == pytest.approx((0.0, -math.log(0.2)))
    assert set(ranges.values()) == {(0.0, 1.0)}
    right = measure_decision(decision, logits, np.array([0, 1]), np.array(["a", "a"]))
    assert right["calibrated_nll"].high == pytest.approx(math.log(3))


def test_what_has_no_image_is_left_out() -> None:
    logits = np.log(np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]))
    truth, group = np.array([0, 2]), np.array(["a", "b"])
    none_said = decide_with(quantile=1.0, positive=1, threshold=0.5)
    estimates = measure_decision(none_said, logits, truth, group)
    assert estimates["rejected"].value == 1.0
    assert estimates["set_size"].value == 3.0
    assert estimates["overkill"].value == 0.0
    assert not estimates.keys() & {"accepted_accuracy", "recall", "precision"}
    only_positive = measure_decision(none_said, logits, np.array([1, 1]), group)
    assert "overkill" not in only_positive
    assert only_positive["recall"].value == 0.0
    assert only_positive["escapes"].value == 1.0


def test_costs_decide_and_the_class_that_must_not_be_missed_is_measured(
    random_scores: Callable[..., Any],
) -> None:
    """Missing a crack costs nine: it is answered from a tenth on, and the threshold stays out of it."""
    logits, truth = random_scores(4)
    decision = fit(logits, truth, costs=("crack>good=9", "crack>pore=9"), positive="crack")
    assert (decision.threshold, decision.positive) == (None, 1)
    answers = decision.answers(decision.probs(logits))
    without = fit(logits, truth, costs=("crack>good=9", "crack>pore=9"))
    assert np.array_equal(answers, without.answers(without.probs(logits)))
    estimates = measure_decision(decision, logits, truth, np.arange(len(truth)))
    flagged = answers == 1
    assert estimates["escapes"].value == pytest.approx((~flagged)[truth == 1].mean())
    assert estimates["overkill"].value == pytest.approx(flagged[truth != 1].mean())
    assert estimates["escapes"].num == (truth == 1).sum()
    plain = measure_decision(fit(logits, truth, positive="crack"), logits, truth, np.arange(300))
    assert estimates["escapes"].value < plain["escapes"].value
    assert estimates["overkill"].value > plain["overkill"].value
