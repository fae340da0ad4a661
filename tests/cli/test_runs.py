"""`assay runs`: runs in order, copies and damaged ones."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from assay.data.split_config import SplitConfig
from assay.errors import RunError
from assay.runs.folder import Run
from assay.runs.results import Result, read_result


@pytest.fixture
def judged_run(
    make_run: Callable[..., Path], judged: Callable[..., Result]
) -> Callable[[Path, str], Path]:
    """Makes a run that is judged, and returns its folder."""

    def make(storage: Path, name: str) -> Path:
        folder = make_run(storage, name, 0.5)
        judged(folder)
        return folder

    return make


def test_runs_are_ranked_by_val_with_intervals(
    make_run: Callable[..., Path], assay: Callable[..., str], storage: Path
) -> None:
    make_run(storage, "toy-broken", 0.5, state="failed", reason="The loss was not finite.")
    table = storage / "all.csv"
    printed = assay("runs", "--storage", str(storage), "--csv", str(table))
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
    judged: Callable[..., Result],
    make_run: Callable[..., Path],
    assay: Callable[..., str],
    storage: Path,
) -> None:
    judged(make_run(storage, "toy-twin", 0.95))
    lines = assay("runs", "--storage", str(storage)).splitlines()
    assert [line.split()[:2] for line in lines[3:6]] == [
        ["1", "good"],
        ["2~", "twin"],
        ["3", "bad"],
    ]


def test_runs_on_other_rows_or_of_another_rule_share_no_table(
    judged: Callable[..., Result],
    make_run: Callable[..., Path],
    assay: Callable[..., str],
    storage: Path,
) -> None:
    judged(make_run(storage, "toy-more", 0.99, num=160))
    oracle = SplitConfig(rule="oracle", unseen_domain="design")
    judged(make_run(storage, "toy-upper", 0.99), split=oracle)
    lines = assay("runs", "--storage", str(storage)).splitlines()
    assert [line for line in lines if "ranked by" in line] == [
        "toy, training-domain validation, ranked by accuracy on val",
        "toy, training-domain validation, ranked by accuracy on val",
        "toy, ORACLE, ranked by accuracy on val",
    ]
    # the oracle looked at the same test rows, toy-more at others
    tries = [line.split(";")[0] for line in lines if line.startswith("test scorings")]
    rows = "test scorings of these rows:"
    assert tries == [f"{rows} 3, of 3 runs", f"{rows} 1, of 1 run", f"{rows} 3, of 3 runs"]


def test_ranking_by_a_test_set_is_called_an_oracle(
    assay: Callable[..., str], storage: Path
) -> None:
    assert "ORACLE: ranked by a test set" in assay(
        "runs", "--storage", str(storage), "--by", "test"
    )


def test_a_damaged_and_a_newer_run_are_listed_with_their_reason(
    judged_run: Callable[[Path, str], Path],
    make_run: Callable[..., Path],
    assay: Callable[..., str],
    storage: Path,
) -> None:
    (make_run(storage, "toy-torn", 0.5) / "run.json").write_text('{"schema')
    make_run(storage, "toy-newer", 0.5, schema=99)
    (judged_run(storage, "toy-cut") / "result.json").write_text("[]")
    (judged_run(storage, "toy-gone") / "predictions.parquet").write_bytes(b"PAR1")
    (judged_run(storage, "toy-old") / "result.json").write_text('{"sets": {}, "scorings": []}')
    make_run(storage, "toy-bare", 0.5, launches=[{}], seconds=None)
    lines = assay("runs", "--storage", str(storage)).splitlines()
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
        assay("show", name, "--storage", str(storage))
        assert (
            len(assay("compare", "toy-good", name, "--storage", str(storage), code=2).splitlines())
            == 1
        )
    assert not reasons


@pytest.mark.parametrize("copy", ["{}-backup", "copy of {}"])
def test_a_copy_of_a_run_is_not_listed_and_makes_no_name_ambiguous(
    judged_run: Callable[[Path, str], Path], assay: Callable[..., str], storage: Path, copy: str
) -> None:
    original = judged_run(storage, "toy-0123456789ab")
    where = ("--storage", str(storage))
    before = assay("runs", *where)
    shutil.copytree(original, storage / copy.format(original.name))
    (storage / "latest").symlink_to(original.name)
    (storage / "stray.txt").touch()
    (storage / "toy-ba9876543210").mkdir()
    assert assay("runs", *where) == before
    assert assay("show", "0123456789ab", *where).startswith("toy-0123456789ab: finished")
    assert "accuracy" in assay("compare", "0123456789", "good", *where)
    name = copy.format(original.name)
    assert assay("show", name, *where).startswith(f"{name}: finished")
    shutil.rmtree(original)  # a copy alone is found by a part of its name too
    (storage / "latest").unlink()
    assert assay("show", "0123456789", *where).startswith(f"{name}: finished")


def test_a_copy_under_a_name_of_its_own_is_the_same_run(
    make_run: Callable[..., Path],
    judged: Callable[..., Result],
    assay: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Else one training would count as two that agree."""
    noted = {"content": "c" * 12, "code": {"task": "d"}}
    for seed in (0, 1):
        launch = {"time": 1.7e9 + seed, "workers": 1}
        judged(make_run(tmp_path, f"toy-{seed:012x}", 0.9, seed, launches=[launch], **noted))
    where = ("--storage", str(tmp_path))
    before = assay("runs", *where)
    shutil.copytree(tmp_path / "toy-000000000000", tmp_path / "best")
    assert assay("runs", *where) == before
    text = assay("compare", "toy-000000000000", "best", *where, code=2)
    assert "or beside a copy of its folder" in text
    assert assay("show", "best", *where).startswith("best: finished")
    assay("compare", "best", "toy-000000000001", *where)


@pytest.mark.parametrize("words", [["runs", "--csv"], ["compare", "toy-good", "toy-bad", "--json"]])
def test_nothing_is_written_over_a_file_of_a_run(
    assay: Callable[..., str], storage: Path, words: list[str]
) -> None:
    path = storage / "toy-good" / "run.json"
    before = path.read_bytes()
    text = assay(*words, str(path), "--storage", str(storage), code=2)
    assert "among the files of a run" in text
    assert path.read_bytes() == before


def test_a_run_whose_process_died_is_not_called_running(
    make_run: Callable[..., Path], assay: Callable[..., str], storage: Path
) -> None:
    for name, age_s in (("toy-alive", 0), ("toy-dead", 200)):
        lease = make_run(storage, name, 0.5, state="running") / "lease.json"
        lease.write_text(json.dumps({"host": "another", "pid": 1}))
        os.utime(lease, (lease.stat().st_mtime - age_s,) * 2)
    printed = assay("runs", "--storage", str(storage))
    assert "toy-alive  running" in printed
    assert "toy-dead  interrupted" in printed


NO_NUMBER = (
    "run.json: field 'launches.0.time' is 'soon'; it must be a number. "
    "Restore the file, or train again with --again."
)


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
    assay: Callable[..., str], storage: Path, name: str, change: dict[str, Any], message: str
) -> None:
    path = storage / "toy-good" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in assay("runs", "--storage", str(storage))
    with pytest.raises(RunError, match="field"):
        _ = Run(storage / "toy-good").record if name == "run.json" else read_result(path.parent)


def test_what_an_assay_does_not_know_stays_in_run_json(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_run(tmp_path, "toy-later", 0.5, colour="red")
    before = json.loads((folder / "run.json").read_text())
    Run(folder).note(state="stopped")
    assert json.loads((folder / "run.json").read_text()) == before | {"state": "stopped"}
