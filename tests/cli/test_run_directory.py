"""A run's directory: what a task script leaves in it, and makes of it when it is started again."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.cli import console
from assay.cli.task import main
from assay.errors import RunError
from assay.experiment.identity import identity
from assay.experiment.options import parse
from assay.runs.folder import Run
from assay.runs.record import SCHEMA
from assay.runs.results import read_scorings
from assay.train.source import TaskSource, load_task

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, quick: list[str], draw_folder: Callable[..., Path]
) -> tuple[Path, Path]:
    """A finished run on a small folder, shared by the tests that only look."""
    folder = tmp_path_factory.mktemp("finished")
    root = draw_folder(folder / "parts")
    main(
        str(SCRIPT),
        [
            *quick,
            "--storage",
            str(folder / "runs"),
            "--split.unseen-domain",
            "",
            "--data.root",
            str(root),
        ],
    )
    return root, folder / "runs"


def test_a_run_leaves_its_directory(finished: tuple[Path, Path]) -> None:
    _, storage = finished
    runs = sorted(storage.glob("fingerprint-*"))
    assert len(runs) == 2  # the method and its baseline
    for folder in runs:
        names = {p.name for p in folder.iterdir()}
        records = {"run.json", "config.json", "result.json", "metrics.jsonl", "report.html"}
        tables = {"split.parquet", "predictions.parquet"}
        assert records | tables | {"checkpoints", "best", "bundle", "task.py", "samples"} <= names
        assert "lease.json" not in names
        assert Run(folder).state == "finished"


def test_a_finished_run_is_recognised_and_not_trained_again(
    finished: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    run_script: Callable[..., tuple[str, str]],
) -> None:
    root, storage = finished
    before = {p: p.stat().st_mtime_ns for p in storage.glob("fingerprint-*/metrics.jsonl")}
    printed, _ = run_script(capsys, storage, "--data.root", str(root))
    assert "test: " in printed
    assert "fingerprint - random" in printed
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_other_settings_of_decide_judge_a_finished_run_again_and_train_nothing(
    finished: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    run_script: Callable[..., tuple[str, str]],
) -> None:
    root, found = finished
    storage = shutil.copytree(found, tmp_path / "runs")
    before = {p: p.stat().st_mtime_ns for p in storage.glob("fingerprint-*/metrics.jsonl")}
    method = next(p.parent for p in storage.glob("fingerprint-*/comparison.json"))
    arguments = ("--data.root", str(root), "--decide.coverage", "0.6")
    run_script(capsys, storage, *arguments)
    result = json.loads((method / "result.json").read_text())
    assert [s["decide"]["coverage"] for s in result["scorings"] if not s["graph"]] == [0.9, 0.6]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    card = json.loads((method / "bundle" / "bundle.json").read_text())
    assert card["decision"]["coverage"] == 0.6
    assert "60" in (method / "report.html").read_text()
    _, errors = run_script(capsys, storage, *arguments)  # now it is known
    assert json.loads((method / "result.json").read_text()) == result
    assert "scoring 2 of the test sets" in errors


def test_the_report_is_made_again_from_the_directory_alone(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    _, storage = finished
    method = next(p.parent for p in storage.glob("fingerprint-*/comparison.json"))
    alone = shutil.copytree(method, tmp_path / method.name)
    expected = (alone / "report.html").read_text()
    (alone / "report.html").unlink()
    console.main(["report", str(alone)])
    assert (alone / "report.html").read_text() == expected
    assert "random" in expected
    assert len(expected) < 5_000_000


def test_a_run_begun_on_another_split_is_not_resumed(
    finished: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    run_script: Callable[..., tuple[str, str]],
) -> None:
    """An image that could not be read at the first launch, and now can, would move others."""
    root, found = finished
    storage = shutil.copytree(found, tmp_path / "runs")
    method = next(p.parent for p in storage.glob("fingerprint-*/comparison.json"))
    table = pq.read_table(method / "split.parquet")
    pq.write_table(table.slice(1), method / "split.parquet")
    Run(method).note(state="stopped")
    _, errors = run_script(capsys, storage, "--data.root", str(root), code=2)
    assert "begun on another split (1 entries differ" in errors


def test_moved_data_and_more_workers_are_the_same_run(
    finished: tuple[Path, Path], tmp_path: Path, quick: list[str]
) -> None:
    root, _ = finished
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    source = TaskSource.read(SCRIPT)
    task = load_task(source)
    names = []
    for folder, workers in ((root, "0"), (moved, "2")):
        arguments = [
            *quick,
            "--split.unseen-domain",
            "",
            "--data.root",
            str(folder),
            "--workers",
            workers,
        ]
        config, _, _ = parse(task, arguments)
        names.append(identity(source, config, task.manifest(config, tmp_path)))
    assert names[0] == names[1]


def test_what_is_computed_changes_the_identity(
    finished: tuple[Path, Path], tmp_path: Path, quick: list[str]
) -> None:
    root, _ = finished
    source = TaskSource.read(SCRIPT)
    task = load_task(source)
    arguments = [*quick, "--split.unseen-domain", "", "--data.root", str(root)]
    config, _, _ = parse(task, arguments)
    manifest = task.manifest(config, tmp_path)
    first = identity(source, config, manifest)
    other, _, _ = parse(task, [*arguments, "--optim.lr", "0.5"])
    commented = TaskSource(source.name, source.code + b"\n# only a comment\n")
    changed = TaskSource(source.name, source.code + b"\nEXTRA = 1\n")
    assert identity(source, other, manifest) != first
    assert identity(commented, config, manifest) == first
    assert identity(changed, config, manifest) != first
    assert identity(source, config, manifest.take(range(len(manifest) - 1))) != first


def test_a_saved_config_replays_the_run(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, storage = finished
    for saved in sorted(storage.glob("fingerprint-*/config.json")):
        if json.loads(saved.read_text())["model"]["mode"] == "dps":
            main(str(SCRIPT), ["--config", str(saved), "--workers", "0", "--storage", str(storage)])
    printed = capsys.readouterr().out
    assert "fingerprint - random" in printed
    assert len(list(storage.glob("fingerprint-*"))) == 2


def test_again_makes_a_second_attempt(
    finished: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_script: Callable[..., tuple[str, str]],
) -> None:
    root, storage = finished
    copy = shutil.copytree(storage, tmp_path / "runs")
    # what has no effect on the baseline is at its default
    baseline = ["--model.mode", "random", "--model.num-noise", "4", "--model.warmup", "0.5"]
    run_script(capsys, copy, "--data.root", str(root), *baseline, "--again")
    assert len(list(copy.glob("fingerprint-*-2"))) == 1


def test_a_run_of_a_newer_schema_is_refused(
    finished: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_script: Callable[..., tuple[str, str]],
) -> None:
    root, storage = finished
    copy = shutil.copytree(storage, tmp_path / "runs")
    for record in copy.glob("fingerprint-*/run.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"schema": SCHEMA + 1}))
    _, err = run_script(capsys, copy, "--data.root", str(root), code=2)
    assert "newer Assay" in err


def test_a_damaged_file_of_a_finished_run_costs_nothing_and_is_made_again_or_named(
    finished: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_script: Callable[..., tuple[str, str]],
) -> None:
    root, storage = finished
    copy = shutil.copytree(storage, tmp_path / "runs")
    for comparison in copy.glob("fingerprint-*/comparison.json"):
        before = comparison.read_bytes()
        for content in (before[: len(before) // 2], b"{}"):
            comparison.write_bytes(content)
            run_script(capsys, copy, "--data.root", str(root))
            assert comparison.read_bytes() == before
    for record in copy.glob("fingerprint-*/run.json"):
        before = record.read_bytes()
        for content in (before[: len(before) // 2], b"{}"):
            record.write_bytes(content)
            _, err = run_script(capsys, copy, "--data.root", str(root), code=2)
            assert "run.json is" in err
            assert len(err.splitlines()) == 1
        record.write_bytes(before)


def test_a_bundle_that_was_deleted_is_made_again_and_refused_where_the_weights_are_gone_too(
    finished: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_script: Callable[..., tuple[str, str]],
) -> None:
    root, storage = finished
    copy = shutil.copytree(storage, tmp_path / "runs")
    [method, _] = sorted(
        copy.glob("fingerprint-*"), key=lambda p: not (p / "comparison.json").exists()
    )
    graph = next((method / "bundle").glob("*.onnx")).name
    before = {name: (method / name).read_bytes() for name in (f"bundle/{graph}", "metrics.jsonl")}
    judged = len(read_scorings(method).scorings)
    shutil.rmtree(method / "bundle")
    run_script(capsys, copy, "--data.root", str(root))
    assert {name: (method / name).read_bytes() for name in before} == before
    assert len(read_scorings(method).scorings) == judged
    assert Run(method).state == "finished"
    shutil.rmtree(method / "bundle")
    shutil.rmtree(method / "best")
    for _ in range(2):  # it stays a finished run
        _, err = run_script(capsys, copy, "--data.root", str(root), code=2)
        [sentence] = [line for line in err.splitlines() if method.name in line]
        assert "best/weights.safetensors" in sentence
        assert "--again" in sentence


def test_a_run_in_use_is_refused_and_a_dead_holder_is_not(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    import socket

    lease = run.folder / "lease.json"
    lease.write_text(json.dumps({"host": socket.gethostname(), "pid": holder.pid}))
    with pytest.raises(RunError, match="being written"), run.lease():
        pass
    holder.kill()
    holder.wait()
    with run.lease():
        assert lease.exists()
    assert not lease.exists()


def test_predictions_table_is_complete(finished: tuple[Path, Path]) -> None:
    _, storage = finished
    for folder in storage.glob("fingerprint-*"):
        table = pq.read_table(folder / "predictions.parquet")
        split = pq.read_table(folder / "split.parquet")
        judged = [r["id"] for r in split.to_pylist() if r["split"] in ("val", "test")]
        assert sorted(table["id"].to_pylist()) == sorted(judged)
        logits = np.array(table["logits"].to_pylist())
        attn = np.array(table["attn"].to_pylist())
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(attn.sum(1), 1, atol=1e-5)
        assert pa.types.is_string(table["domain.design"].type)
