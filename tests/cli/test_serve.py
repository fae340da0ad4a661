"""What `assay serve` asks of a cluster before it deploys anything."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from assay.cli import serve
from assay.cluster import nodes
from assay.errors import BundleError, ConfigError, ResourceError
from assay.serve import control, replica
from assay.serve.config import ApplicationConfig, ServeConfig


def wanted(gpus: float, replicas: int) -> dict[str, Any]:
    replica = {
        "autoscaling_config": {"min_replicas": replicas},
        "ray_actor_options": {"num_cpus": 0.5, "num_gpus": gpus},
    }
    front = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}
    return {"applications": [{"deployments": [front]}, {"deployments": [replica]}]}


def test_replicas_that_will_never_fit_are_refused_and_others_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr(nodes, "growth", lambda: None)
    monkeypatch.delenv(nodes.MAXIMUM, raising=False)
    words = r"at rest need 2 GPUs and 1 CPUs and the cluster has 1 GPUs and 2 CPUs"
    with pytest.raises(ResourceError, match=words):
        serve._room(wanted(1, 2), 900.0)
    assert serve._room(wanted(0, 4), 900.0)[0] == 300.0
    monkeypatch.setattr(nodes, "growth", nodes.Growth)
    limit_s, look = serve._room(wanted(1, 2), 0.5)
    assert limit_s == 0.5
    look()
    monkeypatch.setenv(nodes.MAXIMUM, "GPU=1")
    with pytest.raises(ResourceError, match="2 GPUs"):
        serve._room(wanted(1, 2), 900.0)


def test_what_is_deployed_brings_the_package_that_was_sent(monkeypatch) -> None:
    deployed: list[Any] = []
    monkeypatch.setattr(control, "_client", lambda: SimpleNamespace(deploy_apps=deployed.append))
    app = {"name": "parts", "import_path": "assay.serve.cluster:task"}
    for sent in ({}, {"py_modules": ["gcs://_ray_pkg_1.zip"], "env_vars": {"A": "b"}}):
        context = SimpleNamespace(runtime_env=sent)
        monkeypatch.setattr(ray, "get_runtime_context", lambda context=context: context)
        control.deploy({"applications": [app]})
    here, there = (schema.applications[0].runtime_env for schema in deployed)
    assert here == {}
    assert there == {"py_modules": ["gcs://_ray_pkg_1.zip"]}
    assert "runtime_env" not in app  # nor in the file, which outlives the cluster


def test_gpus_that_nothing_would_use_are_refused_before_anything_starts(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(serve, "_guard_ray", lambda: pytest.fail("nothing is to be started"))
    config = ServeConfig(app=ApplicationConfig(gpus=1.0), token_file=tmp_path / "token")
    with pytest.raises(BundleError, match=r"cuda is asked for.* \(--app.gpus 0\)"):
        serve.serve(serve.Serve(config=config), [])


def test_a_replica_with_a_gpu_that_it_cannot_use_ends_in_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ["0"])
    with pytest.raises(BundleError, match="cuda is asked for"):
        replica.Replica({}, "parts", 1, "auto")
    with pytest.raises(ConfigError, match=r"app.gpus is 1 and app.provider cpu"):
        replica.Replica({}, "parts", 1, "cpu")


def test_the_sentence_that_ended_a_replica_is_told() -> None:
    traceback = """The deployment failed to start 3 times in a row. Error:
Traceback (most recent call last):
    raise BundleError(
assay.errors.BundleError: The provider cuda is asked for.
"""
    failed = SimpleNamespace(
        message="", deployments={"replica": SimpleNamespace(message=traceback)}
    )
    other = SimpleNamespace(message="", deployments={})
    status = SimpleNamespace(applications={"front": other, "parts": failed})
    assert control._reason(status) == "The provider cuda is asked for."
    assert control._reason(status, "parts") == "The provider cuda is asked for."
    assert control._reason(status, "front") == "the logs of Ray Serve say why."
