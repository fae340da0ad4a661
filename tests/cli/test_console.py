"""The `assay` command on run directories made by hand and on their damage."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from assay.bundle.card import read_card
from assay.cli.console import main
from assay.cli.registry import refuse_edited
from assay.data.split_config import SplitConfig
from assay.errors import PredictionsError, RunError
from assay.experiment import judge
from assay.experiment.identity import digest_syntax
from assay.metrics.decide import DecideConfig
from assay.nn.domains.config import AlgorithmConfig
from assay.runs import listing
from assay.runs.folder import Run
from assay.runs.results import Result, read_result
from assay.train.domains import DomainClassificationConfig
from assay.train.task import Task, TaskConfig, TaskMetrics
from assay.typed import to_json

CLASSES = ["m1", "m2"]


def make_run(
    storage: Path, name: str, right: float, seed: int = 0, num: int = 120, **fields: Any
) -> Path:
    """A finished run, half of its images val, half test, two per part, a share of them answered rightly."""
    rng = np.random.default_rng(seed)
    truth = np.arange(num) // 2 % 2
    said = np.where(rng.random(num) < right, truth, 1 - truth)
    logits = np.eye(2)[said] * 2 + rng.normal(0, 0.1, (num, 2))
    sets = ["val" if i < num // 2 else "test" for i in range(num)]
    made = {
        "id": [f"s{i:03d}" for i in range(num)],
        "group": [f"g{i // 2}" for i in range(num)],
        "split": sets,
    }
    folder = storage / name
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table(made | {"content": made["id"], "label": [CLASSES[t] for t in truth]}),
        folder / "split.parquet",
    )
    table = pa.table(
        made | {"truth": pa.array(truth, pa.int32()), "logits": pa.array(logits.tolist())}
    )
    pq.write_table(
        table.replace_schema_metadata({"classes": json.dumps(CLASSES)}),
        folder / "predictions.parquet",
    )
    launch = {"time": 1.7e9, "workers": 1, "strategy": "ddp", "device": "cpu", "assay": "0.1.0"}
    record = {
        "schema": 1,
        "state": "finished",
        "task": "toy",
        "launches": [launch],
        "seconds": 12.0,
    } | fields
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.json").write_text('{"data": {}, "split": {}, "train": {}}')
    return folder


def judged(folder: Path, **settings: Any) -> Result:
    return judge.judge(folder, Task, TaskConfig(**settings), folder.parent)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    judged(make_run(folder, "toy-good", 0.95))
    judged(make_run(folder, "toy-bad", 0.55, seed=1))
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """What the command printed; with a code, on stderr."""
    found = 0
    try:
        main(arguments)
    except SystemExit as left:
        found = int(left.code or 0)
    printed = capsys.readouterr()
    assert found == code, printed
    return printed.err if code else printed.out


def test_runs_are_ranked_by_val_with_intervals(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(storage, "toy-broken", 0.5, state="failed", reason="The loss was not finite.")
    table = storage / "all.csv"
    printed = said(capsys, "runs", "--storage", str(storage), "--csv", str(table))
    lines = printed.splitlines()
    assert lines[0] == "toy, training-domain validation, ranked by accuracy on val"
    assert lines[1] == "rows in groups: val 60 in 30, test 60 in 30"
    assert [line.split()[:2] for line in lines[3:5]] == [["1", "good"], ["2", "bad"]]
    result = json.loads((storage / "toy-good" / "result.json").read_text())
    val, test = (result["sets"][name]["metrics"]["accuracy"] for name in ("val", "test"))
    assert (
        f"{val['value']:.3f}  {test['value']:.3f} [{test['low']:.3f}, {test['high']:.3f}]"
        in lines[3]
    )
    assert "test scorings of these rows: 2, of 2 runs; configurations tried: 2" in lines
    assert "toy-broken  failed" in printed
    assert "The loss was not finite." in printed
    assert "ORACLE" not in printed
    assert max(map(len, lines)) <= 100
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["run"] for row in rows] == ["toy-bad", "toy-broken", "toy-good"]
    assert float(rows[2]["test low"]) == test["low"]
    assert rows[1]["reason"] == "The loss was not finite."


def test_runs_that_do_not_separate_from_the_first_are_marked(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(make_run(storage, "toy-twin", 0.95))
    lines = said(capsys, "runs", "--storage", str(storage)).splitlines()
    assert [line.split()[:2] for line in lines[3:6]] == [
        ["1", "good"],
        ["2~", "twin"],
        ["3", "bad"],
    ]


def test_runs_on_other_rows_or_of_another_rule_share_no_table(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(make_run(storage, "toy-more", 0.99, num=160))
    oracle = SplitConfig(rule="oracle", unseen_domain="design")
    judged(make_run(storage, "toy-upper", 0.99), split=oracle)
    lines = said(capsys, "runs", "--storage", str(storage)).splitlines()
    assert [line for line in lines if "ranked by" in line] == [
        "toy, training-domain validation, ranked by accuracy on val",
        "toy, training-domain validation, ranked by accuracy on val",
        "toy, ORACLE, ranked by accuracy on val",
    ]
    # the oracle looked at the same test rows, toy-more at others
    tries = [line.split(";")[0] for line in lines if line.startswith("test scorings")]
    rows = "test scorings of these rows:"
    assert tries == [f"{rows} 3, of 3 runs", f"{rows} 1, of 1 runs", f"{rows} 3, of 3 runs"]


def test_ranking_by_a_test_set_is_called_an_oracle(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "ORACLE: ranked by a test set" in said(
        capsys, "runs", "--storage", str(storage), "--by", "test"
    )


def test_a_damaged_and_a_newer_run_are_listed_with_their_reason(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (make_run(storage, "toy-torn", 0.5) / "run.json").write_text('{"schema')
    make_run(storage, "toy-newer", 0.5, schema=99)
    (judged_run(storage, "toy-cut") / "result.json").write_text("[]")
    (judged_run(storage, "toy-gone") / "predictions.parquet").write_bytes(b"PAR1")
    (judged_run(storage, "toy-old") / "result.json").write_text('{"sets": {}, "scorings": []}')
    make_run(storage, "toy-bare", 0.5, launches=[{}], seconds=None)
    lines = said(capsys, "runs", "--storage", str(storage)).splitlines()
    reasons = {
        line.split()[0]: below for line, below in pairwise(lines) if line.startswith("  toy-")
    }
    for name, reason in {
        "toy-torn": "run.json is missing or damaged",
        "toy-newer": "written by a newer Assay",
        "toy-cut": "result.json is missing or damaged",
        "toy-gone": "predictions.parquet is missing or damaged",
        "toy-old": f"judge it again: assay judge {storage / 'toy-old'}",
        "toy-bare": "It has no result",
    }.items():
        assert reason in reasons.pop(name)
        said(capsys, "show", name, "--storage", str(storage))
        assert (
            len(
                said(
                    capsys, "compare", "toy-good", name, "--storage", str(storage), code=2
                ).splitlines()
            )
            == 1
        )
    assert not reasons


JSON = ("run.json", "config.json", "result.json", "lease.json", "comparison.json")


@pytest.mark.parametrize(
    "name", [*JSON, "predictions.parquet", "split.parquet", "metrics.jsonl", "bundle/bundle.json"]
)
def test_whatever_lies_in_a_file_of_a_run_no_command_fails_but_by_a_sentence(
    storage: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    damages: Callable[[Path], Iterator[str]],
) -> None:
    write_task(storage)
    monkeypatch.chdir(storage.parent)
    monkeypatch.setattr("assay.cli.console.write_report", lambda folder: folder / "report.html")
    folder = storage / "toy-good"
    kept = {path: path.read_bytes() for path in folder.glob("*.parquet") if path.name != name}
    for damage in damages(folder / name):
        commands = [["show", "good"]]
        commands += {
            "half": [["runs"], ["judge", "good"]],
            "an object": [["compare", "bad", "good"]],
        }.get(damage, [])
        for words in commands:
            code = 0
            try:
                main([*words, "--storage", str(storage)])
            except SystemExit as left:
                code = int(left.code or 0)
            printed = capsys.readouterr()
            assert code in (0, 2), (damage, words, printed)
            assert "Traceback" not in printed.err
            assert code == 0 or words != ["runs"], printed  # one bad run hides no other
        assert all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.parametrize("copy", ["{}-backup", "copy of {}"])
def test_a_copy_of_a_run_is_not_listed_and_makes_no_name_ambiguous(
    storage: Path, capsys: pytest.CaptureFixture[str], copy: str
) -> None:
    original = judged_run(storage, "toy-0123456789ab")
    where = ("--storage", str(storage))
    before = said(capsys, "runs", *where)
    shutil.copytree(original, storage / copy.format(original.name))
    (storage / "latest").symlink_to(original.name)
    (storage / "stray.txt").touch()
    (storage / "toy-ba9876543210").mkdir()
    assert said(capsys, "runs", *where) == before
    assert said(capsys, "show", "0123456789ab", *where).startswith("toy-0123456789ab: finished")
    assert "accuracy" in said(capsys, "compare", "0123456789", "good", *where)
    name = copy.format(original.name)
    assert said(capsys, "show", name, *where).startswith(f"{name}: finished")
    shutil.rmtree(original)  # a copy alone is found by a part of its name too
    (storage / "latest").unlink()
    assert said(capsys, "show", "0123456789", *where).startswith(f"{name}: finished")


def test_a_copy_under_a_name_of_its_own_is_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else one training would count as two that agree."""
    noted = {"content": "c" * 12, "code": {"task": "d"}}
    for seed in (0, 1):
        launch = {"time": 1.7e9 + seed, "workers": 1}
        judged(make_run(tmp_path, f"toy-{seed:012x}", 0.9, seed, launches=[launch], **noted))
    where = ("--storage", str(tmp_path))
    before = said(capsys, "runs", *where)
    shutil.copytree(tmp_path / "toy-000000000000", tmp_path / "best")
    assert said(capsys, "runs", *where) == before
    text = said(capsys, "compare", "toy-000000000000", "best", *where, code=2)
    assert "or beside a copy of its folder" in text
    assert said(capsys, "show", "best", *where).startswith("best: finished")
    said(capsys, "compare", "best", "toy-000000000001", *where)


