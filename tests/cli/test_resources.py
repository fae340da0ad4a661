"""Where a run may store, and which CPUs its workers take."""

import itertools
from pathlib import Path

import pytest

from assay.errors import ConfigError, ResourceError
from assay.experiment.places import storage_of
from assay.experiment.resources import Resources, worker_resources


def test_relative_storage_is_refused_in_an_uploaded_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "runtime_resources" / "working_dir_files" / "x"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="outlives the job"):
        storage_of(Resources(storage="runs"))
    assert storage_of(Resources()) == tmp_path / "home" / "assay" / "runs"
    monkeypatch.chdir(tmp_path)
    assert storage_of(Resources()) == tmp_path / "runs"


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "expected"),
    [
        (Resources(workers=1), 2, 0, {"CPU": 1.0}),
        (Resources(workers=2), 2, 0, {"CPU": 0.5}),
        (Resources(workers=4), 64, 4, {"CPU": 1.0}),
        (Resources(workers=4, gpus=True), 64, 4, {"CPU": 1.0, "GPU": 1.0}),
        (Resources(workers=3), 2, 0, None),
        (Resources(workers=1), 1, 0, None),
        (Resources(workers=2, gpus=True), 8, 1, None),
        (Resources(workers=2, cpus_per_worker=1.0), 2, 0, None),
    ],
)
def test_workers_leave_a_cpu_for_ray_data_or_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    resources: Resources,
    cpus: int,
    gpus: int,
    expected: dict[str, float] | None,
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": cpus}}])
    monkeypatch.setattr("assay.experiment.resources.growth", lambda: None)
    if expected is None:
        with pytest.raises(ResourceError, match=str(cpus)):
            worker_resources(resources)
    else:
        assert worker_resources(resources) == expected


@pytest.mark.parametrize(
    ("sizes", "workers", "given", "expected"),
    [
        ([4, 4], 8, 0.0, 0.8),  # of 7/8 each node would hold four, and have a half left
        ([4, 4], 4, 0.0, 1.0),
        ([1, 1, 1], 2, 0.0, 1.0),
        ([1, 1], 2, 0.0, 0.5),
        ([0, 2, 2], 4, 0.0, 2 / 3),
        ([4, 4], 8, 0.875, None),
        ([4, 3], 3, 2.0, 2.0),  # one that is full has a CPU left
    ],
)
def test_a_whole_cpu_of_a_node_is_left_whichever_nodes_the_workers_fill(
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[int],
    workers: int,
    given: float,
    expected: float | None,
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(sum(sizes))})
    nodes = [{"Alive": True, "Resources": {"CPU": size} if size else {}} for size in sizes]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("assay.experiment.resources.growth", lambda: None)
    resources = Resources(workers=workers, cpus_per_worker=given)
    if expected is None:
        with pytest.raises(ResourceError, match=r"4, 4 CPUs.*take --cpus-per-worker 0\.8,"):
            worker_resources(resources)
        return
    each = worker_resources(resources)["CPU"]
    assert each == pytest.approx(expected)
    for order in itertools.permutations(sizes):  # filled node after node, as Ray packs them
        free, left = [], workers
        for size in order:
            held = min(left, int(size / each + 1e-9))
            free.append(size - held * each)
            left -= held
        assert left == 0
        assert max(free) >= 1 - 1e-9
