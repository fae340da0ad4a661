"""Three rules on planted scores: each chooses by what it may look at, and the oracle is marked."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.config import Settings
from assay.data.split_config import SplitConfig
from assay.errors import ConfigError
from assay.nn.domains.config import AlgorithmConfig
from assay.space import Choice, Float, change
from assay.sweep import fold_report
from assay.sweep.fold_report import FoldReport, FoldTrial
from assay.sweep.folds import Fold
from assay.sweep.generalization import Rows
from assay.sweep.generalize import FoldLaunch, draw_settings, plan_folds
from assay.sweep.rules import candidates_of, choose, choose_draws, compare_rules, rule_scores
from assay.sweep.trial import Outcome, Trial
from assay.train.domains import DomainClassificationConfig
from assay.train.source import TaskSource, load_task
from assay.train.task import Task
from assay.train.task_config import TaskConfig

VALUES = ("a", "b", "c", "d")
CONFIG = TaskConfig()
NUM_ROWS = 10

Planted = Callable[[str, int, tuple[str, ...], str], float]
"""Score of a setting's draw, with these values held out, on one of them (tenths)."""


def folds_of(draws: dict[str, int], held_out: tuple[int, ...] = (1,), seeds: int = 1) -> list[Fold]:
    return [
        Fold(name, tuple(v for v in VALUES if v not in tested), tested, seed, CONFIG, draw)
        for num in held_out
        for tested in itertools.combinations(VALUES, num)
        for name, count in draws.items()
        for draw in range(count)
        for seed in range(seeds)
    ]


def rows_of(folds: list[Fold], score: Planted) -> Rows:
    lines = []
    for number, fold in enumerate(folds):
        for value in fold.tested:
            right = round(NUM_ROWS * score(fold.setting, fold.draw, fold.tested, value))
            for i in range(NUM_ROWS):
                names = (f"{value}{i}", f"{value}{i // 2}")
                key = (
                    number,
                    fold.setting,
                    fold.num_trained,
                    f"{'/'.join(fold.trained)} {fold.seed}",
                )
                lines.append((*key, value, i % 2, *names, float(i < right)))
    names = ("trial", "setting", "size", "fold", "value", "truth", "row", "group", "score")
    columns = {n: np.array(c) for n, c in zip(names, zip(*lines, strict=True), strict=True)}
    return Rows("accuracy", ["x", "y"], **columns, weight=np.ones(len(lines)))


def judged(
    folds: list[Fold], vals: list[float | None], score: Planted
) -> dict[tuple[str, str], float]:
    rows = rows_of(folds, score)
    compared = compare_rules(candidates_of(folds, vals, rows), rows)
    return {(each.rule, each.setting): each.estimate.value for each in compared}


def test_each_rule_takes_the_draw_that_it_is_shown_as_best():
    """Draw 0 is best on val, draw 1 where two are held out, draw 2 on test; test says .3, .6 and .9."""
    folds = folds_of({"erm": 3}, held_out=(1, 2))
    vals: list[float | None] = [1.0 - 0.1 * fold.draw for fold in folds]

    def score(setting: str, draw: int, tested: tuple[str, ...], value: str) -> float:
        if len(tested) == 2:
            return 0.8 if draw == 1 else 0.2
        return (0.3, 0.6, 0.9)[draw]

    found = judged(folds, vals, score)
    assert found == {
        ("training-domain", "erm"): pytest.approx(0.3),
        ("leave-one-domain-out", "erm"): pytest.approx(0.6),
        ("oracle", "erm"): pytest.approx(0.9),
    }


def test_leave_one_out_never_looks_at_the_value_that_is_tested():
    """Of the fold that holds out a, the trainings that hold out a and another are asked about the other alone."""
    folds = folds_of({"erm": 1}, held_out=(1, 2))

    def score(setting: str, draw: int, tested: tuple[str, ...], value: str) -> float:
        return 0.0 if value == "a" else 0.1 * (1 + VALUES.index(value))

    candidates = candidates_of(folds, [None] * len(folds), rows_of(folds, score))
    scores = rule_scores(candidates, "leave-one-domain-out")
    by_held = {fold.tested: s for fold, s in zip(folds, scores, strict=True)}
    assert by_held["a",] == pytest.approx((0.2 + 0.3 + 0.4) / 3)
    assert by_held["d",] == pytest.approx((0.0 + 0.2 + 0.3) / 3)
    assert by_held["a", "b"] is None