@pytest.mark.parametrize("words", [["runs", "--csv"], ["compare", "toy-good", "toy-bad", "--json"]])
def test_nothing_is_written_over_a_file_of_a_run(
    storage: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    path = storage / "toy-good" / "run.json"
    before = path.read_bytes()
    text = said(capsys, *words, str(path), "--storage", str(storage), code=2)
    assert "among the files of a run" in text
    assert path.read_bytes() == before


@pytest.mark.parametrize("file", ["predictions.parquet", "split.parquet"])
def test_labels_that_are_changed_in_one_file_of_a_run_are_refused(
    tmp_path: Path, file: str
) -> None:
    path = make_run(tmp_path, "toy-run", 0.9) / file
    table, name = pq.read_table(path), "truth" if file.startswith("pred") else "label"
    column = table[name].to_pylist()
    column[0] = {0: 1, 1: 0, "m1": "m2", "m2": "m1"}[column[0]]
    index = table.column_names.index(name)
    pq.write_table(table.set_column(index, name, pa.array(column, table[name].type)), path)
    with pytest.raises(PredictionsError, match=r"1 rows have another truth than the label.*'s000'"):
        judged(path.parent)


@pytest.mark.parametrize(
    "edited",
    [
        {"task": "other"},
        {"data": "e" * 12},
        {"metrics": {}},
        {"classes": CLASSES[::-1]},
    ],
)
def test_a_bundle_that_says_something_else_than_its_run_is_refused(
    tmp_path: Path, make_bundle: Any, edited: dict[str, Any]
) -> None:
    """Its answers would stand under the numbers of others, or under each other's names."""
    folder = make_run(tmp_path, "toy-run", 0.9, data="d" * 12)
    result = judged(folder)
    card = read_card(make_bundle(tmp_path / "bundle", "toy"))
    card = replace(card, classes=CLASSES, metrics=result.sets)
    summary = listing.read(folder)
    refuse_edited(card, summary, summary.predictions())
    with pytest.raises(RunError, match=rf"other {next(iter(edited))} in bundle/bundle\.json"):
        refuse_edited(replace(card, **edited), summary, summary.predictions())


def judged_run(storage: Path, name: str) -> Path:
    folder = make_run(storage, name, 0.5)
    judged(folder)
    return folder


def test_a_run_whose_process_died_is_not_called_running(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, age_s in (("toy-alive", 0), ("toy-dead", 200)):
        lease = make_run(storage, name, 0.5, state="running") / "lease.json"
        lease.write_text(json.dumps({"host": "another", "pid": 1}))
        os.utime(lease, (lease.stat().st_mtime - age_s,) * 2)
    printed = said(capsys, "runs", "--storage", str(storage))
    assert "toy-alive  running" in printed
    assert "toy-dead  interrupted" in printed


def test_show_tells_rule_scorings_and_numbers(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(storage / "toy-good")
    printed = said(capsys, "show", "toy-good", "--storage", str(storage))
    assert "rule: training-domain validation; seed 0" in printed
    assert "test scored (2 of 2)" in printed
    assert "set coverage" in printed
    assert "test: 60 rows in 30 groups" in printed


def test_an_oracle_is_marked_wherever_it_appears(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, right in (("toy-a", 0.9), ("toy-b", 0.8)):
        judged(
            make_run(tmp_path, name, right),
            split=SplitConfig(rule="oracle", unseen_domain="design"),
        )
    assert "ORACLE" in said(capsys, "runs", "--storage", str(tmp_path))
    assert "ORACLE" in said(capsys, "show", "toy-a", "--storage", str(tmp_path))
    assert "ORACLE" in said(capsys, "compare", "toy-a", "toy-b", "--storage", str(tmp_path))


def test_a_transductive_run_is_marked_wherever_it_appears(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = SplitConfig(unlabelled="train", unseen_domain="design")
    config = DomainClassificationConfig(split=split, algorithm=AlgorithmConfig(name="coral"))
    for name, right in (("toy-a", 0.9), ("toy-b", 0.8)):
        judge.judge(make_run(tmp_path, name, right), Task, config, tmp_path)
    assert json.loads((tmp_path / "toy-a" / "result.json").read_text())["transductive"] is True
    for words in (["runs"], ["show", "toy-a"], ["compare", "toy-a", "toy-b"]):
        printed = said(capsys, *words, "--storage", str(tmp_path))
        assert "TRANSDUCTIVE" in printed
        assert "ORACLE" not in printed


def test_compare_says_in_words_what_differs(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = storage / "found.json"
    printed = said(
        capsys, "compare", "toy-good", "toy-bad", "--storage", str(storage), "--json", str(path)
    )
    assert "toy-good is better than toy-bad" in printed
    assert "McNemar over groups" in printed
    assert json.loads(path.read_text())[0]["verdict"] == "toy-good is better than toy-bad"
    judged(make_run(storage, "toy-twin", 0.95))
    printed = said(capsys, "compare", "toy-good", "toy-twin", "--storage", str(storage))
    assert "not significantly different" in printed


def test_judge_counts_scorings_and_keeps_them(storage: Path) -> None:
    first = json.loads((storage / "toy-good" / "result.json").read_text())
    again = judged(storage / "toy-good", decide=DecideConfig(coverage=0.8))
    assert (len(first["scorings"]), len(again.scorings)) == (1, 2)
    assert to_json(again.scorings[0]) == first["scorings"][0]
    assert again.decision.coverage == 0.8
    assert again.scorings[1].decide["coverage"] == 0.8
    assert again.decision.num == 60  # of val


@pytest.mark.parametrize("removed", ["result.json", "run.json"])
def test_no_file_of_a_run_that_is_removed_resets_the_count(storage: Path, removed: str) -> None:
    folder = storage / "toy-good"
    (folder / removed).unlink()
    again = judged(folder)
    assert len(again.scorings) == again.num_scored == 2
    assert read_result(folder) == again
    assert Run(folder).record.scorings == again.scorings


TASK = b"""
from assay.train.task import Task

class Toy(Task):
    pass
"""


def write_task(storage: Path) -> None:
    """Write tasks/toy.py beside the folder of the runs."""
    path = storage.parent / "tasks" / "toy.py"
    path.parent.mkdir()
    path.write_bytes(TASK)


@pytest.mark.parametrize(
    ("code", "is_told"), [(TASK, False), (TASK + b"OTHER = 1", True), (None, True)]
)
def test_judging_by_another_task_file_than_the_runs_is_told(
    storage: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: bytes | None,
    is_told: bool,
) -> None:
    monkeypatch.setattr("assay.cli.console.write_report", lambda folder: folder / "report.html")
    write_task(storage)
    if code is not None:
        Run(storage / "toy-good").note(code={"task": digest_syntax(code)})
    main(["judge", str(storage / "toy-good"), "--tasks", str(storage.parent / "tasks")])
    printed = capsys.readouterr()
    assert ("toy-good was trained by" in printed.err) == is_told
    assert len(printed.err.splitlines()) == is_told
    assert "This is scoring 2 of" in printed.out


NO_NUMBER = (
    "run.json: field 'launches.0.time' is 'soon'; it must be a number. "
    "Restore the file, or train again with --again."
)


def change_rows(folder: Path, column: str, values: Any) -> None:
    path = folder / "predictions.parquet"
    table = pq.ParquetFile(path).read()
    place = table.column_names.index(column)
    changed = pa.array(values(table[column].to_pylist()), table[column].type)
    pq.write_table(table.set_column(place, column, changed), path)


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("truth", lambda rows: [9, *rows[1:]], "truth runs from 0 to 9"),
        ("logits", lambda rows: [row[:1] for row in rows], "one of the logits for each"),
        ("logits", lambda rows: [[float("inf")] * 2, *rows[1:]], "NaN or infinite"),
    ],
)
def test_predictions_that_cannot_be_judged_are_refused(
    tmp_path: Path, column, values, says
) -> None:
    folder = make_run(tmp_path, "toy-odd", 0.9)
    change_rows(folder, column, values)
    with pytest.raises(PredictionsError, match=says):
        judged(folder)


def test_a_table_without_val_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "toy-odd", 0.9)
    path = folder / "predictions.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.filter(pc.equal(table["split"], "test")), path)
    with pytest.raises(PredictionsError, match="No row of val is predicted"):
        judged(folder)


def test_a_launch_at_no_time_is_shown(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = storage / "toy-good" / "run.json"
    record = json.loads(path.read_text())
    record["launches"][0]["time"] = 1e30
    path.write_text(json.dumps(record))
    assert "toy-good" in said(capsys, "report", "toy-good", "--storage", str(storage))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("run.json", {"launches": [{"time": "soon"}]}, NO_NUMBER),
        (
            "run.json",
            {"state": "done"},
            "field 'state' is 'done'; it must be 'new' or 'running' or",
        ),
        (
            "result.json",
            {"tried": "many"},
            "result.json: field 'tried' is 'many'; it must be a whole number.",
        ),
        ("result.json", {"sets": {"val": {"num": 3}}}, "field 'sets.val.num_groups' is missing"),
    ],
)
def test_a_damaged_field_is_named_with_its_file(
    storage: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: dict[str, Any],
    message: str,
) -> None:
    path = storage / "toy-good" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in said(capsys, "runs", "--storage", str(storage))
    with pytest.raises(RunError, match="field"):
        _ = Run(storage / "toy-good").record if name == "run.json" else read_result(path.parent)


def test_what_an_assay_does_not_know_stays_in_run_json(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "toy-later", 0.5, colour="red")
    before = json.loads((folder / "run.json").read_text())
    Run(folder).note(state="stopped")
    assert json.loads((folder / "run.json").read_text()) == before | {"state": "stopped"}


def test_judging_again_changes_what_is_given_and_nothing_else(
    storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = storage / "toy-good"
    monkeypatch.setattr("assay.cli.console.write_report", lambda folder: folder / "report.html")
    (folder / "task.py").write_text("raise SystemExit('stored source is never executed')")
    write_task(storage)
    monkeypatch.chdir(storage.parent)
    (folder / "config.json").write_text(
        '{"data": {}, "split": {}, "train": {}, "decide": {"positive": "m1", "coverage": 0.8}}'
    )
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"tried": 12}))
    printed = said(capsys, "judge", "good", "--storage", str(storage), "--decide.recall", "0.9")
    assert "scoring 2 of the test sets of toy-good by training-domain validation" in printed
    decide = {"positive": "m1", "coverage": 0.8, "recall": 0.9, "costs": [], "pixel_recall": 0.0}
    again = json.loads((folder / "result.json").read_text())
    assert json.loads((folder / "config.json").read_text())["decide"] == decide
    assert again["scorings"][1]["decide"] == decide
    assert (again["tried"], again["scorings"][1]["tried"]) == (12, 12)
    assert not (folder / "lease.json").exists()


