"""A real autoscaler of Ray on this machine: what is asked for comes, and goes when it is not used."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "cluster" / "local_autoscaling.py"

ASKS = """
import sys, time

import ray
from assay.cluster import nodes
from assay.cli.doctor import findings, probe_all
from assay.errors import ResourceError

ray.init(log_to_driver=False, logging_level="error")
head = ray.get_runtime_context().get_node_id()
assert nodes.growth() is not None
print(nodes.up()["GPU"])
one = {"CPU": 1.0, "GPU": 1.0}
nodes.gather([one], 120.0, "ask for less")
print(nodes.up()["GPU"])
where = ray.remote(num_gpus=1)(lambda: ray.get_runtime_context().get_node_id())
print(ray.get(where.remote()) == head)
probes, silent = probe_all(sys.argv[1])
print(len(probes), silent, [f.what for f in findings(probes, silent, "") if not f.is_good])
try:
    nodes.gather([one, one], 3.0, "ask for less")
except ResourceError as error:
    print(error)
end = time.monotonic() + 60
while nodes.up()["GPU"] and time.monotonic() < end:
    time.sleep(0.5)
print(nodes.up()["GPU"])
"""


def test_a_cluster_at_none_grows_for_what_is_asked_and_shrinks_to_none(tmp_path: Path) -> None:
    local = runpy.run_path(str(SCRIPT))
    with local["local_cluster"](most_nodes=1, idle_minutes=0.1) as environment:
        command = [sys.executable, "-c", ASKS, str(tmp_path / "runs")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        before, grown, on_head, examined, refused, after = done.stdout.splitlines()
    assert (before, grown, after) == ("0.0", "1.0", "0.0")
    assert on_head == "False"
    # the GPU that the node tells of is none
    assert examined == "2 [] ['GPUs']"
    assert "2 GPUs and 2 CPUs are needed and after 3 s the cluster has 1 GPUs and 2 CPUs" in refused
    assert "waiting for 1 GPUs and 1 CPUs: 0 GPUs and 0 CPUs up" in done.stderr
    assert not any("raylet" in name and environment["RAY_ADDRESS"] in name for name in processes())


def processes() -> list[str]:
    names = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                names.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return names