def test_without_the_inner_trainings_that_rule_is_left_out():
    folds = folds_of({"erm": 2})
    found = judged(folds, [0.5] * len(folds), lambda *_: 0.5)
    assert {rule for rule, _ in found} == {"training-domain", "oracle"}


def test_a_rule_chooses_for_each_fold_and_seed_and_among_all_settings():
    folds = folds_of({"erm": 1, "dann": 1}, seeds=2)
    # dann is best on val where a or b is held out
    vals: list[float | None] = [
        0.9 if (fold.setting == "dann") == (fold.tested[0] in "ab") else 0.8 for fold in folds
    ]

    def score(setting: str, draw: int, tested: tuple[str, ...], value: str) -> float:
        return {"erm": 0.4, "dann": 0.8}[setting]

    rows = rows_of(folds, score)
    compared = compare_rules(candidates_of(folds, vals, rows), rows)
    found = {(each.rule, each.setting): each for each in compared}
    assert found["training-domain", "any of them"].estimate.value == pytest.approx(0.6)
    assert found["oracle", "any of them"].estimate.value == pytest.approx(0.8)
    assert found["training-domain", "erm"].estimate.value == pytest.approx(0.4)
    assert found["training-domain", "erm"].num_chosen == len(VALUES) * 2
    assert found["training-domain", "erm"].estimate.num_groups == len(VALUES)


def test_the_oracle_is_marked_and_no_rule_beats_it():
    folds = folds_of({"erm": 4, "dann": 4})
    rng = np.random.default_rng(0)
    table = {(f.setting, f.draw, f.tested[0]): rng.integers(11) / 10 for f in folds}
    rows = rows_of(folds, lambda s, d, t, v: float(table[s, d, v]))
    vals: list[float | None] = rng.random(len(folds)).tolist()
    compared = compare_rules(candidates_of(folds, vals, rows), rows)
    marked = {each.label for each in compared if each.rule == "oracle"}
    assert marked == {"ORACLE, chosen by test"}
    scores = {(each.rule, each.setting): each.estimate.value for each in compared}
    for name in ("erm", "dann", "any of them"):
        assert scores["training-domain", name] <= scores["oracle", name]


def test_the_draw_that_val_takes_stands_for_its_setting():
    folds = folds_of({"erm": 3, "dann": 1})
    rows = rows_of(folds, lambda *_: 0.5)
    vals = [None if fold.draw == 2 else 0.5 + 0.1 * fold.draw for fold in folds]
    taken = [folds[place] for place in choose_draws(candidates_of(folds, vals, rows))]
    assert [(f.setting, f.draw, f.tested) for f in taken] == [
        (name, draw, (v,)) for v in VALUES for name, draw in (("erm", 1), ("dann", 0))
    ]


def test_of_equals_the_first_is_chosen_and_of_none_none():
    assert choose([0.5, 0.5, None, 0.1, None], ["x", "x", "x", "y", "z"]) == [0, 3]


class Drawn(Task):
    """A task of which two settings are searched."""

    @classmethod
    def space(cls, config):
        space = {"optim.lr": Float(low=1e-4, high=1e-2, log=True)}
        return space | {"optim.schedule": Choice(values=("cosine", "constant"))}


def test_draws_begin_with_the_settings_and_repeat():
    first, *others = draw_settings(Drawn, CONFIG, 6)
    assert first == CONFIG
    rates = [c.optim.lr for c in others]
    assert len(set(rates)) == 5
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert {c.optim.schedule for c in others} <= {"cosine", "constant"}
    assert all(replace(c, optim=CONFIG.optim) == CONFIG for c in others)
    assert draw_settings(Drawn, CONFIG, 3) == [first, *others[:2]]


def test_what_is_compared_is_not_drawn():
    compared = change(CONFIG, {"optim.lr": 0.5})
    drawn = draw_settings(Drawn, compared, 6, {"optim.lr"})
    assert {c.optim.lr for c in drawn} == {0.5}
    assert {c.optim.schedule for c in drawn[1:]} == {"cosine", "constant"}
    with pytest.raises(ConfigError, match="--draws is 6, and --settings name all"):
        draw_settings(Drawn, compared, 6, {"optim.lr", "optim.schedule"})
    assert draw_settings(Drawn, compared, 1, {"optim.lr", "optim.schedule"}) == [compared]


