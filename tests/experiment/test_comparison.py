"""Runs beside each other: those that were judged on other test images are told and not compared."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from assay.experiment import judge
from assay.runs.results import ComparedRun


def predictions(first: int) -> pa.Table:
    """Ten test images and two of val, of two classes."""
    ids = [f"image {first + i}" for i in range(10)] + ["v", "w"]
    columns = {
        "id": ids,
        "split": ["test"] * 10 + ["val"] * 2,
        "group": ids,
        "truth": pa.array([0, 1] * 6, pa.int32()),
        "logits": pa.array(np.eye(2)[[0, 1] * 6].tolist()),
    }
    return pa.table(columns).replace_schema_metadata({"classes": json.dumps(["a", "b"])})


def test_a_baseline_of_other_test_images_is_said_and_stands_uncompared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {"method": predictions(0), "same": predictions(0), "published": predictions(3)}
    monkeypatch.setattr(judge, "read_predictions", lambda folder: tables[folder.name])
    empty = ComparedRun(folder="", seed=0, sets={})
    monkeypatch.setattr(judge, "_compared_run", lambda folder: empty)
    (tmp_path / "method").mkdir()
    judge.write_comparison({name: tmp_path / name for name in tables})
    written = json.loads((tmp_path / "method" / "comparison.json").read_text())
    assert [each["name"] for each in written["comparisons"]] == ["same"]
    assert written["runs"].keys() == tables.keys()
    assert "published was judged on other test images than method" in capsys.readouterr().err


def test_runs_without_a_test_set_stand_uncompared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "read_predictions", lambda folder: predictions(0).slice(10))
    empty = ComparedRun(folder="", seed=0, sets={})
    monkeypatch.setattr(judge, "_compared_run", lambda folder: empty)
    (tmp_path / "method").mkdir()
    judge.write_comparison({name: tmp_path / name for name in ("method", "random")})
    written = json.loads((tmp_path / "method" / "comparison.json").read_text())
    assert written["comparisons"] == []
    assert written["runs"].keys() == {"method", "random"}
