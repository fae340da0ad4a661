"""What a task script does with its runs, below training."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from assay.cli import task
from assay.experiment.resources import Resources
from assay.runs.folder import Run
from assay.train.source import TaskSource


@pytest.mark.parametrize("is_ended_elsewhere", [True, False])
def test_a_run_that_another_machine_ended_while_images_were_decoded_here_is_not_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ended_elsewhere: bool
) -> None:
    run, completed = Run(tmp_path / "toy-1"), []
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
    monkeypatch.setattr(task, "_write_reports", lambda folders: None)
    monkeypatch.setattr(task, "complete", complete)
    monkeypatch.setattr(Run, "lease", lease)
    task.experiment(TaskSource("toy", b""), SimpleNamespace(), Resources())
    assert completed == ([] if is_ended_elsewhere else [run])
