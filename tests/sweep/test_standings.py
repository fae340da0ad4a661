"""The comparison, on runs written by hand: what ranks, what is tested, what is averaged, what it costs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from assay.errors import PredictionsError, RunError
from assay.metrics.evaluate import summarise
from assay.metrics.measures import STANDARD
from assay.runs.record import RunRecord, write_record
from assay.runs.results import Result, write_predictions, write_result
from assay.sweep.comparison import report
from assay.sweep.standings import Summary, curve_figures, summarize
from assay.sweep.trained_run import read_run
from assay.sweep.trial import Trial
from assay.train.task_config import TaskConfig

NUM, VIEWS = 80, 2


def predictions(hits: Mapping[str, float], rng: np.random.Generator, num: int = NUM) -> pa.Table:
    """Rows of two classes in sets, a planted share of each answered rightly; half as many in test_seen."""
    tables, most = [], num
    for name, share in hits.items():
        num = most // 2 if name == "test_seen" else most
        right = np.zeros(num, bool)
        right[rng.permutation(num)[: round(num * share)]] = True
        truth = np.arange(num) // VIEWS % 2
        columns = {
            "id": [f"{name} {i}" for i in range(num)],
            "split": [name] * num,
            "group": [f"{name} {i // VIEWS}" for i in range(num)],
            "truth": pa.array(truth, pa.int32()),
            "logits": pa.array(np.eye(2)[np.where(right, truth, 1 - truth)].tolist()),
        }
        tables.append(pa.table(columns))
    metadata = {"classes": json.dumps(["sound", "defect"])}
    return pa.concat_tables(tables).replace_schema_metadata(metadata)


class Runs:
    """A comparison's runs below a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.rng = root, np.random.default_rng(0)
        self.trials: list[Trial] = []

    def add(
        self,
        setting: str,
        seed: int,
        hits: Mapping[str, float],
        share: float = 1.0,
        num: int = NUM,
        state: Any = "finished",
        **measured: float,
    ) -> None:
        folder = self.root / f"toy-{len(self.trials):012x}"
        folder.mkdir(parents=True)
        reason = "Planted." if state == "failed" else ""
        record = RunRecord(
            state=state, stage="test", reason=reason, measured=measured or None, seconds=2.0
        )
        write_record(folder, record)
        if state == "finished":
            table = predictions(hits, self.rng, num)
            write_predictions(folder, table)
            sets = {name: summarise(table, name) for name in hits}
            result = Result(
                rule="r",
                oracle=False,
                seed=seed,
                sets=sets,
                measures=STANDARD,
                tried=1,
                scorings=(),
            )
            write_result(folder, result)
        values = {"setting": setting, "share": share, "seed": seed}
        self.trials.append(Trial(f"{setting} {seed}", values, TaskConfig(), folder))

    def summary(self) -> Summary:
        return summarize([read_run(**t.values, folder=t.folder) for t in self.trials])


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def planted(runs: Runs) -> None:
    """Best on val is modest; best on test is lucky."""
    for seed, luck in enumerate((-0.05, 0.0, 0.05)):
        runs.add("lucky", seed, {"val": 0.7, "test": 0.9125 + luck}, macs=8e9, train_s=10.0 + seed)
        runs.add("modest", seed, {"val": 0.9, "test": 0.9 + luck}, macs=2e9, train_s=5.0)
        runs.add("poor", seed, {"val": 0.5, "test": 0.5 + luck}, macs=4e9)


def test_val_ranks_and_never_test(runs: Runs) -> None:
    planted(runs)
    summary = runs.summary()
    assert [s.setting for s in summary.standings] == ["modest", "lucky", "poor"]
    means = [s.tests["test"].mean.value for s in summary.standings]
    assert means == pytest.approx([0.9, 0.9125, 0.5])
    assert summary.standings[0].val.mean.value == pytest.approx(0.9)


