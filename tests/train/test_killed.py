"""A process that is killed before any of its changes to its run's folder ends, when begun again, as if it had not been.

This file is also the program whose forks are killed: `python test_killed.py FOLDER EVERY` trains once undisturbed, then again
and again, killed just before its first change, its first but EVERY, and so on, and each to the end.
"""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from assay.runs.folder import Run
from assay.train.source import TaskSource, load_task
from assay.train.worker import work

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
CONFIG = replace(toy.ToyConfig(), train=replace(toy.ToyConfig().train, epochs=2))
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def train(folder: Path) -> None:
    """Train the toy to the end, with a checkpoint after every second update."""
    job = toy.make_job(folder, CONFIG, checkpoint_steps=2)
    with Run(folder).lease():
        work(job, job.stream())


def die_at(folder: Path, change: int) -> None:
    """Kill this process just before one of the changes that it makes to a folder from now on."""
    left = change

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if (writes or event in CHANGES) and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def forked(body: Callable[[], object]) -> int:
    """Run a body in a fork of this process; return the signal that ended it."""
    child = os.fork()
    if child == 0:
        body()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def killed(folder: Path, change: int) -> None:
    die_at(folder, change)
    train(folder)


def main(root: Path, every: int) -> None:
    assert forked(lambda: train(root / "whole")) == 0
    for change in itertools.count(1, every):
        folder = root / f"killed-{change}"
        end = forked(partial(killed, folder, change))
        if end == 0:  # it has fewer
            break
        assert end == signal.SIGKILL, change
        assert forked(partial(train, folder)) == 0, change
    folder.rename(root / "not-killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))


def names(folder: Path) -> set[str]:
    """Names of what is in a folder; of checkpoints one more may be kept than without the kill."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {path for path in paths if not path.startswith("checkpoints/")}


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, str(tmp_path), "3"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    whole = tmp_path / "whole"
    weights = (whole / "best/weights.safetensors").read_bytes()
    logits = pq.read_table(whole / "predictions.parquet")
    folders = [*tmp_path.glob("killed-*"), tmp_path / "not-killed"]
    assert len(folders) > 15
    for folder in folders:
        assert (folder / "best/weights.safetensors").read_bytes() == weights, folder.name
        assert pq.read_table(folder / "predictions.parquet").equals(logits), folder.name
        assert names(folder) == names(whole), folder.name