def test_holding_out_one_and_two_printers_makes_every_inner_training(tmp_path: Path):
    source = TaskSource.read(Path(__file__).parents[2] / "tasks" / "extrusion.py")
    task = load_task(source)
    config: Settings = task.presets()["smoke"]
    manifest = task.manifest(config, tmp_path)
    launch = FoldLaunch(
        fold_column="printer_id", leave_out=(1, 2), train_on=(3,), choices=2, seeds=2
    )
    folds = plan_folds({"erm": [config, config]}, manifest, launch)
    counts = {size: sum(f.num_trained == size for f in folds) for size in (6, 5)}
    assert counts == {6: 7 * 2 * 2, 5: 21 * 2 * 2}
    assert len(folds) == sum(counts.values())
    longer = {f.num_trained: f.config.train.epochs for f in folds}
    assert longer == {6: config.train.epochs, 5: round(config.train.epochs * 6 / 5)}
    all_out = replace(launch, leave_out=(1, 7))
    with pytest.raises(ConfigError, match="--leave-out is 7, and 'printer_id' has 7 values"):
        plan_folds({"erm": [config]}, manifest, all_out)


def report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: TaskConfig, column: str = "printer"
) -> tuple[dict[str, Any], str]:
    """What a sweep writes of two settings, of which the one that is worse on val is better on test."""
    folds = [replace(fold, config=config) for fold in folds_of({"erm": 2, "dann": 1})]
    rows = rows_of(folds, lambda setting, draw, *_: {"erm": 0.3, "dann": 0.8}[setting] - 0.1 * draw)
    monkeypatch.setattr(fold_report, "gather", lambda trials, column: rows)
    trials = []
    for number, fold in enumerate(folds):
        val = {"erm": 0.9, "dann": 0.7}[fold.setting] - 0.1 * fold.draw
        outcome = Outcome("finished", score=val, curve=[(3, val)])
        trial = Trial(fold.name, {}, fold.config, tmp_path / f"run-{number}")
        trials.append(FoldTrial(fold, trial, outcome, {**trial_row(fold), "val": val}))
    FoldReport("linear", column, config.split.rule, trials, trials).write(tmp_path)
    record = json.loads((tmp_path / "sweep.json").read_text())
    return record, (tmp_path / "report.html").read_text()


def trial_row(fold: Fold) -> dict[str, Any]:
    return {"run": "run", "state": "finished", "reason": "", "epochs": 3, "seconds": 1.0}


def test_the_report_ranks_by_val_and_marks_what_test_chose(tmp_path, monkeypatch, capsys):
    record, page = report(tmp_path, monkeypatch, CONFIG)
    assert "<h1>erm (best on val) has 0.300 on its worst printer never seen</h1>" in page
    assert [s["setting"] for s in record["standings"]] == ["erm", "dann"]
    scores = {(r["rule"], r["setting"]): r["estimate"]["value"] for r in record["rules"]}
    assert scores["training-domain", "any of them"] == pytest.approx(0.3)
    assert scores["oracle", "any of them"] == pytest.approx(0.8)
    # every line of the oracle bears its mark, on the page and on the terminal
    printed = capsys.readouterr().out
    assert page.count("<th>ORACLE, chosen by test</th>") == 3
    assert printed.count("ORACLE, chosen by test") == 3
    assert "nothing was chosen by a test set" not in page


def test_a_column_of_any_name_has_a_plural(tmp_path, monkeypatch, capsys):
    _, page = report(tmp_path, monkeypatch, CONFIG, "batch")
    for text in (page, capsys.readouterr().out):
        assert "batches that it was not trained on" in text
        assert "batchs" not in text


def test_settings_that_saw_the_tested_domain_are_marked(tmp_path, monkeypatch, capsys):
    split = SplitConfig(unseen_domain="printer", unlabelled="train")
    config = DomainClassificationConfig(split=split, algorithm=AlgorithmConfig(name="mmd"))
    record, page = report(tmp_path, monkeypatch, config)
    assert "<h1>TRANSDUCTIVE: erm (best on val)" in page
    told = "TRANSDUCTIVE: dann, erm saw images of the printers that are tested, without labels."
    assert told in record["about"]
    assert told in page
    assert told in capsys.readouterr().out


def test_a_val_of_the_tested_domain_makes_the_whole_report_oracle(tmp_path, monkeypatch, capsys):
    split = SplitConfig(rule="oracle", unseen_domain="printer")
    record, page = report(tmp_path, monkeypatch, replace(CONFIG, split=split))
    assert "<h1>ORACLE: erm (best on val)" in page
    assert record["oracle"].startswith("ORACLE: val is of the very printers that are tested")
    assert record["rules"] == []
    assert capsys.readouterr().out.startswith("ORACLE: val is of the very printers")
