"""Several hosts on this machine: each with a network, temporary files and shared memory of its own.

    PYTHONPATH=platform python tests/chaos/hosts.py [ddp fsdp sweep serving outage drained lost lossy]

Four raylets in namespaces of Linux (root is needed, and iptables for packets that are dropped), joined by a bridge; runs lie on a folder that all share. A training (DDP, then
FSDP, over gloo), a sweep whose trials have two workers, and a served bundle work across them, and a host's
link is cut, for a while and for good, or drops packets, or a host is drained and taken away, while a training goes on. What runs predict is compared with a run in one process.
"""

import atexit
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from nodes import ROOT, Nodes, cluster, end_all
from soak import LAUNCH_S, QUICK, SWEEP, TOLERANCE, difference, first, pids_of, steps

NET, BRIDGE = "10.77.0", "assay-br"
HOSTS = dict.fromkeys(("head", "a", "b", "c"), 1)
"""CPUs of each: a training of two whole CPUs is on two hosts, and leaves others for Ray Data, also when one is lost."""
WORKERS = ["--workers", "2", "--cpus-per-worker", "1"]
EACH = ["--checkpoint-steps", "1"]
LOSS = 0.05
"""Share of packets that a bad link drops, each way."""
FINGERPRINT = str(ROOT / "tasks" / "fingerprint.py")


def ip(words: str) -> None:
    """Change a link, an address or a namespace."""
    subprocess.run(["ip", *words.split()], check=True)


def link_of(name: str) -> str:
    """Return the end of a host's cable that is at the bridge."""
    return f"assay-{name}"


def namespaces(folder: Path, name: str) -> list[str]:
    """Return words that put a command onto a host, where the cluster's folder and shared memory are the host's own."""
    own = folder.with_name(f"{folder.name}-{name}")
    own.mkdir()
    mounts = f"mount --bind {own} {folder} && mount -t tmpfs -o size=400m tmpfs /dev/shm"
    return ["ip", "netns", "exec", link_of(name), "sh", "-c", f'{mounts} && exec "$0" "$@"']


@contextmanager
def hosts() -> Iterator[Nodes]:
    """Join namespaces by a bridge, and make a cluster of them that has no node yet."""
    addresses = {name: f"{NET}.{number}" for number, name in enumerate(HOSTS, 11)}
    try:
        ip(f"link add {BRIDGE} type bridge")
        ip(f"addr add {NET}.1/24 dev {BRIDGE}")
        ip(f"link set {BRIDGE} up")
        for name, address in addresses.items():
            space = link_of(name)
            ip(f"netns add {space}")
            ip(f"link add {space} type veth peer name eth0 netns {space}")
            ip(f"link set {space} master {BRIDGE} up")
            ip(f"-n {space} addr add {address}/24 dev eth0")
            ip(f"-n {space} link set eth0 up")
            ip(f"-n {space} link set lo up")
            ip(f"-n {space} route add default via {NET}.1")
        with cluster(address=addresses["head"]) as nodes:
            for name in HOSTS:
                nodes.within[name] = namespaces(nodes.folder, name)
            yield nodes
            for name in HOSTS:
                shutil.rmtree(nodes.folder.with_name(f"{nodes.folder.name}-{name}"), True)
    finally:
        for name in HOSTS:  # a namespace that is deleted keeps its cable for a while
            subprocess.run(["ip", "link", "del", link_of(name)], check=False)
            subprocess.run(["ip", "netns", "del", link_of(name)], check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], check=False)


