"""decide.py against scikit-learn, brute force, planted populations and simulation."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss, precision_recall_curve, recall_score

from assay.errors import PredictionsError
from assay.metrics.calibration import fit_temperature
from assay.metrics.decide import DecideConfig, Decision, measure_decision
from assay.metrics.scores.classes import softmax

CLASSES = ["good", "crack", "pore"]


@st.composite
def predictions(draw: Any, min_groups: int = 1) -> tuple[Any, Any, Any]:
    """Draw logits with many ties, truths and groups of a small set."""
    num = draw(st.integers(max(1, min_groups), 24))
    halves = st.lists(st.integers(-4, 4), min_size=3, max_size=3)
    logits = np.array(draw(st.lists(halves, min_size=num, max_size=num)), dtype=np.float32) / 2
    truth = np.array(draw(st.lists(st.integers(0, 2), min_size=num, max_size=num)))
    group = np.array(draw(st.lists(st.integers(min_groups, 24), min_size=num, max_size=num)))
    group[:min_groups] = np.arange(min_groups)
    return logits, truth, np.array([f"g{name}" for name in group])


def fit(logits: Any, truth: Any, group: Any = None, **chosen: Any) -> Decision:
    group = np.arange(len(truth)) if group is None else group
    return Decision.fit(logits, truth, group, CLASSES, DecideConfig(**chosen))


# Probabilities


def test_probabilities_are_calibrated(random_scores: Callable[..., Any]) -> None:
    logits, truth = random_scores(3)
    decision = fit(4 * logits, truth)
    np.testing.assert_allclose(
        decision.probs(4 * logits), softmax(4 * logits.astype(float) / decision.temperature)
    )
    expected = log_loss(truth, decision.probs(4 * logits), labels=range(3))
    assert expected < log_loss(truth, softmax(4 * logits), labels=range(3)) - 0.1


# Conformal sets


@given(predictions(), st.sampled_from(["0.5", "0.75", "0.8", "0.9"]))
def test_the_quantile_is_what_exact_fractions_say(val: Any, coverage: str) -> None:
    logits, truth, group = val
    decision = fit(logits, truth, group, coverage=float(coverage))
    scores = 1 - decision.probs(logits)[np.arange(len(truth)), truth]
    names = sorted(set(group))
    needed = Fraction(coverage) * (len(names) + 1)

    def mass(limit: float) -> Fraction:
        """Sum groups' shares of rows that do not exceed the limit; the group to come exceeds it."""
        rows = [scores[group == name] for name in names]
        return sum((Fraction(int((r <= limit).sum()), len(r)) for r in rows), Fraction(0))

    enough = [score for score in sorted(scores) if mass(score) >= needed]
    assert decision.quantile == (enough[0] if enough else 1.0)
    needed = Fraction(coverage) / (1 - Fraction(coverage))
    assert bool(enough) == (len(names) >= needed)


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19)])
def test_with_too_few_groups_every_class_is_possible(
    random_scores: Callable[..., Any], coverage: float, needed: int
) -> None:
    logits, truth = random_scores(4, num=400)
    logits[np.arange(400), truth] += 20  # sure and right: one class would do
    for num_groups in (needed - 1, needed):
        decision = fit(logits, truth, np.arange(400) % max(1, num_groups), coverage=coverage)
        if num_groups == needed:
            assert decision.sets(decision.probs(logits)).sum() == 400
            assert decision.quantile < 1
        elif num_groups:
            assert decision.quantile == 1
            assert decision.sets(decision.probs(logits)).all()
            assert decision.rejected(decision.probs(logits)).all()


def population(rng: Any, num_groups: int) -> tuple[Any, Any, Any]:
    """Draw groups of unlike size and difficulty: two of three have 1 hard image, the rest 30 easy."""
    is_hard = rng.random(num_groups) < 2 / 3
    group = np.repeat(np.arange(num_groups), np.where(is_hard, 1, 30))
    margin = np.where(is_hard, 0.3, 4.0) + rng.normal(size=num_groups)  # shared by a group's images
    truth = rng.integers(3, size=group.size)
    logits = rng.normal(size=(group.size, 3))
    logits[np.arange(group.size), truth] += margin[group]
    return logits, truth, group


