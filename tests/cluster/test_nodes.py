"""What a cluster lacks is asked for and waited for where it can grow, and refused with figures where not."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

from assay.cluster import nodes
from assay.errors import ConfigError, ResourceError
from assay.experiment.options import parse
from assay.experiment.resources import (
    Resources,
    make_room_for_data,
    num_workers,
    worker_resources,
)
from assay.sweep.tune import fit_in
from assay.train.source import TaskSource, load_task


class FakeCluster:
    """A cluster as far as `nodes` looks at it, whose nodes come one at each look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int, trouble: str = "") -> None:
        self.num, self.most, self.trouble, self.asked = 0, most, trouble, []
        monkeypatch.setattr(ray, "cluster_resources", lambda: self.has)
        monkeypatch.setattr(ray, "available_resources", lambda: self.has)
        monkeypatch.setattr(nodes, "growth", self.growth)
        monkeypatch.setattr("assay.experiment.resources.growth", self.growth)
        monkeypatch.setattr("ray.util.placement_group", self.place)
        monkeypatch.setattr("ray.util.remove_placement_group", self.asked.remove)
        monkeypatch.delenv(nodes.MAXIMUM, raising=False)

    @property
    def has(self) -> dict[str, float]:
        return {"CPU": 4.0 * self.num, "GPU": 1.0 * self.num, "driver": 8.0}

    def growth(self) -> nodes.Growth:
        return nodes.Growth(self.most - self.num, self.trouble)

    def place(self, bundles: list[dict[str, float]]) -> Any:
        cluster = self

        class Group:
            id = ray.PlacementGroupID.nil()

            def wait(self, seconds: float) -> bool:
                need = nodes.total(bundles)
                is_there = not nodes.lacks(need, cluster.has)
                cluster.num = min(cluster.num + 1, cluster.most)
                return is_there

        group = Group()
        self.asked.append(group)
        return group


def test_workers_are_asked_for_and_waited_for_with_figures(monkeypatch, capsys) -> None:
    cluster = FakeCluster(monkeypatch, most=3)
    assert worker_resources(Resources(workers=2, gpus=True)) == {"CPU": 1.0, "GPU": 1.0}
    assert capsys.readouterr().err.splitlines() == [
        "waiting for 2 GPUs and 3 CPUs: 1 GPUs and 4 CPUs up, 2 nodes starting, 0 s of 900 s",
        "waiting for 2 GPUs and 3 CPUs: 2 GPUs and 8 CPUs up, 1 nodes starting, 0 s of 900 s",
    ]
    assert not cluster.asked  # nothing is left that would keep nodes


def test_a_wait_ends_with_what_there_was_and_why_no_more_came(monkeypatch) -> None:
    cluster = FakeCluster(monkeypatch, most=1, trouble="gpu-spot: no capacity")
    words = r"2 GPUs and 3 CPUs are needed and after 0\.01 s .* 1 GPUs and 4 CPUs.*gpu-spot: no capacity"
    with pytest.raises(ResourceError, match=words):
        worker_resources(Resources(workers=2, gpus=True, wait_s=0.01))
    assert not cluster.asked


def test_what_the_cluster_will_never_have_is_refused_before_anything_starts(monkeypatch) -> None:
    cluster = FakeCluster(monkeypatch, most=3)
    monkeypatch.setenv(nodes.MAXIMUM, "CPU=8,GPU=2")
    with pytest.raises(ResourceError, match=r"^3 GPUs and 4 CPUs .*has 2 GPUs and 8 CPUs at most"):
        worker_resources(Resources(workers=3, gpus=True))
    with pytest.raises(ResourceError, match=r"5 GPUs.*2 GPUs.*--parallel 2"):
        fit_in(Resources(gpus=True), 1.0, 5)
    assert cluster.num == 0
    assert fit_in(Resources(gpus=True), 1.0, 0) == ({"CPU": 1.0, "GPU": 1.0}, 2)
    monkeypatch.setenv(nodes.MAXIMUM, "eight")
    with pytest.raises(ConfigError, match=r"'eight'.*CPU=96"):
        worker_resources(Resources())


def test_trials_begin_once_one_has_room_and_their_drivers_stay_off_the_workers(monkeypatch) -> None:
    cluster = FakeCluster(monkeypatch, most=8)
    assert fit_in(Resources(workers=2, gpus=True), 1.0, 4) == ({"driver": 1.0}, 4)
    assert cluster.num == 3  # of 8: what one trial needs, seen at the next look


@pytest.mark.parametrize("group", ["", "ab"])
def test_what_no_kind_of_node_can_hold_is_refused_unless_others_use_it(monkeypatch, group) -> None:
    FakeCluster(monkeypatch, most=1).num = 1
    monkeypatch.setattr(nodes, "growth", lambda: nodes.Growth(impossible=frozenset({"ab"})))
    waiting = nodes.Waiting({"GPU": 8.0}, 60.0)
    if group:
        with pytest.raises(ResourceError, match=r"no kinds of nodes.*1 GPUs now"):
            waiting.look(group)
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    waiting.look(group)