class Command:
    """A command that runs on the head's host, as one types it there."""

    def __init__(self, nodes: Nodes, words: Sequence[str], storage: Path) -> None:
        head = nodes.running["head"].pid
        self.nodes, self.storage, self.log = nodes, storage, storage / "told.txt"
        self.hosts: set[str] = set()
        """On which workers of Ray Train were seen."""
        inside = ["nsenter", "--target", str(head), "--net", "--mount", f"--wd={storage}"]
        env = nodes.environment | {"OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*inside, *words], env=env, stdout=out, stderr=out, start_new_session=True
            )
        atexit.register(end_all, self.process.pid)

    def look(self) -> None:
        """See on which hosts workers are."""
        for name, node in self.nodes.running.items():
            if pids_of(node.pid, "RayTrainWorker"):
                self.hosts.add(name)

    def wait(self, updates: int | None = None) -> int | None:
        """Wait for its end, or until its runs have made so many updates; return the exit code."""
        end = time.monotonic() + LAUNCH_S
        while self.process.poll() is None and time.monotonic() < end:
            self.look()
            if updates and sum(last for _, _, last in steps(self.storage).values()) >= updates:
                return None
            time.sleep(0.2)
        if self.process.poll() is None:
            end_all(self.process.pid)
            self.process.wait()
        if self.process.returncode:
            print(self.log.read_text()[-2000:], flush=True)
        return self.process.returncode


def judge(storage: Path, calm: Path) -> str:
    """Compare what each run predicts with a run of the same settings in one process."""
    worst, runs = 0.0, sorted(storage.glob("fingerprint-*/predictions.parquet"))
    for path in runs:
        reference = calm / path.parent.name / "predictions.parquet"
        if not reference.exists():
            config = path.with_name("config.json")
            words = f"--config {config} --workers 0 --storage {calm}".split()
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(
                [sys.executable, FINGERPRINT, *words], env=env, check=True, capture_output=True
            )
        worst = max(worst, difference(path, reference))
    verdict = "yes" if runs and worst <= TOLERANCE else "NO"
    return f"{verdict}, {len(runs)} runs within {worst:.1g}"


def prepared(root: Path, name: str) -> Path:
    """Return a folder of runs that has images and pixels and no run."""
    return Path(shutil.copytree(root / "first", root / name))


def drain(nodes: Nodes, name: str) -> str:
    """Tell Ray that a host will be taken away, as a spot notice does, and take it away 5 s later; return what was done."""
    session, head = nodes.running[name].pid, nodes.running["head"].pid
    ids: list[str] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if os.getsid(int(entry.name)) == session:
                ids += re.findall(r"\0--node_id=(\w+)", (entry / "cmdline").read_text())
    words = f"--node-id {ids[0]} --reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot --deadline-remaining-seconds 5"
    inside = ["nsenter", "--target", str(head), "--net", "--mount", "ray", "drain-node"]
    address = ["--address", nodes.environment["RAY_ADDRESS"]]
    subprocess.run([*inside, *address, *words.split()], env=nodes.environment, check=True)
    time.sleep(5)
    nodes.kill(name)
    return f"{name} drained, and taken away after 5 s"


def cut(nodes: Nodes, name: str, seconds: float) -> str:
    """Cut the link of a host, for good if seconds are 0; return what was done."""
    ip(f"link set {link_of(name)} down")
    time.sleep(seconds or 1)
    if not seconds:
        return f"link of {name} cut"
    ip(f"link set {link_of(name)} up")
    return f"link of {name} down for {seconds:g} s"


def drop_packets(nodes: Nodes, name: str) -> str:
    """Let the link of a host drop one in twenty packets each way from now on; return what was done."""
    for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o")):
        rule = f"-A {chain} {side} eth0 -m statistic --mode random --probability {LOSS} -j DROP"
        inside = ["ip", "netns", "exec", link_of(name)]
        subprocess.run([*inside, "iptables", *rule.split()], check=True)
    return f"{LOSS:.0%} of the packets from and to {name} dropped"


def train(
    nodes: Nodes,
    root: Path,
    name: str,
    *words: str,
    fault: Callable[[Nodes, str], str] | None = None,
) -> str:
    """Train over two hosts, and do something to one that has a worker after some updates, if asked; return a row."""
    command = Command(
        nodes,
        [sys.executable, FINGERPRINT, *QUICK, *WORKERS, *words, "--storage", "."],
        prepared(root, name),
    )
    what = ""
    if fault is not None and command.wait(updates=3) is None:
        victim = sorted(command.hosts - {"head"})[0]
        what = fault(nodes, victim)
    code = command.wait()
    launches, begun = max((num, start) for num, start, _ in steps(command.storage).values())
    where = ", ".join(sorted(command.hosts))
    same = judge(command.storage, root / "calm")
    return f"| {name} | {where} | {what or '-'} | {launches}, the last at update {begun} | {code} | {same} |"