def simulated_coverage(num_groups: int, by_group: bool, num: int = 300) -> tuple[float, float]:
    """Return mean and standard error of the coverage on new groups, each of which counts once."""
    rng, shares = np.random.default_rng(num_groups), []
    for _ in range(num):
        logits, truth, group = population(rng, num_groups)
        decision = fit(logits, truth, group if by_group else None)
        logits, truth, group = population(rng, 200)
        inside = decision.sets(decision.probs(logits))[np.arange(truth.size), truth]
        shares.append((inside / np.bincount(group)[group]).sum() / 200)
    return float(np.mean(shares)), float(np.std(shares) / math.sqrt(num))


@pytest.mark.parametrize("num_groups", [15, 60])
def test_sets_hold_the_truth_of_new_groups_as_often_as_stated(num_groups: int) -> None:
    mean, error = simulated_coverage(num_groups, by_group=True)
    assert mean > 0.9 - 3 * error
    assert mean < 0.9 + 2 / (num_groups + 1) + 3 * error  # and are not larger than they must be


def test_sets_that_ignore_groups_miss_the_truth() -> None:
    """The easy images of large groups outvote the hard ones, which are most of what is to come."""
    mean, error = simulated_coverage(60, by_group=False, num=100)
    assert mean < 0.8 - 3 * error


