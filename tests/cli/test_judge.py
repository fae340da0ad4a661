"""`assay judge`: scorings are counted, and what cannot be judged is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from assay.cli.console import main
from assay.errors import PredictionsError, RunError
from assay.experiment import judge
from assay.experiment.identity import digest_syntax
from assay.metrics.decide import DecideConfig
from assay.runs.folder import Run
from assay.runs.results import Result, read_result
from assay.train.task import Task, TaskMetrics
from assay.train.task_config import TaskConfig
from assay.typed import to_json


def test_judge_counts_scorings_and_keeps_them(judged: Callable[..., Result], storage: Path) -> None:
    first = json.loads((storage / "toy-good" / "result.json").read_text())
    again = judged(storage / "toy-good", decide=DecideConfig(coverage=0.8))
    assert (len(first["scorings"]), len(again.scorings)) == (1, 2)
    assert to_json(again.scorings[0]) == first["scorings"][0]
    assert again.decision.coverage == 0.8
    assert again.scorings[1].decide["coverage"] == 0.8
    assert again.decision.num == 60  # of val


def test_a_judging_counts_as_the_last_whatever_its_clock_says(
    judged: Callable[..., Result], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's clock may be behind, and one's own may be set."""
    decides = [DecideConfig(coverage=coverage) for coverage in (0.9, 0.8, 0.7)]
    for decide, time in zip(decides[1:], (5000.0, 1000.0), strict=True):
        monkeypatch.setattr(judge.time, "time", lambda time=time: time)
        judged(storage / "toy-good", decide=decide)
    told = [s.decide["coverage"] for s in read_result(storage / "toy-good").scorings]
    assert told == [0.9, 0.8, 0.7]
    known = [judge.is_decided(storage / "toy-good", TaskConfig(decide=d)) for d in decides]
    assert known == [False, False, True]


@pytest.mark.parametrize("removed", ["result.json", "run.json"])
def test_no_file_of_a_run_that_is_removed_resets_the_count(
    judged: Callable[..., Result], storage: Path, removed: str
) -> None:
    folder = storage / "toy-good"
    (folder / removed).unlink()
    again = judged(folder)
    assert len(again.scorings) == again.num_scored == 2
    assert read_result(folder) == again
    assert Run(folder).record.scorings == again.scorings


@pytest.mark.parametrize("file", ["predictions.parquet", "split.parquet"])
def test_labels_that_are_changed_in_one_file_of_a_run_are_refused(
    judged: Callable[..., Result], make_run: Callable[..., Path], tmp_path: Path, file: str
) -> None:
    path = make_run(tmp_path, "toy-run", 0.9) / file
    table, name = pq.read_table(path), "truth" if file.startswith("pred") else "label"
    column = table[name].to_pylist()
    column[0] = {0: 1, 1: 0, "m1": "m2", "m2": "m1"}[column[0]]
    index = table.column_names.index(name)
    pq.write_table(table.set_column(index, name, pa.array(column, table[name].type)), path)
    with pytest.raises(PredictionsError, match=r"1 rows have another truth than the label.*'s000'"):
        judged(path.parent)


@pytest.mark.parametrize(("more", "is_told"), [(b"", False), (b"OTHER = 1", True), (None, True)])
def test_judging_by_another_task_file_than_the_runs_is_told(
    write_task: Callable[[Path], bytes],
    storage: Path,
    capsys: pytest.CaptureFixture[str],
    no_page: None,
    more: bytes | None,
    is_told: bool,
) -> None:
    source = write_task(storage)
    if more is not None:
        Run(storage / "toy-good").note(code={"task": digest_syntax(source + more)})
    main(["judge", str(storage / "toy-good"), "--tasks", str(storage.parent / "tasks")])
    printed = capsys.readouterr()
    assert ("toy-good was trained by" in printed.err) == is_told
    assert len(printed.err.splitlines()) == is_told
    assert "This is scoring 2 of" in printed.out


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
    judged: Callable[..., Result],
    make_run: Callable[..., Path],
    tmp_path: Path,
    column,
    values,
    says,
) -> None:
    folder = make_run(tmp_path, "toy-odd", 0.9)
    change_rows(folder, column, values)
    with pytest.raises(PredictionsError, match=says):
        judged(folder)


def test_a_table_without_val_is_refused(
    judged: Callable[..., Result], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_run(tmp_path, "toy-odd", 0.9)
    path = folder / "predictions.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.filter(pc.equal(table["split"], "test")), path)
    with pytest.raises(PredictionsError, match="No row of val is predicted"):
        judged(folder)


def test_judging_again_changes_what_is_given_and_nothing_else(
    assay: Callable[..., str],
    write_task: Callable[[Path], bytes],
    storage: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_page: None,
) -> None:
    folder = storage / "toy-good"
    (folder / "task.py").write_text("raise SystemExit('stored source is never executed')")
    write_task(storage)
    monkeypatch.chdir(storage.parent)
    (folder / "config.json").write_text(
        '{"data": {}, "split": {}, "train": {}, "decide": {"positive": "m1", "coverage": 0.8}}'
    )
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"tried": 12}))
    printed = assay("judge", "good", "--storage", str(storage), "--decide.recall", "0.9")
    assert "scoring 2 of the test sets of toy-good by training-domain validation" in printed
    decide = {"positive": "m1", "coverage": 0.8, "recall": 0.9, "costs": [], "pixel_recall": 0.0}
    again = json.loads((folder / "result.json").read_text())
    assert json.loads((folder / "config.json").read_text())["decide"] == decide
    assert again["scorings"][1]["decide"] == decide
    assert (again["tried"], again["scorings"][1]["tried"]) == (12, 12)
    assert not (folder / "lease.json").exists()


def test_a_run_judged_by_an_older_assay_is_judged_again(
    assay: Callable[..., str], write_task: Callable[[Path], bytes], storage: Path, no_page: None
) -> None:
    folder = storage / "toy-good"
    write_task(storage)
    old = {"sets": {}, "scorings": [{"time": 1.7e9, "assay": "0.1.0"}]}
    (folder / "result.json").write_text(json.dumps(old))
    Run(folder).note(scorings=())
    printed = assay("judge", str(folder), "--tasks", str(storage.parent / "tasks"))
    assert "This is scoring 2 of" in printed
    assert "test scored (1 of 2): 2023-11-14" in printed
    assert "rule not recorded" in printed
    assert "test scored (2 of 2)" in printed


def test_judging_again_keeps_how_many_configurations_were_tried(
    judged: Callable[..., Result], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_run(tmp_path, "toy-chosen", 0.9)
    assert judge.judge(folder, Task, TaskConfig(), tmp_path, tried=12).tried == 12
    again = judged(folder)
    assert (again.tried, again.scorings[1].tried) == (12, 12)


def test_a_damaged_record_of_scorings_is_not_begun_anew(
    judged: Callable[..., Result], storage: Path
) -> None:
    (storage / "toy-good" / "result.json").write_text('{"scorings": [')
    with pytest.raises(RunError, match=r"result\.json is damaged, and with it the record"):
        judged(storage / "toy-good")


def test_a_task_adds_its_own_metrics_and_figures(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
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
