"""What `assay submit` sends, when it tries again, and how it ends."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from assay.cli import submit
from assay.errors import ConfigError, ResourceError


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (
        "tasks/mine.py",
        "sweeps/space.yaml",
        "parts/a.png",
        "runs/mine-1/run.json",
        ".venv/x.py",
        "env/pyvenv.cfg",
        "env/x.py",
        "tasks/__pycache__/mine.txt",
        "platform/assay/stale.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    (tmp_path / "link").symlink_to("/")
    return tmp_path


def test_code_and_settings_are_sent_with_the_package_that_runs_and_nothing_else(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stage")
    size = submit.stage(checkout, Path("tasks/mine.py"), folder)
    sent = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    package = {name for name in sent if name.startswith("platform/assay/")}
    assert sent - package == {"tasks/mine.py", "sweeps/space.yaml"}
    assert "platform/assay/cli/submit.py" in package
    assert any(name.startswith("platform/assay/pages/") for name in package)
    assert "platform/assay/stale.py" not in package
    assert not any("__pycache__" in name for name in sent)
    assert size == sum((folder / name).stat().st_size for name in sent) > 1_000_000


def test_too_much_is_refused_before_it_is_sent_and_says_where_it_lies(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(submit, "MOST_BYTES", 2_000_000)
    (checkout / "parts" / "labels.json").write_bytes(bytes(2_000_001))
    with pytest.raises(ConfigError, match=r"More than 2 MB.*2 MB of them in parts"):
        submit.stage(checkout, Path("tasks/mine.py"), tmp_path_factory.mktemp("stage"))


@pytest.mark.parametrize("task", ["tasks/other.py", "../mine.py", "tasks"])
def test_a_task_elsewhere_is_refused(checkout: Path, task: str, tmp_path_factory) -> None:
    with pytest.raises(ConfigError, match="is no file below"):
        submit.stage(checkout, Path(task), tmp_path_factory.mktemp("stage"))


@pytest.mark.parametrize("task", ["tasks/linked.py", "build/mine.py", ".own/mine.py", "mine"])
def test_a_task_that_would_stay_is_refused_before_anything_is_sent(
    checkout: Path, task: str, tmp_path_factory
) -> None:
    path = checkout / task
    path.parent.mkdir(exist_ok=True)
    if path.stem == "linked":
        path.symlink_to(checkout / "tasks/mine.py")
    else:
        path.write_text("1")
    with pytest.raises(ConfigError, match=f"{task} would not be sent"):
        submit.stage(checkout, Path(task), tmp_path_factory.mktemp("stage"))


class FakeClient:
    """A job server that refuses, breaks and answers as it is told."""

    def __init__(self, refusals: list[str] = [], tails: list[list[str]] = []) -> None:  # noqa: B006
        self.refusals, self.tails = [*refusals], [*tails]

    def submit_job(self, **options: Any) -> str:
        if self.refusals:
            raise RuntimeError(self.refusals.pop(0))
        return "raysubmit_1"

    async def tail_job_logs(self, job: str) -> Any:
        for text in self.tails.pop(0):
            if text == "break":
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text

    def get_job_status(self, job: str) -> JobStatus:
        return JobStatus.RUNNING if self.tails else JobStatus.FAILED


def test_a_cluster_that_has_just_begun_is_asked_again(monkeypatch, capsys) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.0)
    late = "Request failed with status code 500: No available agent to submit job"
    assert submit._send(FakeClient([late, late]), "python a.py", "/x") == "raysubmit_1"
    assert capsys.readouterr().err.count("trying again") == 2
    with pytest.raises(ResourceError, match=r"takes no job.*Request Entity Too Large"):
        submit._send(FakeClient(["Request Entity Too Large"]), "python a.py", "/x")
    monkeypatch.setattr(submit, "AGENT_S", -1.0)
    with pytest.raises(ResourceError, match="No available agent"):
        submit._send(FakeClient([late]), "python a.py", "/x")


def test_output_is_printed_once_though_the_connection_breaks(monkeypatch, capsys) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.0)
    tails = [["one\n", "tw", "break"], ["one\ntwo\n"], ["one\n", "two\nthree\n"]]
    status = asyncio.run(submit._follow(FakeClient(tails=tails), "raysubmit_1"))
    assert status == JobStatus.FAILED
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
    monkeypatch.setattr(submit, "LOST_S", -1.0)
    with pytest.raises(ResourceError, match="has not answered"):
        asyncio.run(submit._follow(FakeClient(tails=[["break"], []]), "raysubmit_1"))


def test_no_cluster_is_a_sentence() -> None:
    with pytest.raises(ResourceError, match=r"No job server answers at http://127\.0\.0\.1:1 "):
        submit._reach("http://127.0.0.1:1")
