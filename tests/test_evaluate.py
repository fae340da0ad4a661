"""evaluate.py against scikit-learn, scipy, closed forms, simulation and planted errors."""

import json
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from assay.errors import PredictionsError
from assay.evaluate import (
    Estimate,
    accuracy,
    by_group,
    difference,
    ece,
    fit_temperature,
    interval,
    macro_f1,
    nll,
    softmax,
    summarise,
)

CLASSES = ["m1", "m2", "m3"]
NUM_SIMULATIONS = 500  # a standard error of 0.01 on a coverage of 0.95


def random_scores(seed: int, num: int = 300, num_classes: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(num_classes, size=num).astype(np.int32)
    logits = rng.normal(scale=1.5, size=(num, num_classes)).astype(np.float32)
    logits[np.arange(num), truth] += 1.0
    return logits, truth


def make_table(num: int = 12, seed: int = 0, **columns: Any) -> pa.Table:
    """A table of `num` rows, two per group; columns given replace or join those made."""
    rng = np.random.default_rng(seed)
    made = {
        "id": [f"s{i:05d}" for i in range(num)],
        "split": ["val" if i % 6 < 2 else "test_seen" for i in range(num)],
        "group": [f"g{i // 2:05d}" for i in range(num)],
        "domain.machine": [("a", "b")[i // 2 % 2] for i in range(num)],
        "truth": pa.array([i // 2 % 3 for i in range(num)], pa.int32()),
        "logits": pa.array(rng.normal(size=(num, 3)).tolist(), pa.list_(pa.float32())),
    } | columns
    return pa.table(made).replace_schema_metadata({"classes": json.dumps(CLASSES)})


def hit_logits(truth: Any, hits: Any) -> pa.Array:
    """Logits whose argmax is the truth where `hits` and the next class elsewhere."""
    picked = np.where(hits, truth, (np.asarray(truth) + 1) % 3)
    return pa.array(np.eye(3)[picked].tolist(), pa.list_(pa.float32()))


# Metrics


@pytest.mark.parametrize("num_classes", [2, 3, 21])
def test_metrics_agree_with_sklearn(num_classes: int) -> None:
    logits, truth = random_scores(num_classes, num_classes=num_classes)
    predicted = logits.argmax(axis=1)
    assert accuracy(logits, truth) == pytest.approx(accuracy_score(truth, predicted))
    assert macro_f1(logits, truth) == pytest.approx(f1_score(truth, predicted, average="macro"))
    expected = log_loss(truth, softmax(logits), labels=np.arange(num_classes))
    assert nll(logits, truth) == pytest.approx(expected)


def test_macro_f1_leaves_out_a_class_neither_true_nor_predicted() -> None:
    logits = np.array([[2.0, 1.0, -9.0], [2.0, 1.0, -9.0], [1.0, 2.0, -9.0], [1.0, 2.0, -9.0]])
    truth = np.array([0, 1, 1, 1])
    # class 0: tp 1, fp 1, fn 0 -> 2/3; class 1: tp 2, fp 0, fn 1 -> 4/5; class 2: left out
    assert macro_f1(logits, truth) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_macro_f1_counts_a_class_predicted_but_never_true_as_zero() -> None:
    logits = np.eye(3)[[0, 0, 2]]
    assert macro_f1(logits, np.array([0, 0, 0])) == pytest.approx((2 * 2 / 5 + 0) / 2)


def test_nll_and_softmax_survive_huge_logits() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], dtype=np.float32)
    assert nll(logits, np.array([0, 0])) == pytest.approx(5e3)
    np.testing.assert_array_equal(softmax(logits), np.eye(2))


def test_ece_by_hand() -> None:
    probs = np.array([[0.62, 0.38], [0.65, 0.35], [0.69, 0.31], [0.05, 0.95], [0.98, 0.02]])
    truth = np.array([0, 1, 0, 1, 0])
    # bin (9/15, 10/15]: confidences .62 and .65, one hit of two: |1 - 1.27| = .27
    # bin (10/15, 11/15]: confidence .69, a hit: |1 - .69| = .31
    # bin (14/15, 1]: confidences .95 and .98, two hits of two: |2 - 1.93| = .07
    assert ece(np.log(probs), truth) == pytest.approx((0.27 + 0.31 + 0.07) / 5)


def test_ece_does_not_cancel_between_bins() -> None:
    probs = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    truth = np.array([0, 0, 0, 1])  # under-confident by .4 in one bin, over-confident in another
    assert ece(np.log(probs), truth) == pytest.approx((0.8 + 0.8) / 4)


def test_ece_of_sure_and_right_is_zero() -> None:
    assert ece(np.array([[900.0, 0.0]]), np.array([0])) == 0.0


# Temperature


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_temperature_is_scipys_optimum(scale: float) -> None:
    logits, truth = random_scores(1)
    logits = logits * np.float32(scale)

    def loss(log_temperature: float) -> float:
        return float(log_loss(truth, softmax(logits / np.exp(log_temperature)), labels=range(3)))

    best = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-7})
    assert fit_temperature(logits, truth) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_temperature_recovers_a_planted_one() -> None:
    rng = np.random.default_rng(0)
    calibrated = rng.normal(scale=2.0, size=(40_000, 4))
    truth = (calibrated + rng.gumbel(size=calibrated.shape)).argmax(axis=1)  # ~ softmax(logits)
    assert fit_temperature(3.0 * calibrated, truth) == pytest.approx(3.0, rel=0.03)


def test_temperature_has_limits_and_a_neutral_value() -> None:
    right, truth = np.eye(3) * 0.01, np.arange(3)
    assert fit_temperature(right, truth) == pytest.approx(0.01)
    assert fit_temperature(right, (truth + 1) % 3) == pytest.approx(100.0)
    assert fit_temperature(np.zeros((3, 3)), truth) == 1.0


# Groups


def test_by_group_pools_logits_and_votes() -> None:
    logits = np.array(
        [
            [9.0, 0.0, 0.0],  # b: one sure sample for class 0 ...
            [0.0, 1.0, 0.0],  # b: ... against two for class 1
            [0.0, 1.0, 0.0],
            [0.0, 2.0, 0.0],  # a: a tie of 1 and 2, which 2 wins by its mean logit;
            [1.5, 0.0, 3.0],  # a: class 0 has no vote
        ]
    )
    group = np.array(["b", "b", "b", "a", "a"])
    mean, vote, truth = by_group(logits, np.array([1, 1, 1, 2, 2]), group)
    np.testing.assert_allclose(mean, [[0.75, 1.0, 1.5], [3.0, 2 / 3, 0.0]])
    np.testing.assert_array_equal(vote, [2, 1])
    np.testing.assert_array_equal(truth, [2, 1])


def test_by_group_breaks_ties_only_among_the_tied() -> None:
    logits = np.array([[5.0, 5.1, 0.0], [5.0, 0.0, 5.1]])  # class 0: largest mean, no vote
    mean, vote, _ = by_group(logits, np.array([0, 0]), np.array(["g", "g"]))
    assert mean.argmax() == 0
    assert vote.tolist() == [1]


def test_by_group_agrees_with_a_loop() -> None:
    logits, truth = random_scores(3)
    group = np.random.default_rng(0).permutation(truth + 3 * np.arange(300) % 60 * 3)
    truth = (group % 3).astype(np.int32)
    mean, vote, group_truth = by_group(logits, truth, group)
    for row, name in enumerate(sorted(set(group.tolist()))):
        rows = logits[group == name]
        votes = np.bincount(rows.argmax(axis=1), minlength=3)
        tied = [c for c in range(3) if votes[c] == votes.max()]
        np.testing.assert_allclose(mean[row], rows.mean(axis=0), rtol=1e-5, atol=1e-6)
        assert vote[row] == max(tied, key=lambda c: rows.mean(axis=0)[c])
        assert group_truth[row] == name % 3


def test_a_group_with_two_truths_is_refused() -> None:
    group = np.array(["a", "a", "b", "b"])
    with pytest.raises(PredictionsError, match=r"1 of 2 groups .* 'b'"):
        by_group(np.zeros((4, 3)), np.array([0, 0, 1, 2]), group)


# Intervals


def clusters(rng: np.random.Generator, num_groups: int, mean: float = 0.7) -> tuple[Any, Any]:
    """Hits of groups of 3 to 9 samples, each group with its own beta-drawn rate (ICC 0.3)."""
    sizes = rng.integers(3, 10, size=num_groups)
    spread = (1 - 0.3) / 0.3
    rates = rng.beta(mean * spread, (1 - mean) * spread, size=num_groups)
    group = np.repeat(np.arange(num_groups), sizes)
    return (rng.random(group.size) < rates[group]).astype(float), group


def coverage(make_group: Callable[[Any], Any]) -> float:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(NUM_SIMULATIONS):
        values, group = clusters(rng, num_groups=60)
        estimate = interval(values, make_group(group))
        covered += estimate.low <= 0.7 <= estimate.high
    return covered / NUM_SIMULATIONS


def test_interval_covers_the_truth_in_95_of_100_simulations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("assay.evaluate._NUM_RESAMPLES", 1000)  # for speed
    assert 0.92 <= coverage(lambda group: group) <= 0.98


def test_interval_that_ignores_groups_is_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.evaluate._NUM_RESAMPLES", 1000)
    assert coverage(lambda group: np.arange(group.size)) < 0.88


def test_interval_agrees_with_a_bootstrap_loop() -> None:
    rng = np.random.default_rng(1)
    values, group = clusters(rng, num_groups=25)
    values = values * rng.random(values.size)  # not only 0 and 1
    members = [values[group == name] for name in range(25)]
    means = []
    for _ in range(4000):
        drawn = np.concatenate([members[i] for i in rng.integers(25, size=25)])
        means.append(drawn.mean())
    estimate = interval(values, group)
    assert estimate.value == pytest.approx(values.mean())
    spread = np.std(means)
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=0.15 * spread)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=0.15 * spread)


