"""Two workers on two nodes that share no disk; this file is also the program of each worker.

`python test_share.py RANK HOME ADDRESS MEETING STOP CUT` is one worker; with CUT it pushes nothing.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from assay.errors import DiskError, RunError
from assay.runs.folder import Run
from assay.runs.mirror import Mirror
from assay.runs.remote import folder_of
from assay.storage import reach
from assay.train import best
from assay.train.best import load_best
from assay.train.predict import Predictor
from assay.train.share import fetch
from assay.train.source import TaskSource, load_task
from assay.train.worker import work

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
CONFIG = replace(toy.ToyConfig(), train=replace(toy.ToyConfig().train, epochs=2))


def train(folder: Path, stop: int) -> None:
    """Train to the end, or to a planted one after an update with a checkpoint."""
    fetch(folder)
    job = toy.make_job(folder, CONFIG, "fsdp", checkpoint_steps=2)
    stream = toy.stopping(job.stream(), stop) if stop else job.stream()
    try:
        work(job, stream)
    except toy.StoppedError:
        assert stop


def start(
    homes: list[Path], address: str, meeting: Path, stop: int = 0, is_cut: bool = False
) -> None:
    """Run a worker on each node to its end, or to a planted one; cut off, they push nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    words = [address, str(meeting), str(stop), str(int(is_cut))]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(home), *words],
            env=environment | {"HOME": str(home)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, home in enumerate(homes)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors


def test_nodes_that_share_no_disk_go_on_from_one_checkpoint(
    s3: Callable[[str], str], tmp_path: Path
) -> None:
    nodes = [tmp_path / name for name in ("one", "two", "three")]
    start(nodes[:2], s3("whole"), tmp_path / "a")
    start(nodes[:2], s3("cut"), tmp_path / "b", stop=5)
    files, root = reach(s3("cut"))
    with files.open_input_file(f"{root}/toy-1/index.json") as file:
        listed = file.read().decode()
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata", "checksums.json"):
        assert f"step-00000005/{name}" in listed
    assert "step-00000002" not in listed  # neither node's parts
    with files.open_input_file(f"{root}/toy-1/index.json") as file:
        before = file.read()
    # the second node is lost, and another takes its place; then the storage is out of reach until the end
    start([nodes[0], nodes[2]], s3("cut"), tmp_path / "c", is_cut=True)
    with files.open_input_file(f"{root}/toy-1/index.json") as file:
        assert file.read() == before
    folders = []
    for address in (s3("whole"), s3("cut")):
        os.environ["HOME"] = str(nodes[0])  # which the fixture sets back
        folders.append(folder_of(address) / "toy-1")
    weights = [load_file(folder / "best/weights.safetensors") for folder in folders]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-6)
    job = toy.make_job(tmp_path / "alone", CONFIG)
    task = TASK(CONFIG, job.dataset)
    load_best(task, folders[0])
    rows = np.concatenate([job.split.rows(name) for name in ("val", "test")])
    expected = torch.from_numpy(Predictor(task, job.stream(), rows).predict()["logits"])
    for folder in folders:
        logits = pq.read_table(folder / "predictions.parquet")["logits"].to_pylist()
        torch.testing.assert_close(torch.tensor(logits), expected)
    assert Run(folders[1]).record.measured is not None


def test_what_the_first_worker_cannot_load_is_said_to_all(monkeypatch, tmp_path: Path) -> None:
    """Another worker would wait for its weights without end."""
    told: list[object] = []
    monkeypatch.setattr(best, "world", lambda: (0, 2))
    monkeypatch.setattr(best, "load_best", Mock(side_effect=DiskError("it cannot be read")))
    monkeypatch.setattr(dist, "broadcast_object_list", told.extend)
    with pytest.raises(DiskError, match="cannot be read"):
        best.share_best(Mock(), tmp_path)
    assert [type(fault) for fault in told] == [DiskError]


if __name__ == "__main__":
    rank, home, address, meeting, stop, is_cut = sys.argv[1:]
    if int(is_cut):
        Mirror.push = Mirror.upload = Mock(side_effect=RunError("it is out of reach"))
    dist.init_process_group("gloo", f"file://{meeting}", rank=int(rank), world_size=2)
    run = folder_of(address) / "toy-1"
    run.mkdir(parents=True, exist_ok=True)
    train(run, int(stop))
    dist.destroy_process_group()
