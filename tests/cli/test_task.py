"""What a task script does with its runs, below training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from assay.cli import task
from assay.experiment.resources import Resources
from assay.runs.folder import Run
from assay.train.source import TaskSource


def _shipped(storage: Path) -> Run:
    bundle = storage / "toy-1" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text("{}")
    return Run(bundle.parent)


@pytest.mark.parametrize("is_ended_elsewhere", [True, False])
def test_a_run_that_another_machine_ended_while_images_were_decoded_here_is_not_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ended_elsewhere: bool
) -> None:
    run, completed = _shipped(tmp_path), []
    run.note(state="running")

    @contextmanager
    def lease(run: Run) -> Iterator[None]:  # which first brings here what another machine wrote
        if is_ended_elsewhere:
            run.note(state="finished")
        yield

    def complete(prepared: object, run: Run, resources: Resources) -> None:
        completed.append(run)
        run.note(state="finished")

    kind = SimpleNamespace(manifest=lambda *_: None, baselines=lambda config: {})
    instead = {"storage_of": tmp_path, "load_task": kind, "absolute": None, "find": run}
    instead |= {"read_data": None, "prepare": None, "is_decided": True, "print_run": None}
    for name, value in instead.items():
        monkeypatch.setattr(task, name, lambda *_, value=value: value)
    monkeypatch.setattr(task, "cluster", lambda resources: nullcontext())
    monkeypatch.setattr(task, "_write_reports", lambda *_: None)
    monkeypatch.setattr(task, "complete", complete)
    monkeypatch.setattr(Run, "lease", lease)
    task.experiment(TaskSource("toy", b""), SimpleNamespace(), Resources())
    assert completed == ([] if is_ended_elsewhere else [run])


@pytest.mark.parametrize("is_judged_now", [True, False])
def test_a_page_is_made_again_after_judging_also_where_its_clock_was_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_judged_now: bool
) -> None:
    run, made, folder = _shipped(tmp_path), [], tmp_path / "toy-1"
    run.note(state="finished")
    for name in ("result.json", "report.html"):
        (folder / name).write_text("{}")
    ahead = (folder / "result.json").stat().st_mtime + 3600  # of another machine
    os.utime(folder / "report.html", (ahead, ahead))
    kind = SimpleNamespace(manifest=lambda *_: None, baselines=lambda config: {})
    instead = {"storage_of": tmp_path, "load_task": kind, "find": run, "judge": None}
    instead |= {"is_decided": not is_judged_now, "print_run": None, "_is_compared": True}
    instead |= {"to_dict": {"data": {}}, "write_comparison": None}
    for name, value in instead.items():
        monkeypatch.setattr(task, name, lambda *_, value=value: value)
    config = SimpleNamespace()
    monkeypatch.setattr(task, "absolute", lambda config: config)
    monkeypatch.setattr(task, "write_report", made.append)
    task.experiment(TaskSource("toy", b""), config, Resources())
    assert made == ([folder] if is_judged_now else [])