def test_interval_of_single_samples_agrees_with_the_normal_one() -> None:
    values = (np.random.default_rng(0).random(20_000) < 0.8).astype(float)
    estimate = interval(values, np.arange(20_000))
    half = NormalDist().inv_cdf(0.975) * np.sqrt(values.var() / 20_000)
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.06)
    assert estimate.value - estimate.low == pytest.approx(half, rel=0.06)


def test_interval_does_not_depend_on_row_order_and_repeats() -> None:
    rng = np.random.default_rng(2)
    values, group = clusters(rng, num_groups=30)
    order = rng.permutation(values.size)
    assert interval(values, group) == interval(values[order], group[order])
    assert interval(values, group) != interval(values, group, seed=1)


def test_interval_of_one_group_is_the_whole_range() -> None:
    values, group = np.array([1.0, 0.0, 1.0, 1.0]), np.zeros(4, dtype=int)
    expected = Estimate(value=0.75, low=0.0, high=1.0, num=4, num_groups=1)
    assert interval(values, group) == expected
    assert interval(values, group, lowest=-1.0).low == -1.0


@pytest.mark.parametrize(("hits", "of"), [(0, 1), (1, 1), (1, 2)])
@pytest.mark.parametrize("num_groups", [2, 60])
def test_interval_without_spread_is_wilsons_over_groups(
    hits: int, of: int, num_groups: int
) -> None:
    values = np.tile([1.0] * hits + [0.0] * (of - hits), num_groups)
    estimate = interval(values, np.repeat(np.arange(num_groups), of))
    expected = binomtest(num_groups * hits // of, num_groups).proportion_ci(method="wilson")
    assert estimate.low == pytest.approx(expected.low, abs=1e-9)
    assert estimate.high == pytest.approx(expected.high, abs=1e-9)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0


def test_estimate_reads_as_a_sentence() -> None:
    estimate = Estimate(value=0.9123, low=0.8734, high=0.9441, num=120, num_groups=60)
    assert str(estimate) == "0.912 [0.873, 0.944] (n=120 in 60 groups)"
    assert str(interval(np.ones(2), np.zeros(2))) == "1.000 [0.000, 1.000] (n=2 in 1 group)"


# Paired difference


def paired_tables() -> tuple[pa.Table, pa.Table, Any]:
    rng = np.random.default_rng(4)
    truth = np.arange(120) // 2 % 3
    hits_a, hits_b = rng.random(120) < 0.85, rng.random(120) < 0.7
    a = make_table(120, logits=hit_logits(truth, hits_a))
    b = make_table(120, logits=hit_logits(truth, hits_b))
    return a, b, hits_a.astype(float) - hits_b


def test_difference_agrees_with_a_bootstrap_loop() -> None:
    a, b, gain = paired_tables()
    rng = np.random.default_rng(0)
    pairs = gain.reshape(60, 2)
    means = [pairs[rng.integers(60, size=60)].mean() for _ in range(4000)]
    estimate = difference(a, b)
    assert estimate.value == pytest.approx(gain.mean())
    assert (estimate.num, estimate.num_groups) == (120, 60)
    step = 1.001 / 120  # means are multiples of 1 / 120, so a quantile may fall on a neighbour
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=step)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=step)


