"""What does stopping early cost? TPE with ASHA, the full budget, and random search at equal epochs.

    python tests/benchmarks/asha.py --storage runs          # writes asha.md; about 40 minutes on 2 cores

On the embedded parts, of each seed: every one of the trials to its end (random), as many with TPE
and ASHA, and random ones to their end until the epochs of ASHA are used up: the first of those of the
full budget. Each has a storage of its own, since a trial that is there as a finished run is taken as
it is. Compared is the score of val, which all three select by, and of the selected run on unseen designs.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run the three methods at each seed, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--grace", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows: list[list[str]] = []
    for seed in range(options.seeds):
        common = ["--sweep-seed", str(seed), "--train.epochs", str(options.epochs)]
        many = [*common, "--trials", str(options.trials)]
        whole = options.storage.absolute()
        halved, short = whole / "asha", whole / "equal"
        full = search(whole, [*many, "--sampling", "random", "--eta", "0"])
        rungs = ["--eta", "3", "--grace", str(options.grace)]
        asha = search(halved, [*many, "--sampling", "tpe", *rungs])
        spent = asha["budget"]["spent"]
        for run in whole.glob("fingerprint-*"):  # what is there is not trained again
            shutil.copytree(run, short / run.name, dirs_exist_ok=True)
        limits = ["--trials", "999", "--epochs", str(spent), "--parallel", "1"]
        equal = search(short, [*common, *limits, "--sampling", "random", "--eta", "0"])
        methods = {
            "full budget, random": (whole, full),
            "ASHA + TPE": (halved, asha),
            "random, equal epochs": (short, equal),
        }
        for name, (storage, sweep) in methods.items():
            epochs = sweep["budget"]["spent"]
            share = f"{epochs / full['budget']['spent']:.0%}"
            counts = [str(sweep["tried"]), str(epochs), share]
            rows.append([str(seed), name, *counts, *scores(storage, sweep)])
        header = ["seed", "method", "tried", "epochs", "of full"]
        bench.write(
            __file__,
            f"Embedded parts, preset designs, {options.epochs} epochs, {options.trials} trials, default search space, rungs from epoch {options.grace}. "
            "Epochs of random at equal epochs end with the trial that passes them.",
            bench.table([*header, "val of the selected", "unseen designs"], rows),
        )


def search(storage: Path, options: list[str]) -> dict[str, Any]:
    """The sweep.json of one search."""
    where = ["--preset", "designs", "--storage", str(storage)]
    command = [sys.executable, str(ROOT / "sweeps" / "hyperparameters.py"), *where, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 2:
        raise SystemExit(done.stderr)
    report = done.stdout.strip().splitlines()[-1].removeprefix("report: ")
    sweep: dict[str, Any] = json.loads((Path(report).parent / "sweep.json").read_text())
    return sweep


def scores(storage: Path, sweep: dict[str, Any]) -> list[str]:
    """Val and unseen designs of the selected run, with their intervals."""
    sets = json.loads((storage / sweep["selected"] / "result.json").read_text())["sets"]
    estimates = [sets[name]["metrics"]["accuracy"] for name in ("val", "test_unseen")]
    return [f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in estimates]


if __name__ == "__main__":
    main()
