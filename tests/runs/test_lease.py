"""Who may write a run's folder: one living process, whatever clocks say and however many ask at once."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assay.errors import RunError
from assay.runs.folder import Run
from assay.runs.lease import LEASE, give_back, is_held, us

HOLD = "import sys; from pathlib import Path; from assay.runs.lease import take; print(take(Path(sys.argv[1])), flush=True); input()"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has taken the lease of a folder, and waits."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / LEASE)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as process:
        assert process.stdout.readline() == "\n"
        yield process
        process.kill()


@pytest.mark.parametrize("hours", [-8, 8])
def test_a_process_that_sleeps_or_whose_clock_was_set_is_no_dead_one(tmp_path, holder, hours):
    lease = tmp_path / LEASE
    holder.send_signal(signal.SIGSTOP)
    now = lease.stat().st_mtime
    os.utime(lease, (now + 3600 * hours,) * 2)
    with (
        pytest.raises(RunError, match=f"written by process {holder.pid} on"),
        Run(tmp_path).lease(),
    ):
        pass
    holder.kill()
    holder.wait()
    assert not is_held(lease)
    with Run(tmp_path).lease():
        assert json.loads(lease.read_text()) == vars(us())


def test_a_killed_process_that_nobody_has_waited_for_yet_holds_nothing(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # and so it stays, as a zombie
    assert not is_held(tmp_path / LEASE)


def test_another_process_that_was_given_the_pid_holds_nothing(tmp_path, holder):
    lease = tmp_path / LEASE
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"began": "1"}))
    assert not is_held(lease)


def test_a_container_that_shares_the_name_of_the_host_holds_its_own(tmp_path):
    alone = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets no user count processes apart")
    lease = tmp_path / LEASE
    words = [*alone, "--kill-child", sys.executable, "-c", HOLD, str(lease)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as other:
        assert other.stdout.readline() == "\n"
        told = json.loads(lease.read_text())
        assert (told["host"], told["pid"]) == (socket.gethostname(), 1)
        assert is_held(lease)
        with pytest.raises(RunError, match="written by process 1 on"), Run(tmp_path).lease():
            pass
        other.kill()


def hold(folder: Path, together: Any, ends: Any) -> None:
    together.wait()
    try:
        with Run(folder).lease():
            ends.put("held")
            together.wait()
    except RunError:
        ends.put("refused")
        together.wait()


def test_of_three_that_go_on_with_a_killed_run_at_once_one_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        (folder / "samples").mkdir(parents=True)
        for number in range(200):  # among which is looked for what the killed one left
            (folder / "samples" / f"{number}.jpg").touch()
        (folder / LEASE).write_text(json.dumps({"host": socket.gethostname(), "pid": 1 << 22}))
        together, ends = context.Barrier(3), context.Queue()
        all_three = [context.Process(target=hold, args=(folder, together, ends)) for _ in range(3)]
        for process in all_three:
            process.start()
        assert sorted(ends.get() for _ in all_three) == ["held", "refused", "refused"]
        for process in all_three:
            process.join()
        assert not (folder / LEASE).exists()
        shutil.rmtree(folder)


def test_a_lease_that_another_has_taken_meanwhile_is_left_to_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.lease():
        (tmp_path / LEASE).write_text(json.dumps({"host": "another", "pid": 1}))
    assert is_held(tmp_path / LEASE)
    give_back(tmp_path / LEASE)
    assert is_held(tmp_path / LEASE)


def test_what_a_process_left_that_ended_while_it_took_a_lease_is_cleared_away(
    tmp_path: Path,
) -> None:
    aside = tmp_path / f".{LEASE}-0123"
    aside.write_text(json.dumps({"host": socket.gethostname(), "pid": 1 << 22}))
    with Run(tmp_path).lease():
        assert [path.name for path in tmp_path.iterdir()] == [LEASE]


def test_whose_lease_is_cleared_away_before_it_stands_is_refused(tmp_path, monkeypatch) -> None:
    def link(source: Path, target: Path) -> None:
        target.write_text(json.dumps({"host": "another", "pid": 7}))
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(source))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(RunError, match="written by process 7 on another"), Run(tmp_path).lease():
        pass
    assert is_held(tmp_path / LEASE)


def test_a_file_system_without_links_has_leases_all_the_same(tmp_path, monkeypatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(
            errno.EPERM, "Operation not permitted", str(source), None, str(target)
        )

    monkeypatch.setattr(os, "link", refuse)
    with Run(tmp_path).lease():
        assert json.loads((tmp_path / LEASE).read_text()) == vars(us())
    assert not list(tmp_path.iterdir())