def test_difference_pairs_by_id_and_changes_sign() -> None:
    a, b, _ = paired_tables()
    shuffled = b.take(np.random.default_rng(1).permutation(120))
    assert difference(a, shuffled) == difference(a, b)
    assert difference(b, a).value == -difference(a, b).value


def test_difference_of_a_table_to_itself_is_zero_but_not_certain() -> None:
    a, _, _ = paired_tables()
    estimate = difference(a, a)
    most = binomtest(0, 60).proportion_ci(method="wilson").high  # groups that might differ
    assert estimate.value == 0.0
    assert estimate.high == pytest.approx(most)
    assert estimate.low == pytest.approx(-most)


@pytest.mark.parametrize("sign", [1, -1])
def test_difference_that_is_total_stays_within_range(sign: int) -> None:
    truth = np.arange(12) // 2 % 3
    right = make_table(logits=hit_logits(truth, np.ones(12, dtype=bool)))
    wrong = make_table(logits=hit_logits(truth, np.zeros(12, dtype=bool)))
    estimate = difference(right, wrong) if sign > 0 else difference(wrong, right)
    assert estimate.value == sign
    assert -1.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert (estimate.low > -1.0) if sign > 0 else (estimate.high < 1.0)


# Summary


def test_summary_of_a_table_counted_by_hand() -> None:
    # test_seen: groups 1, 2 (rows 2-5) and 4, 5 (rows 8-11) of the classes 1, 2, 1, 2
    truth = np.arange(12) // 2 % 3
    hits = np.ones(12, dtype=bool)
    hits[[3, 4, 5]] = False  # group 1 (machine b): half; group 2 (machine a): none
    logits = np.eye(3)[np.where(hits, truth, (truth + 1) % 3)]
    logits[2] *= 2  # so group 1 is right by its mean logit and by its vote
    table = make_table(
        logits=pa.array(logits.tolist(), pa.list_(pa.float32(), 3)),
        **{"domain.design": ["x"] * 8 + ["y"] * 4},
    )
    summary = summarise(table, "test_seen")
    assert (summary.num, summary.num_groups) == (8, 4)
    assert (summary.accuracy.value, summary.accuracy.num_groups) == (5 / 8, 4)
    assert summary.group_accuracy.value == 3 / 4
    assert summary.group_accuracy.num == summary.group_accuracy.num_groups == 4
    assert summary.vote_accuracy.value == 3 / 4
    values = {
        (column, name): (estimate.value, estimate.num, estimate.num_groups)
        for column, estimates in summary.domains.items()
        for name, estimate in estimates.items()
    }
    assert values == {
        ("machine", "a"): (2 / 4, 4, 2),
        ("machine", "b"): (3 / 4, 4, 2),
        ("design", "x"): (1 / 4, 4, 2),
        ("design", "y"): (1.0, 4, 2),
    }
    assert summary.worst_domain == ("design", "x")
    kept = [2, 3, 4, 5, 8, 9, 10, 11]
    predicted = logits[kept].argmax(axis=1)
    assert summary.macro_f1 == pytest.approx(f1_score(truth[kept], predicted, average="macro"))
    expected = log_loss(truth[kept], softmax(logits[kept]), labels=range(3))
    assert summary.nll == pytest.approx(expected)


