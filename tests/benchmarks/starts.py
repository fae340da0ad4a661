"""Does a sweep ever hang when it starts, and what does a trial cost beside its training?

    python tests/benchmarks/starts.py                       # writes starts.md; about 10 minutes

20 times in a row a search of 2 trials is begun in a new process on a Ray of 2 CPUs; each may take
300 s. Overhead is the time of the whole command less what the longer of its two trials trained,
and, in a search of 8 trials, the time from the end of one trial to the begin of the next.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench

ROOT = Path(__file__).parents[2]
NUM, LIMIT_S = 20, 300
SMALL = shlex.split(
    "--preset smoke --model.mode random --patches.image-px 128 --patches.overview-px 32 "
    "--patches.patch-px 16 --model.warmup-k 4"
)
"""Options of a training whose images are tiny."""
SEARCH = shlex.split(
    "--train.epochs 1 --eta 0 "
    "--space optim.lr=1e-4..1e-2,log optim.weight_decay=0.01 model.dropout=0.0"
)


def search(storage: Path, trials: int, seed: int) -> tuple[bool, float, list[dict[str, float]]]:
    """Whether a search came to its end, its seconds, and when each of its trials was busy."""
    script = str(ROOT / "sweeps" / "hyperparameters.py")
    own = ["--storage", str(storage), "--trials", str(trials), "--sweep-seed", str(seed)]
    command = [sys.executable, script, *SMALL, *SEARCH, *own]
    began = time.time()
    try:
        ended = subprocess.run(command, capture_output=True, timeout=LIMIT_S).returncode == 0
    except subprocess.TimeoutExpired:
        ended = False
    seconds, busy = time.time() - began, []
    for path in storage.glob("fingerprint-*/run.json"):
        record = json.loads(path.read_text())
        launch = record["launches"][0]
        if launch["time"] >= began and launch.get("sweep"):
            lines = (path.parent / "metrics.jsonl").read_text().splitlines()
            last = json.loads(lines[-1])["time"]
            busy.append({"began": launch["time"], "ended": last, "after": launch["time"] - began})
    return ended, seconds, busy


def main() -> None:
    """Start 20 times, then measure the gaps of one longer search."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        search(storage, 1, 1000)  # draws the images and fills the store
        starts = [search(storage, 2, seed) for seed in range(NUM)]
        _, _, busy = search(storage, 8, 500)
    hung = sum(not ended for ended, _, _ in starts)
    first = [min(one["after"] for one in busy) for _, _, busy in starts if busy]
    lanes: list[float] = []
    gaps = []
    for one in sorted(busy, key=lambda b: b["began"]):
        free = [end for end in lanes if end <= one["began"]]
        if free:
            gaps.append(one["began"] - max(free))
            lanes.remove(max(free))
        lanes.append(one["ended"])
    rows = {
        "whole command (s)": [seconds for _, seconds, _ in starts],
        "until the first trial begins (s)": first,
        "from one trial's end to the next one's begin, judging included (s)": gaps,
    }
    bench.write(
        __file__,
        f"{NUM} starts of a search of 2 trials on 2 CPUs, one after the other: {hung} hung or failed (limit {LIMIT_S} s each).",
        bench.table(
            ["", "median", "least", "most"],
            [[name, *_three(values)] for name, values in rows.items()],
        ),
        "The first trial waits for Python, Ray and two processes that import torch; those that follow use the same processes.",
    )


def _three(values: list[float]) -> list[str]:
    if not values:
        return ["", "", ""]
    return [f"{value:.1f}" for value in (statistics.median(values), min(values), max(values))]


if __name__ == "__main__":
    main()
