"""What does a trial of a search cost over the same training as a plain run?

    python tests/benchmarks/overhead.py                     # writes overhead.md; about 8 minutes

The same training (learning rates within 1 %, one thread) as a plain run in the process that was
called, as a plain run on Ray, and as a trial of a search, one at a time. A trial's share of the
command is what 5 trials take more than 1, over 4: Python, Ray and torch are started once a search,
and the test is judged, the bundle shipped and the report made once a search, but by every plain run.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
from starts import ROOT, SMALL

NUM = 4
QUICK = [*SMALL, *shlex.split("--train.epochs 6 --optim.lr 1e-4 --cpus-per-worker 1")]
SEARCH = shlex.split(
    "--eta 0 --parallel 1 --space optim.lr=1e-4..1.01e-4 optim.weight_decay=0.01 model.dropout=0.0"
)
PLAIN, SWEEP = "tasks/fingerprint.py", "sweeps/hyperparameters.py"


def timed(script: str, storage: Path, *options: str) -> tuple[float, list[tuple[float, float]]]:
    """Seconds of the whole command; of each of its trainings, seconds and median seconds a step."""
    began = time.time()
    command = [sys.executable, str(ROOT / script), *QUICK, "--storage", str(storage), *options]
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    seconds, trainings = time.time() - began, []
    for path in sorted(storage.glob("fingerprint-*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if lines[0]["time"] >= began:
            assert lines[0]["threads"] == 1
            steps = [line["step_s"] for line in lines if line["kind"] == "step"]
            trainings.append((lines[-1]["time"] - lines[0]["time"], statistics.median(steps)))
    return seconds, trainings


def main() -> None:
    """Plain runs in turns, then searches of 1 and of 5 trials."""
    rows, plain, ray = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        timed(PLAIN, storage, "--workers", "0", "--train.seed", "99")  # fills the store
        for seed in map(str, range(NUM)):
            plain.append(timed(PLAIN, storage, "--workers", "0", "--train.seed", seed))
            again = ("--train.seed", seed, "--again")
            ray.append(timed(PLAIN, storage, "--workers", "1", *again))
        short, _ = timed(SWEEP, storage, "--trials", "1", "--sweep-seed", "1", *SEARCH)
        long, trials = timed(SWEEP, storage, "--trials", "5", "--sweep-seed", "2", *SEARCH)
    for name, runs in (("plain run in this process", plain), ("plain run on Ray", ray)):
        trainings = [training for _, several in runs for training in several]
        rows.append(_row(name, trainings, statistics.median(seconds for seconds, _ in runs)))
    trial = (long - short) / 4
    rows.append(_row("trial of a search", trials, trial))
    header = ["", "a step (ms)", "training (s)", "of the command (s)", "beside training (s)"]
    bench.write(
        __file__,
        f"One training of 6 epochs on tiny images, {NUM} plain runs of each kind (medians), a search of 5 trials and one of 1, one training at a time.",
        bench.table(header, rows),
        f"Once a search: {short - trial:.1f} s (Python, Ray and torch started, the selected trial judged, its bundle and both reports).",
    )


def _row(name: str, trainings: list[tuple[float, float]], command: float) -> list[str]:
    training = statistics.median(seconds for seconds, _ in trainings)
    step = statistics.median(step for _, step in trainings)
    numbers = (
        f"{1e3 * step:.1f}",
        f"{training:.1f}",
        f"{command:.1f}",
        f"{command - training:.1f}",
    )
    return [name, *numbers]


if __name__ == "__main__":
    main()
