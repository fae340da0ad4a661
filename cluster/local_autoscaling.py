"""Show on this machine that a cluster grows when it is asked and shrinks when it is not.

    python cluster/local_autoscaling.py                   training, a sweep and a served model
    python cluster/local_autoscaling.py --out FOLDER      where timeline.json and timeline.svg go

A real head with Ray's real autoscaler, which starts nodes as processes of this machine in the
place of a cloud's (Ray's provider `fake_multinode`). Each says that it has one GPU; what lies on
it reserves that GPU and computes on the CPU. The head itself has neither CPU nor GPU, so whatever
runs lies on nodes that were started for it. Ends only what it began.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.serve
from ray.util import get_node_ip_address

ROOT = Path(__file__).parents[1]

NODE = {"CPU": 2, "GPU": 1}
"""What a node says that it has."""

IDLE_MINUTES = 0.5
"""Minutes without work until a node is ended; longer than Ray Train takes from asking to starting."""


def settings(address: str, most_nodes: int, idle_minutes: float) -> dict[str, Any]:
    """Return the autoscaler's settings: no node at rest, `most_nodes` at most."""
    commands = ("initialization", "setup", "head_setup", "worker_setup")
    starts = ("head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "local",
        "max_workers": most_nodes,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "available_node_types": {
            "gpu": {
                "resources": NODE | {"object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most_nodes,
            },
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_minutes,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{f"{name}_commands": [] for name in (*commands, *starts)},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }


def free_ports(count: int) -> list[int]:
    """Return ports above those that Ray gives to its workers."""
    ports: list[int] = []
    for port in range(21000 + os.getpid() % 5000, 40000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError("no free ports between 21000 and 40000")


@contextmanager
def local_cluster(most_nodes: int, idle_minutes: float = IDLE_MINUTES) -> Iterator[dict[str, str]]:
    """Begin a head without CPUs; yields the environment in which commands find it."""
    folder = Path(tempfile.mkdtemp(prefix="assay-", dir="/tmp"))  # sockets need short names
    port, dashboard, client = free_ports(3)
    address = f"{get_node_ip_address()}:{port}"
    text = json.dumps(settings(address, most_nodes, idle_minutes))
    (folder / "autoscaling.json").write_text(text)
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}",
        "PYTHONPATH": str(ROOT / "platform"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_raylet_start_wait_time_s": "180",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
    }
    command = [
        *f"ray start --head --block --num-cpus=0 --port={port} --dashboard-port={dashboard}".split(),
        *f"--ray-client-server-port={client} --dashboard-agent-listen-port=0".split(),
        *f"--temp-dir={folder} --include-dashboard=false --object-store-memory=150000000".split(),
        f"--autoscaling-config={folder}/autoscaling.json",
    ]
    log = (folder / "head.log").open("wb")
    head = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_up(address, head)
        yield own | {"RAY_ADDRESS": address}
    finally:
        _end(head, str(folder))
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(address: str, head: "subprocess.Popen[bytes]", timeout_s: float = 180) -> None:
    host, port = address.split(":")
    for _ in range(int(timeout_s)):
        with suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        if head.poll() is not None:
            break
        time.sleep(1)
    raise OSError(f"no head of Ray came up at {address}")


def _end(head: "subprocess.Popen[bytes]", mark: str) -> None:
    """End the head and what it started: its session, and processes that name its folder."""
    head.terminate()
    with suppress(subprocess.TimeoutExpired):
        head.wait(20)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            is_named = mark.encode() in (entry / "cmdline").read_bytes()
            if is_named or os.getsid(int(entry.name)) == head.pid:
                os.kill(int(entry.name), signal.SIGKILL)
    head.wait()


QUICK = shlex.split(
    "--preset smoke --train.epochs 1 --model.mode random --parts.size-px 256 "
    "--parts.parts-per-seen 3 --patches.image-px 256 --patches.overview-px 64 --patches.patch-px 24"
)
"""A fingerprint run of seconds."""

ON_GPUS = ["--gpus", "--device", "cpu"]
"""Reserve a GPU for each worker, and compute on the CPU: these GPUs are none."""


@dataclass
class Timeline:
    """What the cluster had, second by second, and what was asked of it when."""

    began: float = field(default_factory=time.monotonic)
    samples: list[tuple[float, int, float]] = field(default_factory=list)
    """Seconds, nodes besides the head, GPUs in use."""
    phases: list[tuple[str, float, float]] = field(default_factory=list)
    """What was asked, from when until when."""

    def sample(self) -> tuple[int, float]:
        """Look at the cluster, and say so where something changed."""
        has, free = ray.cluster_resources(), ray.available_resources()
        nodes = sum(node["Alive"] and "GPU" in node["Resources"] for node in ray.nodes())
        # what is asked one after the other may differ while a node goes
        used = min(has.get("GPU", 0.0) - free.get("GPU", 0.0), float(nodes))
        now = time.monotonic() - self.began
        if not self.samples or self.samples[-1][1:] != (nodes, used):
            print(f"{now:6.1f} s  {nodes} nodes, {used:g} GPUs in use", flush=True)
        self.samples.append((now, nodes, used))
        return nodes, used

    def watch(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run a command to its end, sampling; raises CalledProcessError where it fails."""
        began = time.monotonic() - self.began
        print(f"{began:6.1f} s  {name}: {shlex.join(command)}", flush=True)
        running = subprocess.Popen(command, cwd=ROOT, env=environment)
        while running.poll() is None:
            self.sample()
            time.sleep(0.5)
        self.phases.append((name, began, time.monotonic() - self.began))
        if running.returncode:
            raise subprocess.CalledProcessError(running.returncode, command)

    def shrink(self, timeout_s: float = 120) -> None:
        """Sample until no node is left but the head; raises TimeoutError."""
        end = time.monotonic() + timeout_s
        while self.sample()[0]:
            if time.monotonic() > end:
                raise TimeoutError(f"after {timeout_s} s without work the cluster has nodes")
            time.sleep(0.5)

    def most(self, name: str) -> tuple[int, float]:
        """Return the most nodes, and GPUs in use, while something was asked."""
        _, begin, end = next(phase for phase in self.phases if phase[0] == name)
        rows = [row for row in self.samples if begin <= row[0] <= end]
        return max(row[1] for row in rows), max(row[2] for row in rows)


def draw(timeline: Timeline) -> str:
    """Draw nodes and GPUs in use over time, as SVG."""
    width, height, left, top = 900, 150, 40, 40
    end = timeline.samples[-1][0]
    most = max(row[1] for row in timeline.samples) or 1

    def x(seconds: float) -> float:
        return round(left + (width - left - 10) * seconds / end, 1)

    def y(value: float) -> float:
        return round(top + height * (1 - value / most), 1)

    def steps(column: int) -> str:
        path, before = f"M{left} {y(0)}", 0.0
        for row in timeline.samples:
            if row[column] != before:
                path += f"H{x(row[0])}V{y(row[column])}"
                before = row[column]
        return f"{path}H{x(end)}V{y(0)}Z"

    parts = [f'<rect width="{width}" height="{top + height + 40}" fill="#fff"/>']
    for name, begin, until in timeline.phases:
        box = f'x="{x(begin)}" y="{top - 22}" width="{x(until) - x(begin):.1f}"'
        parts.append(f'<rect {box} height="{height + 22}" fill="#eef2f7"/>')
        parts.append(f'<text x="{x(begin) + 4}" y="{top - 8}">{name}</text>')
    parts.append(f'<path d="{steps(1)}" fill="#a9c4e6"/>')
    parts.append(f'<path d="{steps(2)}" fill="#1f5fa8"/>')
    for value in range(most + 1):
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4}" text-anchor="end">{value}</text>')
    for second in range(0, int(end) + 1, 30):
        parts.append(f'<text x="{x(second)}" y="{y(0) + 16}" text-anchor="middle">{second}</text>')
    about = "seconds; light: nodes besides the head, dark: GPUs in use"
    parts.append(f'<text x="{left}" y="{y(0) + 34}">{about}</text>')
    size = f'viewBox="0 0 {width} {top + height + 40}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n'


def prove(timeline: Timeline, environment: Mapping[str, str], storage: Path) -> None:
    """Let a training, a sweep and a served model make the cluster grow, and watch it shrink."""
    python, where = sys.executable, ["--storage", str(storage)]
    task = [*QUICK, *ON_GPUS, *where]
    # long enough to be seen growing: each growth begins again from the last checkpoint
    longer = ["--workers", "1..2", "--resize-s", "5", "--train.epochs", "12"]
    train = [python, "tasks/fingerprint.py", *task, *longer, "--checkpoint-steps", "5"]
    timeline.watch("training", train, environment)
    timeline.shrink()
    tries = ["--trials", "2", "--parallel", "2", "--eta", "0"]
    sweep = [
        python,
        "sweeps/hyperparameters.py",
        *task,
        *tries,
        "--space",
        "optim.lr=1e-4..1e-2,log",
    ]
    timeline.watch("sweep", sweep, environment)
    timeline.shrink()
    registry = ["--registry", str(storage / "registry")]
    run = next(path.parent.name for path in storage.glob("fingerprint-*/bundle"))
    promote = ["assay", "promote", run, "--storage", str(storage), *registry, "--force", "proof"]
    subprocess.run(promote, cwd=ROOT, env=environment, check=True)
    (port,) = free_ports(1)
    app = ["--app.gpus", "1", "--app.min-replicas", "2", "--port", str(port), "--open"]
    file = ["--file", str(storage / "serve.yaml")]
    timeline.watch("serving", ["assay", "serve", *app, *registry, *file], environment)
    image = next(storage.glob("embedded/**/*.png"))
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/fingerprint", image.read_bytes())
    with urllib.request.urlopen(asked, timeout=60) as reply:
        print(f"        answered: {json.load(reply)['answer']['label']}")
    ray.serve.shutdown()
    timeline.shrink()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the proof; the exit code is 1 where the cluster did not grow for everything asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("autoscaling"))
    parser.add_argument("--nodes", type=int, default=2)
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    storage = Path(tempfile.mkdtemp(prefix="assay-runs-"))
    with local_cluster(chosen.nodes) as environment:
        os.environ |= environment
        ray.init(log_to_driver=False)
        timeline = Timeline()
        try:
            timeline.sample()
            prove(timeline, environment, storage)
        finally:
            record = {"samples": timeline.samples, "phases": timeline.phases}
            (chosen.out / "timeline.json").write_text(json.dumps(record))
            (chosen.out / "timeline.svg").write_text(draw(timeline))
            ray.shutdown()
            shutil.rmtree(storage, ignore_errors=True)
    for name, begin, end in timeline.phases:
        nodes, used = timeline.most(name)
        print(f"{name}: {end - begin:.0f} s, up to {nodes} nodes and {used:g} GPUs in use")
    print(f"back to {timeline.samples[-1][1]} nodes; drawn in {chosen.out / 'timeline.svg'}")
    if any(timeline.most(name)[1] == 0 for name, _, _ in timeline.phases):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
