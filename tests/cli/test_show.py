"""`assay show` and `assay compare`: what is marked, and what differs."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from assay.data.split_config import SplitConfig
from assay.experiment import judge
from assay.nn.domains.config import AlgorithmConfig
from assay.runs.results import Result, read_contents
from assay.train.domains import DomainClassificationConfig
from assay.train.task import Task


def test_show_tells_rule_scorings_and_numbers(
    judged: Callable[..., Result], assay: Callable[..., str], storage: Path
) -> None:
    judged(storage / "toy-good")
    printed = assay("show", "toy-good", "--storage", str(storage))
    assert "rule: training-domain validation; seed 0" in printed
    assert "test scored (2 of 2)" in printed
    assert "set coverage" in printed
    assert "test: 60 rows in 30 groups" in printed


def test_show_offers_a_report_of_what_has_one(
    make_run: Callable[..., Path], assay: Callable[..., str], storage: Path
) -> None:
    make_run(storage, "toy-broken", 0.5, state="failed", reason="The loss was not finite.")
    for name, offer in (("toy-good", True), ("toy-broken", False)):
        printed = assay("show", name, "--storage", str(storage))
        assert (f"none yet; assay report {storage / name}" in printed) == offer


def test_an_oracle_is_marked_wherever_it_appears(
    judged: Callable[..., Result],
    make_run: Callable[..., Path],
    assay: Callable[..., str],
    tmp_path: Path,
) -> None:
    for name, right in (("toy-a", 0.9), ("toy-b", 0.8)):
        judged(
            make_run(tmp_path, name, right),
            split=SplitConfig(rule="oracle", unseen_domain="design"),
        )
    assert "ORACLE" in assay("runs", "--storage", str(tmp_path))
    assert "ORACLE" in assay("show", "toy-a", "--storage", str(tmp_path))
    assert "ORACLE" in assay("compare", "toy-a", "toy-b", "--storage", str(tmp_path))


def test_a_transductive_run_is_marked_wherever_it_appears(
    make_run: Callable[..., Path], assay: Callable[..., str], tmp_path: Path
) -> None:
    split = SplitConfig(unlabelled="train", unseen_domain="design")
    config = DomainClassificationConfig(split=split, algorithm=AlgorithmConfig(name="coral"))
    for name, right in (("toy-a", 0.9), ("toy-b", 0.8)):
        judge.judge(make_run(tmp_path, name, right), Task, config, tmp_path)
    assert json.loads((tmp_path / "toy-a" / "result.json").read_text())["transductive"] is True
    for words in (["runs"], ["show", "toy-a"], ["compare", "toy-a", "toy-b"]):
        printed = assay(*words, "--storage", str(tmp_path))
        assert "TRANSDUCTIVE" in printed
        assert "ORACLE" not in printed


def test_compare_says_in_words_what_differs(
    judged: Callable[..., Result],
    make_run: Callable[..., Path],
    assay: Callable[..., str],
    storage: Path,
) -> None:
    path = storage / "found.json"
    printed = assay(
        "compare", "toy-good", "toy-bad", "--storage", str(storage), "--json", str(path)
    )
    assert "toy-good is better than toy-bad" in printed
    assert "McNemar over groups" in printed
    assert "p corrected for 1 comparison (Holm)." in printed
    assert json.loads(path.read_text())[0]["verdict"] == "toy-good is better than toy-bad"
    judged(make_run(storage, "toy-twin", 0.95))
    printed = assay("compare", "toy-good", "toy-twin", "--storage", str(storage))
    assert "not significantly different" in printed


def test_a_launch_at_no_time_is_shown(assay: Callable[..., str], storage: Path) -> None:
    path = storage / "toy-good" / "run.json"
    record = json.loads(path.read_text())
    record["launches"][0]["time"] = 1e30
    path.write_text(json.dumps(record))
    assert "toy-good" in assay("report", "toy-good", "--storage", str(storage))


def test_two_runs_of_one_name_are_told_apart(
    judged: Callable[..., Result],
    make_run: Callable[..., Path],
    assay: Callable[..., str],
    storage: Path,
) -> None:
    other = storage.parent / "other" / "toy-good"
    judged(make_run(other.parent, "toy-good", 0.55, seed=1))
    printed = assay("compare", str(storage / "toy-good"), str(other))
    assert f"{storage / 'toy-good'} is better than {other}" in printed


def test_runs_on_other_files_of_the_same_names_are_not_compared(
    assay: Callable[..., str], storage: Path
) -> None:
    path = storage / "toy-bad" / "split.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("content")
    recorded_again = pa.array(["another", *table["content"].to_pylist()[1:]])
    pq.write_table(table.set_column(place, "content", recorded_again), path)
    assert assay("runs", "--storage", str(storage)).count("rows in groups") == 2
    where = ["--storage", str(storage)]
    assert "is better than" in assay("compare", "toy-good", "toy-bad", *where)  # a file of val
    again = pa.array([*table["content"].to_pylist()[:-1], "another"])
    pq.write_table(table.set_column(place, "content", again), path)
    printed = assay("compare", "toy-good", "toy-bad", *where, code=2)
    assert "1 of 60 ids have another split, group, truth or file" in printed


def test_runs_on_other_true_masks_are_told_apart(tmp_path: Path) -> None:
    names = ["mask_content.label", "content", "id", "mask_content.truth"]
    pq.write_table(pa.table({name: [name] for name in names}), tmp_path / "split.parquet")
    assert read_contents(tmp_path, by_masks=True) == {"id": "content mask_content.truth"}
    assert read_contents(tmp_path, by_masks=False) == {"id": "content"}


def test_runs_on_other_rows_are_not_compared(assay: Callable[..., str], storage: Path) -> None:
    folder = storage / "toy-bad"
    table = pq.read_table(folder / "predictions.parquet")
    pq.write_table(table.slice(0, 100), folder / "predictions.parquet")
    printed = assay("compare", "toy-good", "toy-bad", "--storage", str(storage), code=2)
    assert "different rows: 20 ids are only in the first" in printed
