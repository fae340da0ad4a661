"""The files of clusters: what they say fits the schemas that can be had, and what they promise.

Ray's schema of `ray up` and of Serve's configuration come with Ray; those of KubeRay do not, so of
its manifests only what is known from its reference is checked.
"""

import copy
import json
import os
import runpy
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config
from ray.serve.schema import ServeDeploySchema  # noqa: TID251 - the schema alone

from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.serve.config import ServeConfig, SharedConfig

CLUSTER = Path(__file__).parents[2] / "cluster"
CLOUDS = ("aws", "gcp", "azure")
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def told(text: str) -> dict[str, float]:
    """What ASSAY_CLUSTER_MAX tells in a command."""
    pairs = text.partition("ASSAY_CLUSTER_MAX=")[2].split()[0].rstrip(";").split(",")
    return {name: float(value) for name, value in (pair.split("=") for pair in pairs)}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_file_of_ray_up_fits_the_schema_of_the_ray_that_is_installed(cloud: str) -> None:
    config = read(f"{cloud}.yaml")
    jsonschema.validate(config, SCHEMA)
    validate_config(fillout_defaults(copy.deepcopy(config)))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_nodes": 3}, SCHEMA)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_no_work_lies_on_the_head_and_spot_has_a_fallback_within_a_budget(cloud: str) -> None:
    config = read(f"{cloud}.yaml")
    kinds = dict(config["available_node_types"])
    head = kinds.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == head["resources"]["GPU"] == 0
    assert head["labels"]["assay/market"] == "on-demand"
    assert all(kind["min_workers"] == 0 for kind in kinds.values())
    assert config["max_workers"] == sum(kind["max_workers"] for kind in kinds.values())
    spot, fallback = kinds["gpu-spot"], kinds["gpu-on-demand"]
    assert spot["priority"] > fallback["priority"]
    assert spot["resources"] == fallback["resources"]
    text = json.dumps(spot["node_config"]).lower()
    assert "spot" in text or "preemptible" in text
    others = json.dumps([kind["node_config"] for name, kind in kinds.items() if name != "gpu-spot"])
    assert "spot" not in others.lower()
    assert "preemptible" not in others


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_maximum_that_is_told_is_what_the_kinds_of_nodes_add_up_to(cloud: str) -> None:
    config = read(f"{cloud}.yaml")
    kinds, start = config["available_node_types"], config["head_start_ray_commands"][-1]
    for name, most in told(start).items():
        num = {kind: 1 if kind == "head" else kinds[kind]["max_workers"] for kind in kinds}
        assert most == sum(num[kind] * kinds[kind]["resources"].get(name, 0) for kind in kinds)
    for command in (start, config["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
    assert "0.0.0.0" not in start


def pods(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {n: g["template"]["spec"] for n, g in ({"head": spec["headGroupSpec"]} | groups).items()}


def test_pods_run_as_a_user_share_the_runs_and_have_shared_memory() -> None:
    spec = read("kubernetes/raycluster.yaml")["spec"]
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods(spec).values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["restartPolicy"] == "Never"  # what version 2 of the autoscaler asks for
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes[mounts["/mnt/assay"]]
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    (container,) = pods(spec)["gpu"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_maximum_told_to_the_head_pod_is_that_of_the_groups() -> None:
    spec = read("kubernetes/raycluster.yaml")["spec"]
    (container,) = pods(spec)["head"]["containers"]
    (most,) = [e["value"] for e in container["env"] if e["name"] == "ASSAY_CLUSTER_MAX"]
    sums = {"CPU": 0, "GPU": 0}
    for group in spec["workerGroupSpecs"]:
        (worker,) = group["template"]["spec"]["containers"]
        limits = worker["resources"]["limits"]
        sums["CPU"] += group["maxReplicas"] * int(limits["cpu"])
        sums["GPU"] += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    assert told(f"ASSAY_CLUSTER_MAX={most}").items() >= sums.items()


def test_a_service_is_made_of_the_registry_and_is_what_ray_serve_takes(
    make_bundle, judged_rows, tmp_path: Path
) -> None:
    write = runpy.run_path(str(CLUSTER / "kubernetes" / "write.py"))
    registry = str(tmp_path / "registry")
    promote(Registry(registry), make_bundle(tmp_path / "bundle"), judged_rows(0.9), "champion", "")
    made = write["service"](ServeConfig(registry=registry, host="0.0.0.0"))
    served = ServeDeploySchema.model_validate(yaml.safe_load(made["spec"]["serveConfigV2"]))
    assert [app.name for app in served.applications] == ["front", "parts"]
    shared = ServeConfig(registry=registry, shared=SharedConfig(tasks=("*",)))
    together = yaml.safe_load(write["service"](shared)["spec"]["serveConfigV2"])
    (_, app) = ServeDeploySchema.model_validate(together).applications
    assert (app.name, app.route_prefix) == ("shared-tasks", "/v1")
    assert made["kind"] == "RayService"
    for pod in pods(made["spec"]["rayClusterConfig"]).values():
        assert "ASSAY_TOKEN" in {each["name"] for each in pod["containers"][0]["env"]}
    job = write["job"]("python tasks/fingerprint.py")["spec"]
    assert job["shutdownAfterJobFinishes"]
    assert job["activeDeadlineSeconds"] > 0
    assert job["rayClusterSpec"] == read("kubernetes/raycluster.yaml")["spec"]


def test_slurm_starts_one_ray_over_all_nodes_and_tells_the_command_where_it_is(
    tmp_path: Path,
) -> None:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "activate").touch()
    for name, body in {
        "scontrol": 'printf "n1\\nn2\\nn3\\n"',
        "srun": 'printf "%s\\n" "$@" "${#RAY_AUTH_TOKEN}" "$RAY_AUTH_MODE"',
    }.items():
        fake = tmp_path / "env" / "bin" / name
        fake.write_text(f"#!/bin/sh\n{body}\n")
        fake.chmod(0o755)
    job = {
        "SLURM_SUBMIT_DIR": str(CLUSTER.parent),
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_JOB_ID": "1234567",
        "SLURM_CPUS_PER_TASK": "96",
        "SLURM_GPUS_ON_NODE": "8",
        "ASSAY_ENV": str(tmp_path / "env"),
        "PATH": f"{tmp_path / 'env' / 'bin'}:{os.environ['PATH']}",
    }
    command = [CLUSTER / "slurm.sh", "tasks/fingerprint.py", "--preset", "a b"]
    done = subprocess.run(command, env=job, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    ray_words, told_words = words[: words.index("--")], words[words.index("--") + 1 :]
    assert ray_words[ray_words.index("--min-nodes") + 1] == "3"
    address = ray_words[ray_words.index("--address") + 1]
    assert told_words[:5] == [
        "env",
        f"RAY_ADDRESS={address}",
        "python",
        "tasks/fingerprint.py",
        "--preset",
    ]
    assert told_words[5:] == ["a b", "--gpus", "--workers", "24", "64", "token"]
    assert address.startswith("n1:")
    assert 20000 <= int(address.partition(":")[2]) < 30000
    nothing = subprocess.run([CLUSTER / "slurm.sh"], env=job, capture_output=True, text=True)
    assert (nothing.returncode, nothing.stderr) == (2, "Name a task file and its options.\n")


def test_the_image_has_the_versions_that_the_project_pins_and_no_root() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert text.index("useradd") < text.index("USER 1000") < text.index("uv sync")
    assert ":latest" not in text
    copied = [line.split()[2:-1] for line in text.splitlines() if line.startswith("COPY")]
    kept = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for names in copied for name in names} <= {*kept}


def test_secrets_and_places_that_are_the_users_own_are_left_open() -> None:
    for path in CLUSTER.rglob("*.yaml"):
        text = path.read_text()
        assert not any(word in text for word in ("AKIA", "BEGIN PRIVATE", "hf_"))
        if "image:" in text:
            assert "REGISTRY/assay:" in text