def test_single_images_are_covered_exactly_as_split_conformal_says() -> None:
    """Of 21 exchangeable images the new one is among the 19 best in 19 of 21 cases."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(800):
        truth = rng.integers(3, size=220)
        logits = rng.normal(size=(220, 3)) + np.eye(3)[truth]
        decision = fit(logits[:20], truth[:20])
        sets = decision.sets(decision.probs(logits[20:]))
        covered.append(sets[np.arange(200), truth[20:]].mean())
    assert np.mean(covered) == pytest.approx(19 / 21, abs=4 * np.std(covered) / math.sqrt(800))


def test_a_val_without_an_error_sharpens_nothing() -> None:
    """Ever smaller temperatures would have less NLL: sure answers that nothing vouches for."""
    truth = np.arange(60) % 3
    logits = 2.0 * np.eye(3)[truth]
    decision = fit(logits, truth)
    assert fit_temperature(logits, truth) == pytest.approx(0.01)
    assert decision.temperature == 1.0
    assert decision.probs(logits).max() < 0.8
    logits[0] = logits[1]  # one error, and the best temperature is finite
    assert 0.02 < fit(logits, truth).temperature < 50


# Thresholds


@settings(max_examples=40)
@given(predictions(), st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.9, 1.0]))
def test_the_threshold_is_the_best_of_all(val: Any, recall: float) -> None:
    logits, truth, group = val
    truth[0] = 1
    decision = fit(logits, truth, group, positive="crack", recall=recall)
    prob, is_positive = decision.probs(logits)[:, 1], truth == 1
    values = np.unique(prob)
    # every answer that any threshold can give: at the values, and beyond and between them
    between = [(low + high) / 2 for low, high in pairwise(values)]
    every = [*values, *between, 0.0, float(np.nextafter(values[-1], 2))]
    if recall:
        enough = [t for t in every if recall_score(is_positive, prob >= t) >= recall]
        assert decision.threshold in enough
        # a larger one that is enough would say the same of every image
        larger = [t for t in enough if t > decision.threshold]
        assert not larger
    else:
        scores = {t: f1_score(is_positive, prob >= t, zero_division=0.0) for t in every}
        assert scores[decision.threshold] == max(scores.values())
        assert decision.threshold == max(t for t in values if scores[t] == max(scores.values()))


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_sklearns(random_scores: Callable[..., Any], seed: int) -> None:
    logits, truth = random_scores(seed)
    prob = softmax(logits / fit_temperature(logits, truth))[:, 2]
    precision, recall, thresholds = precision_recall_curve(truth == 2, prob)
    f1 = 2 * precision * recall / (precision + recall)
    best = fit(logits.astype(float), truth, positive="pore")
    assert best.threshold == pytest.approx(thresholds[f1[:-1].argmax()], rel=1e-6)
    floor = fit(logits.astype(float), truth, positive="pore", recall=0.95)
    assert floor.threshold == pytest.approx(thresholds[recall[:-1] >= 0.95].max(), rel=1e-6)


def test_a_class_absent_from_val_has_no_threshold(random_scores: Callable[..., Any]) -> None:
    logits, truth = random_scores(0)
    with pytest.raises(PredictionsError, match=r"None of the 300 val images is 'pore'.*; draw val"):
        fit(logits, truth % 2, positive="pore")


# Costs


@given(
    predictions(),
    st.lists(
        st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES), st.integers(0, 50)),
        min_size=1,
        unique_by=lambda cost: cost[:2],
    ),
)
def test_answers_have_the_least_expected_cost(val: Any, stated: Any) -> None:
    logits, truth, group = val
    texts = tuple(f"{t}>{answer}={cost}" for t, answer, cost in stated)
    decision = fit(logits, truth, group, costs=texts)
    prices = {(t, a): float(t != a) for t in CLASSES for a in CLASSES}
    prices |= {(t, a): float(cost) for t, a, cost in stated}
    probs = decision.probs(logits)
    for row, answer in zip(probs, decision.answers(probs), strict=True):
        expected = [
            sum(p * prices[t, a] for p, t in zip(row, CLASSES, strict=True)) for a in CLASSES
        ]
        assert expected[answer] == pytest.approx(min(expected), abs=1e-12)


def test_costs_move_the_answer_where_the_odds_say_so(random_scores: Callable[..., Any]) -> None:
    """At 20 to 1 a part is called good only if a crack is less likely than 1 in 21."""
    logits, truth = random_scores(0)
    decision = fit(logits, truth, costs=("crack>good=20", "pore>pore=0.5"))
    assert decision.costs == [[0.0, 1.0, 1.0], [20.0, 0.0, 1.0], [1.0, 1.0, 0.5]]
    below, above = 1 / 21 - 1e-6, 1 / 21 + 1e-6
    probs = np.array([[1 - below, below, 0.0], [1 - above, above, 0.0]])
    assert decision.answers(probs).tolist() == [0, 1]


# What a decision is worth on test


def test_what_was_promised_on_val_holds_on_new_groups() -> None:
    rng = np.random.default_rng(1)
    decision = fit(*population(rng, 400), positive="crack", recall=0.95)
    estimates = measure_decision(decision, *population(rng, 400))
    assert estimates["set_coverage"].low < 0.9 < estimates["set_coverage"].high
    assert estimates["set_coverage"].num_groups == 400
    assert estimates["recall"].value > 0.9
    assert estimates["accepted_accuracy"].low > 0.9


@settings(max_examples=50)
@given(
    predictions(),
    predictions(),
    st.sampled_from(["", "costs", "positive", "equal costs", "no costs"]),
)
def test_worth_is_finite_and_within_range(val: Any, test: Any, rule: str) -> None:
    val[1][0] = 1
    chosen = {
        "": {},
        "costs": {"costs": ("crack>good=20", "good>good=0")},
        "positive": {"positive": "crack"},
        "equal costs": {"costs": ("good>good=1", "crack>crack=1", "pore>pore=1")},
        "no costs": {"costs": tuple(f"{t}>{a}=0" for t in CLASSES for a in CLASSES if t != a)},
    }[rule]
    decision = fit(*val, coverage=0.5, **chosen)
    for name, estimate in measure_decision(decision, *test).items():
        numbers = [estimate.value, estimate.low, estimate.high]
        assert np.isfinite(numbers).all(), name
        assert 0 <= estimate.low <= estimate.high, name