def test_summary_is_json_without_nan() -> None:
    text = json.dumps(summarise(make_table(), "test_seen").to_dict(), allow_nan=False)
    read = json.loads(text)
    assert read["accuracy"].keys() == {"value", "low", "high", "num", "num_groups"}
    assert read["worst_domain"][1] in read["domains"][read["worst_domain"][0]]


def test_summary_of_one_row_without_domains_is_finite() -> None:
    summary = summarise(make_table(1).drop_columns(["domain.machine"]), "val")
    json.dumps(summary.to_dict(), allow_nan=False)
    assert (summary.domains, summary.worst_domain) == ({}, None)
    assert (summary.accuracy.low, summary.accuracy.high) == (0.0, 1.0)


def test_summary_where_a_class_is_absent_is_finite() -> None:
    truth = np.zeros(12, dtype=int)
    logits = hit_logits(truth, np.arange(12) != 2)
    summary = summarise(make_table(truth=pa.array(truth, pa.int32()), logits=logits), "test_seen")
    json.dumps(summary.to_dict(), allow_nan=False)
    # class 0: tp 7, fn 1 -> 14/15; class 1: predicted once, never true -> 0; class 2: neither
    assert summary.macro_f1 == pytest.approx((14 / 15 + 0) / 2)


def test_summary_reads_both_kinds_of_list_in_chunks() -> None:
    table = make_table(60)
    fixed = table["logits"].cast(pa.list_(pa.float32(), 3))
    other = table.set_column(table.schema.get_field_index("logits"), "logits", fixed)
    chunked = pa.concat_tables([other.slice(0, 25), other.slice(25)])
    assert summarise(chunked, "test_seen") == summarise(table, "test_seen")


def test_summary_of_a_split_that_is_not_there() -> None:
    with pytest.raises(PredictionsError, match="'test'; the table holds: test_seen, val"):
        summarise(make_table(), "test")


@pytest.mark.parametrize("column", ["id", "truth", "logits"])
def test_unsound_tables_are_refused(column: str) -> None:
    sound, unsound = make_table(12), make_table(12).drop_columns([column])
    for judge in (
        lambda: summarise(unsound, "val"),
        lambda: difference(sound, unsound),
        lambda: difference(unsound, sound),
    ):
        with pytest.raises(PredictionsError, match=f"lacks {column}"):
            judge()


def test_difference_refuses_other_rows() -> None:
    table = make_table(12)
    with pytest.raises(PredictionsError, match="4 ids are only in the first"):
        difference(table, table.slice(4))


def test_groups_with_two_truths_have_no_answer_as_a_whole() -> None:
    truth = pa.array([i % 3 for i in range(12)], pa.int32())
    summary = summarise(make_table(12, truth=truth), "test_seen")
    assert summary.group_accuracy is None
    assert summary.vote_accuracy is None
    assert summary.accuracy.num_groups == 4
