import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.errors import RunError
from assay.metrics.estimate import Estimate
from assay.metrics.summary import Summary
from assay.runs.record import RunRecord, read_record, write_record
from assay.runs.results import (
    Result,
    read_predictions,
    read_result,
    read_split,
    refuse_other,
    write_predictions,
    write_result,
    write_split,
)

ROWS = pa.table({"id": ["a", "b"], "split": ["val", "test"], "group": ["1", "2"]})
SETS = {
    "val": Summary(
        num=1,
        num_groups=1,
        metrics={"accuracy": Estimate(value=0.5, low=0.1, high=0.9, num=1, num_groups=1)},
    )
}
RESULT = Result(rule="val", oracle=False, seed=0, sets=SETS, tried=1, scorings=())
READERS = {
    "predictions.parquet": read_predictions,
    "split.parquet": read_split,
    "result.json": read_result,
}


def ended(folder, content):
    """Write a run that computes what `content` names."""
    folder.mkdir()
    write_record(folder, RunRecord(content=content, code={"task": "0123"}))
    write_predictions(folder, ROWS.replace_schema_metadata({b"classes": b'["x", "y"]'}))
    write_split(folder, ROWS)
    write_result(folder, RESULT)
    return folder


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_another_run_is_refused(tmp_path, name):
    own, other = (ended(tmp_path / content, content) for content in ("own", "other"))
    READERS[name](own)
    shutil.copy(other / name, own / name)
    with pytest.raises(RunError, match=f"{name} is of another run than run.json beside it"):
        READERS[name](own)


@pytest.mark.parametrize("name", READERS)
def test_a_run_that_was_copied_or_went_on_is_read(tmp_path, name):
    folder = ended(tmp_path / "own", "own")
    write_record(folder, replace(read_record(folder), state="finished", seconds=3.0))
    READERS[name](folder)
    READERS[name](shutil.copytree(folder, tmp_path / "own-backup"))
    (folder / "run.json").unlink()
    READERS[name](folder)


def test_files_of_before_marks_are_read(tmp_path):
    folder = ended(tmp_path / "own", "own")
    pq.write_table(ROWS, folder / "predictions.parquet")
    assert read_predictions(folder) == ROWS
    refuse_other(folder, "bundle", "")
    write_record(folder, RunRecord())
    read_result(folder)


def test_what_a_table_says_besides_is_kept(tmp_path):
    table = read_predictions(ended(tmp_path / "own", "own"))
    assert table.schema.metadata[b"classes"] == b'["x", "y"]'
