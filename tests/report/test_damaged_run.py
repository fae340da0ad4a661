"""Files of a run that make no report."""

import pytest

from assay.errors import AssayError, RunError
from assay.report import page as report
from assay.runs.metrics import read_metrics


@pytest.mark.parametrize("state", ["new", "running", "stopped", "failed"])
def test_an_unfinished_run_has_no_report(write, run, state):
    write(run, "run.json", {"schema": 1, "state": state, "task": "fingerprint"})
    with pytest.raises(RunError, match=state):
        report.write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("result.json", {"rule": "x", "sets": {}}, "judge the run again"),
        ("result.json", {"schema": 2}, "update Assay"),
        (
            "result.json",
            {"schema": 1, "rule": 7},
            r"result\.json: field 'rule' is 7; it must be text",
        ),
        (
            "comparison.json",
            {"method": "a", "runs": {}},
            r"comparison\.json: field 'comparisons' is missing",
        ),
        ("run.json", {"schema": 9, "state": "finished"}, "update Assay"),
        ("result.json", None, "has no result.json"),
        ("split.parquet", None, r"split\.parquet is missing"),
        ("config.json", None, r"config\.json is missing"),
    ],
)
def test_files_of_another_schema_or_missing_are_refused(write, run, name, value, words):
    if value is None:
        (run / name).unlink()
    else:
        write(run, name, value)
    with pytest.raises(RunError, match=words):
        report.write_report(run)


def test_a_damaged_file_is_refused(run):
    (run / "result.json").write_text('{"schema": 1, "se')
    with pytest.raises(RunError, match="damaged"):
        report.write_report(run)


DAMAGEABLE = ("run.json", "config.json", "result.json", "comparison.json", "split.parquet")


@pytest.mark.parametrize(
    "name", [*DAMAGEABLE, "metrics.jsonl", "samples/samples.json", "bundle/bundle.json"]
)
def test_a_file_damaged_in_any_way_is_refused_in_a_sentence(run, name, damages):
    for damage in damages(run / name):
        told = ""
        try:
            report.render(run)
        except AssayError as error:
            told = str(error)
        assert "\n" not in told
        # of the metrics a last line that was cut off is passed over
        assert told or name == "metrics.jsonl", damage


def test_a_failed_rebuild_keeps_the_old_page(run):
    before = report.write_report(run).read_text()
    (run / "result.json").unlink()
    with pytest.raises(RunError):
        report.write_report(run)
    assert (run / "report.html").read_text() == before
    assert not list(run.glob(".report*"))


def test_repeated_lines_of_a_resumed_run_count_once(run):
    metrics = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in metrics["step"]] == [1, 2, 3, 4]
