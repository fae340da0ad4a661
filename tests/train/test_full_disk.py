"""A disk that is full, wherever in a run that happens, is a sentence; once there is room the run ends as if it had been.

This file is also the program that does it, in a mount namespace of its own: `unshare -rm python test_full_disk.py FOLDER`
trains the toy on disks of a few kilobytes, each one a little larger, until it fits.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from assay.errors import one_sentence
from assay.runs.folder import Run
from assay.train import checkpoint
from assay.train.source import TaskSource, load_task
from assay.train.worker import work

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
CONFIG = replace(toy.ToyConfig(), train=replace(toy.ToyConfig().train, epochs=2))
SIZES_KB = (24, 200, 240, 4000)


def train(folder: Path) -> int:
    """Train the toy in a fork of this process as a command would, and return how that ended."""
    child = os.fork()
    if child == 0:
        with one_sentence():
            job = toy.make_job(folder, CONFIG, checkpoint_steps=2)
            with Run(folder).lease():
                work(job, job.stream())
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)


def main(root: Path) -> None:
    assert train(root / "whole") == 0
    weights = (root / "whole" / "best/weights.safetensors").read_bytes()
    logits = pq.read_table(root / "whole" / "predictions.parquet")
    disk = root / "disk"
    disk.mkdir()
    for size in SIZES_KB:
        mount(disk, f"size={size}k")
        end = train(disk / "run")
        kept = checkpoint.latest(disk / "run" / "checkpoints")
        print(size, end, kept.name if kept else "none", flush=True)
        if end:
            mount(disk, "remount,size=8m")
            assert train(disk / "run") == 0, size
        assert (disk / "run" / "best/weights.safetensors").read_bytes() == weights, size
        assert pq.read_table(disk / "run" / "predictions.parquet").equals(logits), size
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        if not end:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))


def test_a_full_disk_is_a_sentence_and_with_room_the_run_ends_the_same(tmp_path: Path) -> None:
    alone = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a disk of its own")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [*alone, sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    ends = [line.split() for line in done.stdout.splitlines()]
    assert {end for _, end, _ in ends[:-1]} == {"2"}  # a sentence each time, until it fits
    assert len({kept for _, _, kept in ends}) >= 3  # full before, between and after checkpoints
    told = [line for line in done.stderr.splitlines() if "Error" in line]
    assert len(told) == len(ends) - 1
    assert all("DiskError" in line and "No space left" in line for line in told)
