"""SIGTERM leads to a checkpoint between two updates; what follows goes on from there."""

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from assay.train import checkpoint, loop
from assay.train.notice import TERMINATED, Notice, listening
from assay.train.source import TaskSource, load_task
from assay.train.worker import work

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
CONFIG = replace(toy.ToyConfig(), train=replace(toy.ToyConfig().train, epochs=2))
"""Of 5 updates an epoch."""


@pytest.fixture(autouse=True)
def _every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOOK_S", 0.0)


def signalled(job, after: int):
    """A stream during which this process gets SIGTERM."""

    def send(index: int, batch: dict) -> dict:
        if index == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    return toy.changed(job.stream(), send)


def test_sigterm_saves_ends_and_the_run_goes_on_as_if_uninterrupted(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    job = toy.make_job(tmp_path / "cut", CONFIG)
    with pytest.raises(SystemExit) as left, listening() as notice:
        work(job, signalled(job, after=2), notice=notice)
    assert left.value.code == TERMINATED == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.latest(tmp_path / "cut/checkpoints").name == "step-00000003"
    work(job, job.stream())
    whole = toy.make_job(tmp_path / "whole", CONFIG)
    work(whole, whole.stream())
    weights = [load_file(tmp_path / name / "best/weights.safetensors") for name in ("cut", "whole")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=0)


def test_a_notice_that_does_not_end_saves_once_and_goes_on(tmp_path):
    saved = []
    job = toy.make_job(tmp_path, CONFIG)
    given = iter([False, False] + [True] * 100)

    def note(folder, step, *others):
        saved.append(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", note)
        work(job, job.stream(), notice=Notice(lambda: next(given)))
    assert saved == [3, 5, 10]


def test_a_signal_after_the_last_update_ends_the_block():
    block = listening()
    notice = block.__enter__()
    os.kill(os.getpid(), signal.SIGTERM)
    assert notice.is_given()
    with pytest.raises(SystemExit) as left:
        block.__exit__(None, None, None)
    assert left.value.code == TERMINATED


def test_another_thread_listens_to_nothing():
    notices = []

    def listen() -> None:
        with listening() as notice:
            notices.append(notice)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert not notices[0].is_given()
    assert not notices[0].ends
