"""Write a RayJob or a RayService of the nodes in raycluster.yaml, for `kubectl apply -f -`.

    python cluster/kubernetes/write.py job -- python tasks/fingerprint.py --gpus --storage /mnt/assay/runs
    python cluster/kubernetes/write.py service --registry /mnt/assay/registry --app.gpus 1

The job has a cluster of its own, which is deleted an hour after its end at the latest. What the
service runs is read from the registry, as `assay serve` does; its replicas then follow the
registry by themselves.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import tyro
import yaml

from assay.errors import ConfigError, one_sentence
from assay.serve.config import ServeConfig
from assay.serve.deployment import configuration, refuse_strangers

CLUSTER = Path(__file__).with_name("raycluster.yaml")

TOKEN = {
    "name": "ASSAY_TOKEN",
    "valueFrom": {"secretKeyRef": {"name": "assay-token", "key": "token"}},
}
"""The token of what is served, as every pod gets it."""


def job(entrypoint: str) -> dict[str, Any]:
    """Return a RayJob that runs a command on a cluster of its own and deletes it."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"generateName": "assay-"},
        "spec": {
            "entrypoint": entrypoint,
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "activeDeadlineSeconds": 86_400,
            # the same command goes on from its checkpoints
            "backoffLimit": 2,
            "rayClusterSpec": _cluster(),
        },
    }


def service(config: ServeConfig) -> dict[str, Any]:
    """Return a RayService of what a registry holds.

    Raises:
        ServeError: no task has a champion, or what is to share replicas is none.
    """
    wanted = configuration(config)
    refuse_strangers(config, wanted)
    spec = _cluster()
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        for container in group["template"]["spec"]["containers"]:
            container["env"] = [*container.get("env", []), TOKEN]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "assay"},
        "spec": {
            "serveConfigV2": yaml.safe_dump(wanted, sort_keys=False),
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterConfig": spec,
        },
    }


def _cluster() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())["spec"]
    return spec


def main() -> None:
    """Print the manifest that the command line asks for."""
    with one_sentence():
        kind, *words = sys.argv[1:] or [""]
        if kind == "service":
            default = ServeConfig(host="0.0.0.0", registry="/mnt/assay/registry")
            manifest = service(tyro.cli(ServeConfig, args=words, default=default))
        elif kind == "job" and words[:1] == ["--"] and words[1:]:
            manifest = job(shlex.join(words[1:]))
        else:
            raise ConfigError(
                "Write `job -- COMMAND` or `service --registry URI`; see the head of this file."
            )
        yaml.Dumper.ignore_aliases = lambda *_: True
        print(yaml.dump(manifest, sort_keys=False))


if __name__ == "__main__":
    main()