def sweep(nodes: Nodes, root: Path) -> str:
    """Search with trials of two workers; return a row."""
    script = str(ROOT / "sweeps" / "hyperparameters.py")
    words = ["--task", FINGERPRINT, *SWEEP, *QUICK, *WORKERS, *EACH, "--storage", "."]
    command = Command(nodes, [sys.executable, script, *words], prepared(root, "sweep"))
    code, where = command.wait(), ", ".join(sorted(command.hosts))
    return f"| sweep, 2 trials of 2 workers | {where} | - | 1 | {code} | {judge(command.storage, root / 'calm')} |"


def serve(nodes: Nodes, root: Path, run: Path) -> str:
    """Serve a bundle by four replicas on the cluster, and ask it from outside; return a row."""
    assay, storage = str(Path(sys.executable).with_name("assay")), prepared(root, "serving")
    registry = root / "registry"
    promote = [assay, "promote", run.name, "--storage", str(run.parent), "--force", "several hosts"]
    subprocess.run([*promote, "--registry", str(registry)], check=True, stdout=subprocess.DEVNULL)
    words = f"serve --registry {registry} --host 0.0.0.0 --port 8123 --app.cpus 0.5 --app.min-replicas 4 --app.max-replicas 4"
    command = Command(nodes, [assay, *words.split()], storage)
    image = next((root / "first").rglob("*.png")).read_bytes()
    answers: list[int] = []
    where: set[str] = set()
    end = time.monotonic() + LAUNCH_S
    # on a cluster of one's own the command ends once all is deployed
    while len(answers) < 100 and time.monotonic() < end and not command.process.poll():
        with suppress(OSError):
            request = urllib.request.Request(
                f"http://{NET}.11:8123/v1/fingerprint",
                data=image,
                headers={"Authorization": f"Bearer {nodes.environment['ASSAY_TOKEN']}"},
            )
            with urllib.request.urlopen(request, timeout=60) as reply:
                answers.append(json.load(reply)["answer"]["label"] != "")
        for name, node in nodes.running.items():
            if pids_of(node.pid, "ServeReplica:fingerprint"):
                where.add(name)
        time.sleep(0.05)
    command.process.terminate()
    code = command.wait()
    return f"| serving, 4 replicas | {', '.join(sorted(where))} | - | 1 | {code} | {len(answers)} answers |"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends what was begun
    root = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
    run = first(root)
    rows = []
    with hosts() as nodes:
        cases = {
            "ddp": lambda: train(nodes, root, "ddp"),
            "fsdp": lambda: train(nodes, root, "fsdp", "--strategy", "fsdp"),
            "sweep": lambda: sweep(nodes, root),
            "serving": lambda: serve(nodes, root, run),
            "outage": lambda: train(
                nodes, root, "outage", "--train.seed", "1", *EACH, fault=partial(cut, seconds=8)
            ),
            # whose many updates are not over before the host is gone
            "drained": lambda: train(
                nodes, root, "drained", *["--train.epochs", "30"], fault=drain
            ),
            "lost": lambda: train(
                nodes, root, "lost", "--train.seed", "3", *EACH, fault=partial(cut, seconds=0)
            ),
            # the last, since the link stays so
            "lossy": lambda: train(
                nodes, root, "lossy", "--train.seed", "4", *EACH, fault=drop_packets
            ),
        }
        # of the nodes: replicas do not see what the command's environment has
        nodes.environment["ASSAY_TOKEN"] = secrets.token_hex(16)
        nodes.start("head", HOSTS["head"])
        for case in sys.argv[1:] or cases:
            for name in HOSTS.keys() - nodes.running.keys():
                nodes.start(name, HOSTS[name])
            rows.append(cases[case]())
            print(rows[-1], flush=True)
    print("\n| what | workers or replicas on | fault | launches | exit code | same result |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
