"""Random kills over training, sweeps and serving, for so many minutes; prints what was lost and ends with a table.

    PYTHONPATH=platform python tests/chaos/soak.py --minutes 20

A cluster of three nodes and a server are begun on this machine. Round after round a training or a sweep of two
workers runs, or the server is asked without pause, and something of it is killed by SIGKILL: a worker, a task of Ray
Data, the controller, a trial, the command itself, a node, a replica, a proxy. Commands are given again until they
end; what they predict is then compared with runs that nothing disturbed. Nothing is killed that this did not begin.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from nodes import ROOT, Nodes, cluster, end_all, free_ports

from assay.errors import ServeError
from assay.serve.client import Client

QUICK = shlex.split(
    "--preset smoke --train.epochs 3 --train.patience 0 --model.mode random --parts.size-px 256 --parts.parts-per-seen 3 "
    "--patches.image-px 256 --patches.overview-px 64 --patches.patch-px 24"
)
# what dropout leaves out is drawn by each worker, so that two of them do not equal one
SWEEP = shlex.split(
    "--trials 2 --parallel 1 --eta 0 --space optim.lr=1e-4..1e-2,log model.dropout=0"
)
WORKERS = shlex.split("--workers 2 --cpus-per-worker 0.5 --checkpoint-steps 1")
PARTS = {
    "training": ("command", "node", "RayTrainWorker", "TrainController", "MapBatches"),
    "sweep": ("command", "node", "RayTrainWorker", "TrainController", "ImplicitFunc"),
    "serving": ("ServeReplica", "ServeController", "ProxyActor", "HAProxyManager"),
}
"""What is killed of each: the names that Ray gives its processes, besides the first two."""

BACK_S = 30
"""Until another node is there in the place of one that was killed, as an autoscaler brings it."""

LAUNCHES, LAUNCH_S = 5, 600
"""Times that a command is given, and seconds that it may take, until it counts as one that hangs."""

TOLERANCE = 2e-2
"""Of logits: two workers sum in another order than one."""


@dataclass
class Round:
    """What was done to one thing, and what became of it."""

    what: str
    killed: list[str] = field(default_factory=list)
    launches: int = 0
    ends: list[str] = field(default_factory=list)
    """Of each launch: its exit code, and the last line that it told on stderr."""
    lost: int = 0
    """Updates that were made twice; of serving, requests that failed."""
    asked: int = 0
    same: str = ""

    def row(self) -> str:
        codes = ", ".join(end.split(" ")[0] for end in self.ends)
        asked = f" of {self.asked}" if self.asked else ""
        return f"| {self.what} | {', '.join(self.killed) or 'nothing in time'} | {self.launches} | {codes} | {self.lost}{asked} | {self.same} |"


def steps(folder: Path) -> dict[str, list[int]]:
    """Return of each run the updates at which its launches began, and its last one."""
    launches = {}
    for path in folder.glob("fingerprint-*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        starts = [line["step"] for line in lines if line["kind"] == "start"]
        launches[path.parent.name] = [len(starts), starts[-1], lines[-1]["step"]] if lines else []
    return {name: values for name, values in launches.items() if values}


def pids_of(session: int, name: str) -> list[int]:
    """Return processes of a session that Ray calls so."""
    pids: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if os.getsid(int(entry.name)) == session and words.startswith(b"ray::"):
                    pids += [int(entry.name)] if name.encode() in words else []
    return pids


def kill_one(rng: random.Random, sessions: list[int], name: str) -> bool:
    """Kill a process of these sessions by the name that Ray gives it; tell whether there was one."""
    pids = [pid for session in sessions for pid in pids_of(session, name)]
    if not pids:
        return False
    with suppress(ProcessLookupError):
        os.kill(rng.choice(sorted(pids)), signal.SIGKILL)
    return True


class Batch:
    """A training or a sweep of two workers, killed and begun again until it ends."""

    def __init__(self, nodes: Nodes, root: Path, rng: random.Random) -> None:
        self.nodes, self.root, self.rng = nodes, root, rng
        self.num = 0
        self.back: dict[str, float] = {}
        """When nodes that were killed are there again."""
        self.struck: dict[str, tuple[int, int]] = {}
        """Of runs under way at the last kill, how often they had been launched, and their last update."""

    def words(self, what: str, storage: Path) -> list[str]:
        task = str(ROOT / "tasks" / "fingerprint.py")
        script = [str(ROOT / "sweeps" / "hyperparameters.py"), "--task", task, *SWEEP]
        start = [task] if what == "training" else script
        return [sys.executable, *start, *QUICK, *WORKERS, "--storage", str(storage)]

    def play(self, what: str) -> Round:
        """Run it once, with one or two kills."""
        self.num += 1
        self.struck = {}
        done, storage = Round(what), self.root / f"round-{self.num}"
        shutil.copytree(
            self.root / "first", storage
        )  # images and pixels, which need no second making
        self.replace_nodes(due=float("inf"))
        kills = [self.rng.choice(PARTS[what]) for _ in range(self.rng.choice((1, 2)))]
        while done.launches < LAUNCHES:
            done.launches += 1
            end = self.launch(self.words(what, storage), storage, kills, done)
            done.ends.append(end)
            if end.startswith("0 "):
                break
        done.same = self.judge(storage)
        return done

    def launch(self, words: list[str], storage: Path, kills: list[str], done: Round) -> str:
        log = storage / f"launch-{done.launches}.txt"
        env = self.nodes.environment | {"OMP_NUM_THREADS": "1"}
        with log.open("wb") as out:
            command = subprocess.Popen(
                words, env=env, cwd=storage, stdout=out, stderr=out, start_new_session=True
            )
        end = time.monotonic() + LAUNCH_S
        due = self.rng.randint(1, 8)
        while command.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
            self.replace_nodes(time.monotonic())
            now = steps(storage)
            self.count_lost(now, done)
            if kills and sum(last for _, _, last in now.values()) >= due:
                wanted = [kills.pop(0), *self.rng.sample(PARTS[done.what], len(PARTS[done.what]))]
                # of Ray Data's tasks there is none at most times
                name = next((name for name in wanted if self.strike(name, command)), "")
                if name:
                    done.killed.append(name)
                    self.struck = {run: (num, last) for run, (num, _, last) in now.items()}
                due = sum(last for _, _, last in now.values()) + self.rng.randint(2, 10)
        if command.poll() is None:
            end_all(command.pid)
            command.wait()
            return "hung"
        told = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{command.returncode} {told[-1][:300] if told else ''}"

    def strike(self, name: str, command: "subprocess.Popen[bytes]") -> bool:
        if name == "command":
            end_all(command.pid)
            return True
        if name == "node":
            left = [each for each in self.nodes.running if each != "head"]
            if len(left) == 2:  # one must stay: with the head alone there is no room
                node = self.rng.choice(left)
                self.nodes.kill(node)
                self.back[node] = time.monotonic() + BACK_S
            return len(left) == 2
        sessions = [node.pid for node in self.nodes.running.values()]
        return kill_one(self.rng, sessions, name)

    def replace_nodes(self, due: float) -> None:
        """Begin the nodes anew whose time has come."""
        for name in [name for name, at in self.back.items() if at <= due]:
            del self.back[name]
            self.nodes.start(name, 1)

    def count_lost(self, now: dict[str, list[int]], done: Round) -> None:
        """Add the updates that a run which was under way at a kill makes anew, once it has begun again."""
        for name, (launches, last) in list(self.struck.items()):
            if now.get(name, [0])[0] > launches:
                done.lost += max(0, last - now[name][1])
                del self.struck[name]

    def judge(self, storage: Path) -> str:
        """Compare what each run predicts with a run of the same settings that nothing disturbs."""
        worst = 0.0
        runs = sorted(storage.glob("fingerprint-*/predictions.parquet"))
        for path in runs:
            calm = self.root / "calm"
            words = f"--config {path.parent}/config.json --workers 0 --storage {calm}"
            task = str(ROOT / "tasks" / "fingerprint.py")
            reference = calm / path.parent.name / "predictions.parquet"
            if not reference.exists():
                command = [sys.executable, task, *words.split()]
                env = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run(command, env=env, check=True, capture_output=True)
            worst = max(worst, difference(path, reference))
        verdict = "yes" if runs and worst <= TOLERANCE else "NO"
        return f"{verdict}, {len(runs)} runs within {worst:.1g}"


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of logits over the rows that both predict."""
    rows = [
        {(row["id"], row["split"]): row["logits"] for row in pq.read_table(path).to_pylist()}
        for path in (one, other)
    ]
    both = rows[0].keys() & rows[1].keys()
    assert both
    return max(float(np.abs(np.subtract(rows[0][k], rows[1][k])).max()) for k in both)


