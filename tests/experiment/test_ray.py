"""Above the Ray floors: the store's job, the stream, workers that share batches, workers that die.

One local cluster for the whole file; starting Ray and importing torch in its workers is most of
the time.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from assay.config import to_dict
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.data.near.pairs import near_pairs
from assay.data.order import steps_of, uniform_order
from assay.data.split import Split, draw_split
from assay.errors import DiskError, ImageError, StoreError
from assay.experiment import copies
from assay.experiment.fill import fill
from assay.experiment.reservation import drop_reservation, note_reservation
from assay.experiment.resources import Resources
from assay.experiment.spread import over_cluster
from assay.experiment.stream import ray_stream
from assay.experiment.workers import train
from assay.train.batches import batches
from assay.train.source import TaskSource, load_task
from assay.train.task import Task
from assay.train.task_config import TaskConfig
from assay.train.worker import Job, work

TASKS = Path(__file__).parents[2] / "tasks"
KILLER = b'''

from assay.train.task import Batch as _Batch


class Killed(Fingerprint):
    """Dies by SIGKILL in its third forward pass, once."""

    def forward(self, batch: _Batch, progress: float, phase: str = "main"):
        import os, signal
        from pathlib import Path

        mark = Path(os.environ["ASSAY_TEST_MARK"])
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch, progress, phase)


Fingerprint.__module__ = "base"
'''


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mark") / "killed"


@pytest.fixture(scope="module")
def cluster(mark: Path) -> Iterator[None]:
    os.environ["ASSAY_TEST_MARK"] = str(mark)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def source() -> TaskSource:
    return TaskSource.read(TASKS / "fingerprint.py")


@pytest.fixture(scope="module")
def task(source: TaskSource) -> type[Task]:
    return load_task(source)


@pytest.fixture(scope="module")
def config(task: type[Task]) -> TaskConfig:
    smoke = task.presets()["smoke"]
    values = to_dict(smoke)
    values["train"] |= {"epochs": 2, "batch_size": 15}
    values["model"] |= {"num_noise": 10}
    from assay.config import from_dict

    parts = replace(smoke.parts, parts_per_seen=3, parts_per_unseen=1, num_views=1, size_px=256)
    values["patches"] |= {"image_px": 256, "overview_px": 64, "patch_px": 24}
    return replace(from_dict(task.Config, values), parts=parts)


@pytest.fixture(scope="module")
def manifest(
    task: type[Task], config: TaskConfig, tmp_path_factory: pytest.TempPathFactory
) -> Manifest:
    return task.manifest(config, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pixels(cluster: None, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    store = Store(str(tmp_path_factory.mktemp("store")))
    assert fill(manifest, store, "stop", parallel=True) == []
    return Pixels(store, manifest.column("content"))


@pytest.fixture(scope="module")
def split(manifest: Manifest, config: TaskConfig) -> Split:
    return draw_split(manifest, config.split)


def test_the_job_stores_every_image_and_only_what_is_missing(
    pixels: Pixels, manifest: Manifest
) -> None:
    paths = [pixels.store.path(c) for c in pixels.contents]
    assert all(p.exists() for p in paths)
    before = [p.stat().st_mtime_ns for p in paths[1:]]
    paths[0].unlink()
    fill(manifest, pixels.store, "stop", parallel=True)
    assert paths[0].exists()
    assert [p.stat().st_mtime_ns for p in paths[1:]] == before


def test_the_job_names_an_unreadable_image(
    cluster: None, manifest: Manifest, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(manifest.column("image")[0]).read_bytes()[:900])
    columns = {n: manifest.table[n].to_pylist() for n in manifest.table.column_names}
    columns["image"][1], columns["content"][1] = str(broken), "f" * 32
    import pyarrow as pa

    damaged = Manifest(pa.table(columns)).take(range(4))
    with pytest.raises(ImageError, match=r"broken\.png.*1 of 4"):
        fill(damaged, Store(str(tmp_path / "store")), "stop", parallel=True)
    found = fill(damaged, Store(str(tmp_path / "store")), "skip", parallel=True)
    assert [q.row for q in found] == [1]


def test_what_the_store_refuses_in_a_task_is_raised_as_the_sentence_that_it_is(
    source: TaskSource,
    config: TaskConfig,
    manifest: Manifest,
    split: Split,
    cluster: None,
    tmp_path: Path,
) -> None:
    few, store = manifest.take(split.rows("train")[:4]), Store(str(tmp_path / "store"))
    content = few.column("content")
    store.here.mkdir()
    (store.here / content[0][:2]).touch()  # a file in the place of a folder
    with pytest.raises(StoreError, match="store"):
        fill(few, store, "stop", parallel=True)
    (store.here / content[0][:2]).unlink()
    fill(few, store, "stop", parallel=True)
    dataset = Dataset.of(few, Pixels(store, content), np.arange(4))
    store.path(content[2]).write_bytes(b"no entry")
    (step,) = steps_of([np.arange(4)], 0)
    with pytest.raises(StoreError, match=content[2]):
        list(ray_stream(source, config, dataset)([step], train=True))


def _shifted(shift: int, piece: int) -> int:
    if piece == 13:
        raise ImageError("the thirteenth cannot be read")
    return piece + shift


@pytest.mark.usefixtures("cluster")
def test_pieces_of_work_come_back_in_order_and_faults_as_they_are() -> None:
    assert list(over_cluster(_shifted, 100, range(12), "shift")) == [100 + i for i in range(12)]
    with pytest.raises(ImageError, match="thirteenth"):
        list(over_cluster(_shifted, 100, range(20), "shift"))


def test_copies_are_the_same_whoever_looks_for_them(pixels: Pixels) -> None:
    rows = [0, 1, 2, 0, 1]  # of other images that two of them are copies of
    signatures, sketches = pixels.survey().signatures[rows], copies._sketch(pixels, rows)
    args = list("abcde"), signatures, sketches
    pairs = near_pairs(*args, over_cluster)
    assert {("a", "d"), ("b", "e")} <= {(pair.first, pair.second) for pair in pairs}
    assert pairs == near_pairs(*args)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_competing_consumers_are_served_what_the_reference_serves(
    source: TaskSource,
    task: type[Task],
    config: TaskConfig,
    manifest: Manifest,
    pixels: Pixels,
    split: Split,
    world_size: int,
) -> None:
    rows = split.rows("train")
    steps = [s for epoch in range(2) for s in steps_of(uniform_order(rows, 7, 3, epoch), epoch)]
    dataset = Dataset.of(manifest, pixels, rows)
    stream = ray_stream(source, config, dataset)

    def served(rank: int) -> list[tuple[int, int]]:
        own = [share for s in steps if len((share := s.share(rank, world_size)).rows)]
        expected = batches(task, config, dataset, own, train=True)
        for mine, theirs in zip(stream(own, train=True), expected, strict=True):
            assert mine.keys() == theirs.keys()
            for name in mine:
                np.testing.assert_array_equal(mine[name], theirs[name])
        return [(step.epoch, int(e)) for step in own for e in step.entries]

    with ThreadPoolExecutor(world_size) as pool:  # all at once
        everything = [pair for each in pool.map(served, range(world_size)) for pair in each]
    assert sorted(everything) == [(epoch, e) for epoch in range(2) for e in range(len(rows))]


def _job(
    source: TaskSource,
    config: TaskConfig,
    manifest: Manifest,
    split: Split,
    pixels: Pixels,
    folder: Path,
) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return Job(
        source,
        to_dict(config),
        manifest,
        split,
        pixels,
        folder,
        "cpu",
        "ddp",
        (),
        tuple(split.tests),
        checkpoint_steps=1,
    )


def test_two_workers_one_of_which_is_killed_end_where_one_worker_does(
    source: TaskSource,
    config: TaskConfig,
    manifest: Manifest,
    pixels: Pixels,
    split: Split,
    mark: Path,
    tmp_path: Path,
) -> None:
    killed = TaskSource("killed", source.code + KILLER)
    two = _job(killed, config, manifest, split, pixels, tmp_path / "two")
    train(two, Resources(workers=2, retries=1))
    assert mark.exists()
    one = _job(source, config, manifest, split, pixels, tmp_path / "one")
    work(one, one.stream())
    theirs, ours = (pq.read_table(j.folder / "predictions.parquet") for j in (two, one))
    assert theirs["id"].equals(ours["id"])
    logits = [np.array(t["logits"].to_pylist()) for t in (theirs, ours)]
    # another order of summation over workers: close, not equal
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-2)


def test_a_fault_of_a_disk_in_a_worker_is_said_at_once(
    source: TaskSource,
    config: TaskConfig,
    manifest: Manifest,
    pixels: Pixels,
    split: Split,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = _job(source, config, manifest, split, pixels, tmp_path / "run")
    (job.folder / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(
        DiskError, match=r"metrics\.jsonl cannot be read or written \(Is a directory"
    ):
        train(job, Resources(workers=1, retries=3))
    assert "retries left" not in capsys.readouterr().err


def test_two_workers_judge_a_checkpoint_exactly_as_one(
    source: TaskSource,
    config: TaskConfig,
    manifest: Manifest,
    pixels: Pixels,
    split: Split,
    tmp_path: Path,
) -> None:
    job = _job(source, config, manifest, split, pixels, tmp_path / "run")
    work(job, job.stream())
    first = pq.read_table(job.folder / "predictions.parquet")
    (job.folder / "predictions.parquet").unlink()
    train(job, Resources(workers=2))  # finished: only predicts
    assert pq.read_table(job.folder / "predictions.parquet").equals(first)


def test_what_learns_nothing_predicts_without_workers(
    source: TaskSource,
    config: TaskConfig,
    manifest: Manifest,
    pixels: Pixels,
    split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.train.torch.TorchTrainer", None)
    still = replace(config, train=replace(config.train, epochs=0))
    job = _job(source, still, manifest, split, pixels, tmp_path / "still")
    train(job, Resources(workers=1))
    predicted = pq.read_table(job.folder / "predictions.parquet")
    judged = {name: len(split.rows(name)) for name in ("val", *split.tests)}
    assert {name: predicted["split"].to_pylist().count(name) for name in judged} == judged


def test_what_a_launch_that_was_killed_has_reserved_is_given_back(
    cluster: None, tmp_path: Path
) -> None:
    groups = [placement_group([{"CPU": 0.5}]) for _ in range(2)]
    ray.get([group.ready() for group in groups])
    for group, name in zip(groups, "ab", strict=True):
        inside = PlacementGroupSchedulingStrategy(group)
        note = ray.remote(num_cpus=0.5)(note_reservation).options(scheduling_strategy=inside)
        ray.get(note.remote(tmp_path / name))
    for _ in range(2):  # what was given back is not asked for again
        drop_reservation(tmp_path / "a")
    states = [placement_group_table(group)["state"] for group in groups]
    assert states == ["REMOVED", "CREATED"]
    drop_reservation(tmp_path / "b")