def report(kind: str) -> dict[str, Any]:
    """What the autoscaler's first version writes down, with the fields that Ray 2.60 gave them."""
    refused = {"category": "quota", "description": "no quota"}
    return {
        "autoscaler_report": {
            "active_nodes": {kind: 1},
            "pending_nodes": [["id", "gpu", "uninitialized"]],
            "pending_launches": {"gpu": 2},
            "node_availability_summary": {
                "node_availabilities": {
                    "gpu": {"node_type": "gpu", "unavailable_node_information": refused}
                }
            },
        }
    }


def status(kind: str, version: int = 3) -> bytes:
    """What the second version reports."""
    reply = GetClusterStatusReply()
    reply.cluster_resource_state.node_states.add(ray_node_type_name=kind)
    state = reply.autoscaling_state
    state.autoscaler_state_version = version
    state.pending_instances.add(ray_node_type_name="gpu")
    state.pending_instance_requests.add(ray_node_type_name="gpu", count=2)
    state.failed_instance_requests.add(ray_node_type_name="gpu", reason="no quota")
    state.infeasible_gang_resource_requests.add(details="ab:PACK|PENDING")
    return reply.SerializeToString()


@pytest.mark.parametrize(
    ("written", "reported", "expected"),
    [
        (report("head"), b"", nodes.Growth(3, "gpu: no quota")),
        (report("node_0f"), b"", None),
        ({}, status("head"), nodes.Growth(3, "gpu: no quota", frozenset({"ab"}))),
        ({}, status("node_0f"), None),
        ({}, status("head", version=0), None),  # KubeRay without its autoscaler
    ],
)
def test_only_an_autoscaler_that_manages_nodes_makes_a_cluster_grow(
    monkeypatch, written, reported, expected
) -> None:
    class Client:
        def __init__(self, address: str) -> None:
            assert address == "here:6379"

        def get_cluster_status(self, timeout_s: float) -> bytes:
            return reported

    class Context:
        gcs_address = "here:6379"

    monkeypatch.setattr(
        "ray.experimental.internal_kv._internal_kv_get", lambda _: json.dumps(written)
    )
    monkeypatch.setattr("ray._raylet.GcsClient", Client)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.delenv(nodes.MAXIMUM, raising=False)
    assert nodes.growth() == expected


@pytest.mark.parametrize("words", [["--workers", "2..8"], ["--workers=2..8"]])
def test_a_range_of_workers_is_asked_for_at_its_least_and_grows_to_its_most(
    monkeypatch, words
) -> None:
    task = load_task(TaskSource.read(Path(__file__).parents[2] / "tasks" / "fingerprint.py"))
    _, resources, _ = parse(task, [*words, "--gpus"])
    assert (resources.workers, resources.workers_max) == (2, 8)
    cluster = FakeCluster(monkeypatch, most=3)
    one = worker_resources(resources)
    assert cluster.num == 3  # the least, and nothing more is waited for
    assert num_workers(resources, one) == (2, 8)
    # where no nodes come, Ray Data keeps a CPU of the 12
    monkeypatch.setattr("assay.experiment.resources.growth", lambda: None)
    assert num_workers(resources, {"CPU": 2.0, "GPU": 1.0}) == (2, 5)
    assert num_workers(Resources(workers=3), one) == 3


@pytest.mark.parametrize(
    ("least", "most", "gpus", "phrase"),
    [(0, 2, True, "1 or more"), (4, 2, True, "no fewer"), (1, 2, False, "without --gpus")],
)
def test_a_range_that_is_none_or_that_nothing_bounds_is_refused(least, most, gpus, phrase) -> None:
    with pytest.raises(ConfigError, match=phrase):
        Resources(workers=least, workers_max=most, gpus=gpus)


def test_ray_data_is_not_left_to_wait_for_a_cpu_without_end(monkeypatch) -> None:
    cluster = FakeCluster(monkeypatch, most=1)
    monkeypatch.setattr("assay.experiment.resources.growth", lambda: None)
    with pytest.raises(ResourceError, match=r"decoded need 1 CPUs and the cluster has 0 CPUs"):
        make_room_for_data(Resources())
    monkeypatch.setattr("assay.experiment.resources.growth", cluster.growth)
    make_room_for_data(Resources())
    assert cluster.num == 1


def test_an_autoscaler_that_has_said_nothing_yet_is_waited_for(monkeypatch) -> None:
    said = [{}, {}, report("head")]
    monkeypatch.setattr(nodes, "_report_v1", lambda: said.pop(0) if len(said) > 1 else said[0])
    monkeypatch.setattr(nodes, "_report_v2", GetClusterStatusReply)
    monkeypatch.setattr(nodes, "POLL_S", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", "begun-just-now:6379")
    assert nodes.growth() == nodes.Growth(3, "gpu: no quota")
    monkeypatch.setattr(nodes, "_report_v1", dict)
    monkeypatch.setattr(nodes, "REPORT_S", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", "without-autoscaler:6379")
    monkeypatch.delenv(nodes.MAXIMUM, raising=False)
    assert nodes.growth() is None
