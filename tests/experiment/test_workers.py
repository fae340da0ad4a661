"""Workers that are lost, and Ray Data without a CPU: launched again, or a sentence, and never a wait without end."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.util import construct_user_exception_with_traceback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from assay.errors import AssayError, DiskError, ResourceError, RunError
from assay.experiment import reservation, stream, workers
from assay.experiment.resources import Resources
from assay.experiment.stream import StarvedError
from assay.runs.folder import Run


@pytest.fixture(autouse=True)
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs whose earlier reservations are given back; a cluster's are not asked for."""
    folders: list[Path] = []
    monkeypatch.setattr(reservation, "drop_reservation", folders.append)
    return folders


def raised(error: Exception) -> WorkerGroupError:
    """What Ray Train tells of two workers, the second of which raised this."""
    try:
        raise error
    except Exception as caught:
        inner = construct_user_exception_with_traceback(caught)
    lost = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    return WorkerGroupError("rank 1 failed", {0: lost, 1: inner})


def died() -> WorkerGroupError:
    lost = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    return WorkerGroupError("rank 0 failed", {0: lost})


class Launches:
    """Trainers of Ray Train that end as they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: Exception | None) -> None:
        self.ends, self.num = list(ends), 0
        monkeypatch.setattr(workers, "_trainer", lambda *_: SimpleNamespace(fit=self.fit))

    def fit(self) -> None:
        self.num += 1
        end = self.ends.pop(0)
        if end:
            raise end


def train(folder: Path, retries: int = 2) -> None:
    job = SimpleNamespace(device="cpu", config={"train": {"epochs": 1}}, folder=folder)
    workers.train(job, Resources(workers=2, retries=retries))


def test_ctrl_c_ends_the_process_as_everywhere(monkeypatch, tmp_path) -> None:
    """Ray Train's own handler is one of its trainer's methods, and is not registered."""

    class Trainer(DataParallelTrainer):
        def __init__(self) -> None:
            pass

        def fit(self) -> None:
            self._register_sigint_handler(None)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(workers, "_trainer", lambda *_: Trainer())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_worker_says_in_a_sentence_is_raised_as_it_is_and_not_tried_again(
    monkeypatch, tmp_path
) -> None:
    launches = Launches(monkeypatch, raised(DiskError("the disk is full")))
    with pytest.raises(DiskError, match=r"^the disk is full$"):
        train(tmp_path)
    assert launches.num == 1


def test_lost_workers_are_launched_again_and_the_reason_is_told(
    monkeypatch, tmp_path, capsys, dropped
) -> None:
    starved = raised(StarvedError("Ray Data has no CPU any more"))
    starved.worker_failures.pop(0)
    launches = Launches(monkeypatch, died(), starved, None)
    train(tmp_path)
    assert launches.num == 3
    assert dropped == [tmp_path] * 3  # what is left of the launch before would lack
    first, second = capsys.readouterr().err.splitlines()
    assert "ActorDiedError" in first
    assert first.endswith("resuming, 1 retries left.")
    assert "Ray Data has no CPU any more" in second


@pytest.mark.parametrize(
    "end", [died, ActorDiedError, lambda: ControllerError(WorkerGroupStartupTimeoutError(2))]
)
def test_workers_that_are_lost_each_time_end_in_a_sentence(monkeypatch, tmp_path, end) -> None:
    launches = Launches(monkeypatch, end(), end(), end())
    with pytest.raises(ResourceError, match=r"lost 3 times.*same command again"):
        train(tmp_path)
    assert launches.num == 3


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path) -> None:
    bug = raised(KeyError("loss"))
    bug.worker_failures.pop(0)
    Launches(monkeypatch, bug, bug)
    with pytest.raises(WorkerGroupError) as caught:
        train(tmp_path, retries=1)
    assert not isinstance(caught.value, AssayError)


def test_batches_that_can_never_come_are_given_up_and_late_ones_are_not(monkeypatch) -> None:
    cpus, ended = {"CPU": 3.0}, threading.Event()

    def blocks() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": np.arange(2)}
        ended.wait(0.5)  # late, on a cluster that has a CPU for Ray Data
        yield {"x": np.arange(2, 4)}
        ended.wait()

    monkeypatch.setattr(stream, "STARVED_S", 0.05)
    monkeypatch.setattr(stream, "up", lambda: cpus)
    monkeypatch.setattr(stream, "most_left_of_a_node", lambda: 1.0)
    arriving = stream._arriving(blocks(), held=2.0)
    assert [next(arriving)["x"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    cpus["CPU"] = 2.0  # a node is gone
    with pytest.raises(StarvedError, match="cluster has 2, the workers hold 2"):
        next(arriving)
    ended.set()


def test_what_arrives_ends_where_the_blocks_do() -> None:
    assert [block["x"] for block in stream._arriving(iter([{"x": 1}, {"x": 2}]), 1.0)] == [1, 2]


def test_cpus_that_somebody_reserved_and_left_are_none_for_ray_data(monkeypatch) -> None:
    group = {"state": "CREATED", "bundles": {0: {"CPU": 0.5}, 1: {"CPU": 0.6}}}
    group["bundles_to_node_id"] = {0: "a", 1: "a"}
    nodes = [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}}]
    nodes += [{"NodeID": "b", "Alive": False, "Resources": {"CPU": 8.0}}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("ray.util.placement_group_table", lambda: {"1": group})
    monkeypatch.setattr(stream, "up", lambda: {"CPU": 2.0})
    monkeypatch.setattr(stream, "STARVED_S", 0.05)
    ended = threading.Event()
    with pytest.raises(StarvedError, match=r"leaves 0\.9 of a node"):
        next(stream._arriving((ended.wait() for _ in range(1)), held=0.0))
    ended.set()


def test_a_worker_on_a_node_without_the_runs_folder_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "toy-1")
    settings = {"job": SimpleNamespace(folder=run.folder)}
    with pytest.raises(RunError, match="give a --storage that all nodes share"):
        workers._worker(settings)
    run.note(state="running")
    with pytest.raises(RuntimeError):  # further on, where there is no session of Ray Train
        workers._worker(settings)