class Served:
    """A server that is asked without pause while something of it is killed."""

    def __init__(self, client: Client, image: Path, session: int, rng: random.Random) -> None:
        self.client, self.image, self.session, self.rng = client, image, session, rng
        self.first = client.judge("fingerprint", image).answer

    def play(self) -> Round:
        done, ended = Round("serving", launches=1), threading.Event()
        wrong = 0

        def ask() -> None:
            nonlocal wrong
            while not ended.is_set():
                done.asked += 1
                try:
                    wrong += self.client.judge("fingerprint", self.image).answer != self.first
                except ServeError:
                    done.lost += 1

        thread = threading.Thread(target=ask)
        thread.start()
        for _ in range(3):
            name = self.rng.choice(PARTS["serving"])
            if kill_one(self.rng, [self.session], name):
                done.killed.append(name)
            time.sleep(self.rng.uniform(5, 15))
        ended.set()
        thread.join()
        done.ends = ["runs on"]
        done.same = "yes" if not wrong else f"NO, {wrong} answers"
        return done


@contextmanager
def server(root: Path, run: Path, rng: random.Random) -> Iterator[Served]:
    """Serve a run's bundle by the command, on a Ray of its own."""
    port, registry = free_ports(9)[8], root / "registry"
    assay = str(Path(sys.executable).with_name("assay"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    promote = [assay, "promote", run.name, "--storage", str(run.parent), "--force", "a soak"]
    subprocess.run([*promote, "--registry", str(registry)], env=env, check=True)
    words = [assay, "serve", "--registry", str(registry), "--port", str(port), "--open"]
    with (root / "serve.txt").open("wb") as out:
        command = subprocess.Popen(
            words, env=env, cwd=root, stdout=out, stderr=out, start_new_session=True
        )
    try:
        end = time.monotonic() + LAUNCH_S
        while "/v1/" not in (root / "serve.txt").read_text():
            assert command.poll() is None, (root / "serve.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.5)
        image = next((root / "first").rglob("*.png"))
        yield Served(Client(f"http://127.0.0.1:{port}", retries=8), image, command.pid, rng)
    finally:
        command.terminate()
        with suppress(subprocess.TimeoutExpired):
            command.wait(60)
        end_all(command.pid)
        command.wait()


def first(root: Path) -> Path:
    """Train once without Ray, which makes what all rounds start from; return the run."""
    task = str(ROOT / "tasks" / "fingerprint.py")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, task, *QUICK, "--workers", "0", "--storage", str(root / "calm")]
    subprocess.run(words, env=env, check=True, capture_output=True)
    run = next((root / "calm").glob("fingerprint-*"))
    ignored = shutil.ignore_patterns("fingerprint-*")
    shutil.copytree(root / "calm", root / "first", ignore=ignored)
    return run


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends what was begun
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, root = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    rounds: list[Round] = []
    run = first(root)
    with cluster() as nodes, server(root, run, rng) as served:
        for name in ("head", "a", "b"):
            nodes.start(name, 1)
        batch, began = Batch(nodes, root, rng), time.monotonic()
        order = ["training", "serving", "sweep"]
        while time.monotonic() - began < 60 * given.minutes:
            what = order[len(rounds) % len(order)]
            rounds.append(served.play() if what == "serving" else batch.play(what))
            print(f"{time.monotonic() - began:.0f} s {rounds[-1]}", flush=True)
        minutes = (time.monotonic() - began) / 60
    print(f"\n{len(rounds)} rounds in {minutes:.0f} minutes, seed {given.seed}\n")
    print("| what | killed | launches | exit codes | lost updates or requests | same result |")
    print("|---|---|---|---|---|---|")
    print("\n".join(each.row() for each in rounds))
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
