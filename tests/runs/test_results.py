import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.errors import RunError
from assay.files import write_json
from assay.metrics.estimate import Estimate
from assay.metrics.summary import Summary
from assay.runs.metrics import read_metrics
from assay.runs.record import RunRecord, read_record, write_record
from assay.runs.results import (
    Result,
    read_config,
    read_predictions,
    read_result,
    read_split,
    refuse_other,
    write_config,
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


def test_settings_of_another_run_are_refused(tmp_path):
    config = {"data": {"root": "a"}, "split": {}, "train": {"seed": 1}, "decide": {}}
    folder = ended(tmp_path / "run", "0")
    write_config(folder, config)
    moved = config | {"data": {"root": "b"}, "decide": {"coverage": 0.8}}
    write_json(folder / "config.json", moved)
    assert read_config(folder) == moved
    write_json(folder / "config.json", config | {"train": {"seed": 2}})
    with pytest.raises(RunError, match="other settings than the run was trained by"):
        read_config(folder)


@pytest.mark.parametrize("name", ["predictions.parquet", "split.parquet"])
def test_a_byte_that_changed_in_a_column_is_noticed(tmp_path, name):
    folder = ended(tmp_path / "run", "0")
    table = pa.table({c: [f"{c}{i}" for i in range(300)] for c in ROWS.column_names})
    {"predictions.parquet": write_predictions, "split.parquet": write_split}[name](folder, table)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(RunError, match="missing or damaged"):
        READERS[name](folder)


@pytest.mark.parametrize("line", ['{"loss": "high"}', '{"loss": [1]}', '{"loss": true}'])
def test_a_measure_that_is_no_number_is_damage(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": "step", "step": 1} | json.loads(line), {"kind": "step", "step": 2}]
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    with pytest.raises(RunError, match=r"Line 1 of .* a measure is no number"):
        read_metrics(path)


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