def test_a_score_is_the_mean_of_seeds_over_groups_with_its_spread_beside(runs: Runs) -> None:
    planted(runs)
    score = runs.summary().standings[0].tests["test"]
    assert (score.mean.num, score.mean.num_groups) == (NUM, NUM // VIEWS)
    assert score.by_seed == pytest.approx({0: 0.85, 1: 0.9, 2: 0.95})
    assert score.spread == pytest.approx((0.85, 0.95))
    assert score.mean.low < 0.9 < score.mean.high


def test_all_pairs_are_tested_and_put_in_words(runs: Runs) -> None:
    planted(runs)
    summary = runs.summary()
    pairs = {(p.comparison.first_name, p.comparison.name): p for p in summary.pairs}
    assert set(pairs) == {("modest", "lucky"), ("modest", "poor"), ("lucky", "poor")}
    assert summary.relations("test") == {
        "modest": {"better than": ["poor"], "not significantly different from": ["lucky"]},
        "lucky": {"better than": ["poor"], "not significantly different from": ["modest"]},
        "poor": {"worse than": ["modest", "lucky"]},
    }
    assert (pairs["modest", "poor"].num_agree, pairs["modest", "poor"].num_seeds) == (3, 3)


def test_seeds_that_disagree_are_counted(runs: Runs) -> None:
    for seed, (a, b) in enumerate([(0.9, 0.6), (0.9, 0.6), (0.6, 0.7)]):
        runs.add("a", seed, {"val": 0.9, "test": a})
        runs.add("b", seed, {"val": 0.8, "test": b})
    runs.add("a", 3, {"val": 0.9, "test": 0.9})  # b has no such seed
    (pair,) = runs.summary().pairs
    assert (pair.num_agree, pair.num_seeds) == (2, 3)


def test_costs_are_means_and_what_is_missing_is_left_out(runs: Runs) -> None:
    planted(runs)
    runs.add("timed elsewhere", 0, {"val": 0.4, "test": 0.4}, latency_ms=3.0)
    runs.add("timed", 0, {"val": 0.3, "test": 0.4}, latency_ms=3.0, latency_threads=1.0)
    summary = runs.summary()
    costs = {s.setting: s.costs for s in summary.standings}
    assert costs == {
        "modest": {"macs": 2e9, "train_s": 5.0},
        "lucky": {"macs": 8e9, "train_s": 11.0},
        "poor": {"macs": 4e9},
        "timed elsewhere": {},  # of the model in a search's trial, and of no shipped graph
        "timed": {"latency_ms": 3.0},
    }
    fronts = {front.cost: front for front in summary.fronts}
    assert set(fronts) == {"macs", "train_s"}  # one setting makes no front
    assert fronts["macs"].members == ["modest", "lucky"]
    assert fronts["macs"].cheaper == {"lucky": "modest"}
    assert fronts["macs"].points["poor"] == pytest.approx((4e9, 0.5))


def test_curves_are_of_each_share_and_all_else_of_the_largest(runs: Runs) -> None:
    for share, hits in ((1.0, 0.9), (0.1, 0.6), (0.01, 0.5)):
        for seed in range(2):
            runs.add("a", seed, {"val": hits, "test": hits}, share, macs=1.0)
            runs.add("b", seed, {"val": hits - 0.1, "test": hits - 0.2}, share, macs=1.0 / share)
    summary = runs.summary()
    assert summary.share == 1.0
    curve = {share: score.mean.value for share, score in summary.curves["test"]["b"].items()}
    assert curve == pytest.approx({0.01: 0.3, 0.1: 0.4, 1.0: 0.7})
    assert summary.standings[0].tests["test"].mean.value == pytest.approx(0.9)
    assert len(summary.pairs) == 1
    assert summary.standings[1].costs == {"macs": 1.0}
    figures = curve_figures(summary)
    assert [figure.title for figure in figures] == ["On test"]
    assert figures[0].series["b"].x == pytest.approx([1, 10, 100])


def test_each_test_set_has_its_own_pairs_of_one_family(runs: Runs) -> None:
    for setting, right in (("a", 0.95), ("b", 0.6)):
        for seed in range(2):
            runs.add(setting, seed, {"val": right, "test_seen": right, "test_unseen": 0.7})
    summary = runs.summary()
    assert summary.tests == ["test_seen", "test_unseen"]
    seen, unseen = (pair.comparison for pair in summary.pairs)
    assert (seen.set, seen.side, unseen.set, unseen.side) == (
        "test_seen",
        "better",
        "test_unseen",
        "",
    )
    assert seen.p_holm == pytest.approx(2 * seen.p)


def test_settings_on_other_rows_are_refused(runs: Runs) -> None:
    runs.add("a", 0, {"val": 0.9, "test": 0.9})
    runs.add("b", 0, {"val": 0.5, "test": 0.9}, num=NUM + 2)
    with pytest.raises(PredictionsError, match=r"a and b on test: .* different rows"):
        runs.summary()


def test_each_test_set_is_told_with_its_own_rows(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for setting in ("a", "b"):
        runs.add(setting, 0, {"val": 0.5, "test_seen": 0.5, "test_unseen": 0.5})
    report(tmp_path / "sweep", "toy", runs.trials)
    sizes = "test_seen: n = 40 rows in 20 groups; test_unseen: n = 80 rows in 40 groups."
    assert sizes in capsys.readouterr().out
    assert sizes in (tmp_path / "sweep" / "report.html").read_text()


def test_the_report_says_all_of_it(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    planted(runs)
    for seed in range(3):
        runs.add("lucky", seed, {"val": 0.6, "test": 0.6}, 0.1)
        runs.add("modest", seed, {"val": 0.6, "test": 0.5}, 0.1)
    runs.add("poor", 0, {}, 0.1, state="failed")
    folder = tmp_path / "sweeps" / "one"
    assert report(folder, "toy", runs.trials) == 1
    page = (folder / "report.html").read_text()
    head = page.index(
        "Best on val, modest has 0.900 on test; better than poor; not significantly different from lucky"
    )
    order = [
        "1 of 16 trainings have no result",
        "never of test",
        "corrected together",
        "How much of train",
        "What does it cost",
        "Further measures",
        "Macro F1",
        "Planted.",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert head < places[1]
    assert '<td class="l words">failed: Planted.</td>' in page  # wraps, whatever its length
    assert "&ndash;" in page  # poor has no time of training
    assert "Not measured: parameters" in page
    record = json.loads((folder / "sweep.json").read_text())
    assert [s["setting"] for s in record["standings"]] == ["modest", "lucky", "poor"]
    assert record["curves"]["test"]["modest"]["0.1"]["mean"]["value"] == pytest.approx(0.5)
    assert record["pairs"][0]["verdict"] == "not significantly different"
    assert record["fronts"][0]["members"] == ["modest", "lucky"]
    lines = (folder / "trials.csv").read_text().splitlines()
    assert len(lines) == 1 + 16
    printed = capsys.readouterr().out
    assert "in 3 of 3 seeds: modest is better than poor" in printed
    assert "0.900 [" in printed


def test_without_a_finished_run_there_is_a_table_and_no_page(runs: Runs, tmp_path: Path) -> None:
    runs.add("a", 0, {}, state="failed")
    with pytest.raises(RunError, match=r"None of 1 trainings .* \(Planted\); .*trials\.csv"):
        report(tmp_path / "one", "toy", runs.trials)
    assert (tmp_path / "one" / "trials.csv").exists()
    assert not (tmp_path / "one" / "report.html").exists()


def test_hostile_names_are_only_ever_text(runs: Runs, tmp_path: Path) -> None:
    for name in ("<script>x</script>", "b"):
        runs.add(name, 0, {"val": 0.9, "test": 0.9}, macs=1.0)
    report(tmp_path / "one", "<b>", runs.trials)
    page = (tmp_path / "one" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