def test_a_run_judged_by_an_older_assay_is_judged_again(
    storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = storage / "toy-good"
    monkeypatch.setattr("assay.cli.console.write_report", lambda folder: folder / "report.html")
    write_task(storage)
    old = {"sets": {}, "scorings": [{"time": 1.7e9, "assay": "0.1.0"}]}
    (folder / "result.json").write_text(json.dumps(old))
    Run(folder).note(scorings=())
    printed = said(capsys, "judge", str(folder), "--tasks", str(storage.parent / "tasks"))
    assert "This is scoring 2 of" in printed
    assert "test scored (1 of 2): 2023-11-14" in printed
    assert "rule not recorded" in printed
    assert "test scored (2 of 2)" in printed


def test_two_runs_of_one_name_are_told_apart(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = storage.parent / "other" / "toy-good"
    judged(make_run(other.parent, "toy-good", 0.55, seed=1))
    printed = said(capsys, "compare", str(storage / "toy-good"), str(other))
    assert f"{storage / 'toy-good'} is better than {other}" in printed


def test_judging_again_keeps_how_many_configurations_were_tried(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "toy-chosen", 0.9)
    assert judge.judge(folder, Task, TaskConfig(), tmp_path, tried=12).tried == 12
    again = judged(folder)
    assert (again.tried, again.scorings[1].tried) == (12, 12)


def test_a_damaged_record_of_scorings_is_not_begun_anew(storage: Path) -> None:
    (storage / "toy-good" / "result.json").write_text('{"scorings": [')
    with pytest.raises(RunError, match=r"result\.json is damaged, and with it the record"):
        judged(storage / "toy-good")


def test_a_task_adds_its_own_metrics_and_figures(tmp_path: Path) -> None:
    from assay.metrics.estimate import interval
    from assay.metrics.figure import Figure, Series
    from assay.metrics.measures import Measure

    class Own(Task):
        @classmethod
        def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
            mine = interval(np.array([0.5, 1.0]), np.array([0, 1]))
            figure = Figure(
                title="Mine", kind="line", series={"a": Series(x=[0.0, 1.0], y=[1.0, 2.0])}
            )
            named = {"sharpness": Measure("Sharpness", "of what is seen")}
            return TaskMetrics(
                metrics={"test": {"sharpness": mine}}, figures=[figure], measures=named
            )

    folder = make_run(tmp_path, "toy-own", 0.9)
    result = judge.judge(folder, Own, TaskConfig(), tmp_path)
    assert result.sets["test"].metrics["sharpness"].value == 0.75
    assert result.figures[0].title == "Mine"
    written = json.loads((folder / "result.json").read_text())["measures"]
    assert written["sharpness"] == {"label": "Sharpness", "meaning": "of what is seen"}
    assert written["accuracy"]["label"] == "Accuracy"
    assert read_result(folder) == result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nobody"], "There is no run 'nobody'"),
        (["runs", "--by", "train"], "--by is train; these runs have: test, val"),
        (["runs", "--task", "other"], "holds no run of the task other"),
        (["runs", "--csv", "/dev/null/x.csv"], "cannot be read or written"),
        (["compare", "toy-good", "toy-new"], "toy-new cannot be compared"),
        (["compare", "toy-good", "good"], "A run is named twice"),
        (["compare", "toy", "toy-good"], "may be any of toy-bad, toy-good, toy-new"),
        (["judge", "toy-new"], "toy-new cannot be judged again (it is interrupted)"),
        (["judge", "toy-good"], "there is no tasks/toy.py; run the command where that file is"),
        (["judge", "toy-good", "--tasks", "/nowhere"], "there is no /nowhere/toy.py"),
        (["judge", "--decide.coverage", "0.8", "toy-good"], "The run must come first"),
        (["report", "toy-new"], "toy-new is running"),
        (["runs", "--csv", ""], "--csv is empty, as where a variable of the shell is not set"),
        (["compare", "toy-good", "toy-bad", "--json="], "--json is empty"),
        (["promote", "toy-good", "--registry", " "], "--registry is empty"),
        (["predict", "toy-good"], "names nothing to judge"),
        (["show", ""], "A word of assay show is empty"),
        (["compare", "toy-good", ""], "A word of assay compare is empty"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    storage: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    make_run(storage, "toy-new", 0.5, state="running")
    printed = said(capsys, *arguments, "--storage", str(storage), code=2)
    assert message in printed
    assert len(printed.strip().splitlines()) == 1


def test_runs_on_other_rows_are_not_compared(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = storage / "toy-bad"
    table = pq.read_table(folder / "predictions.parquet")
    pq.write_table(table.slice(0, 100), folder / "predictions.parquet")
    printed = said(capsys, "compare", "toy-good", "toy-bad", "--storage", str(storage), code=2)
    assert "different rows: 20 ids are only in the first" in printed


def test_reading_runs_imports_no_torch(storage: Path) -> None:
    code = (
        "import sys; from assay.cli.console import main; main(['runs', '--storage', sys.argv[1]]); "
        "main(['show', 'toy-good', '--storage', sys.argv[1]]); "
        "assert not {'torch', 'ray'} & set(sys.modules), 'slow'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(storage)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


README = (Path(__file__).parents[2] / "README.md").read_text()


COMMANDS = re.findall(r"^uv run assay (.*)$", README, re.MULTILINE)
SERVING = ("promote", "registry", "rollback", "serve", "predict")


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[0] in SERVING])
def test_the_readmes_commands_of_serving_exist(
    capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert f"assay {line.split()[0]}" in said(capsys, line.split()[0], "--help")


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[0] not in SERVING])
def test_the_readmes_commands_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "report.html"
    page.touch()
    monkeypatch.setattr("assay.cli.console.write_report", lambda folder: page)
    for name, right in (("fingerprint-3f2a", 0.95), ("fingerprint-77b1", 0.6)):
        folder = make_run(tmp_path / "runs", name, right)
        judged(folder)
    write_task(tmp_path / "runs")
    words = line.split()
    expected = {
        "runs": "77b1",
        "compare": "is better than",
        "judge": "scoring 2",
        "report": "MB",
        "show": "finished",
    }
    assert expected[words[0]] in said(capsys, *words)
