"""Does the scorer find the planted signal at every seed? Recipes side by side, all seeds reported.

    python tests/benchmarks/selection.py                       # every recipe at ten seeds, hours
    python tests/benchmarks/selection.py --seeds 3             # those at the first three
    python tests/benchmarks/selection.py --parallel 2          # two runs at a time, a thread each

Runs the embedded parts with each recipe at each seed, and random patches at each seed as the
baseline. Numbers are kept in selection.json beside this file and not measured again (remove the
file to start anew); selection.md is made of them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from bench import table

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "tasks" / "fingerprint.py"
KEPT = HERE / "selection.json"
FOUND = 0.8
"""Share of patches on planted signal from which a scorer has found it."""
COLD = ("--model.warmup", "0", "--model.alone", "0")
MIXED = ("--model.num-noise", "200", "--model.sigma", "0.05")
RECIPES: dict[str, tuple[str, ...]] = {
    "default: score function, warm-up, guide": (),
    "score function, warm-up, no guide": ("--model.guide", "0"),
    "score function alone": COLD,
    "masked leave-one-out, warm-up, guide": ("--model.estimator", "masked_loo", *MIXED),
    "masked leave-one-out alone": ("--model.estimator", "masked_loo", *MIXED, *COLD),
    "diagonal alone": ("--model.estimator", "diagonal", *MIXED, *COLD),
    "plain alone": ("--model.estimator", "plain", *MIXED, *COLD),
}

Metrics = dict[str, dict[str, float]]
"""Of the unseen designs, by name."""
Found = dict[str, dict[str, dict[str, Metrics]]]
"""By recipe, by seed, by run (the method, `random`)."""


def main() -> None:
    """Run what is missing, and write numbers and table after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--parallel", type=int, default=1)
    options = parser.parse_args()
    found: Found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    missing = [
        (name, seed)
        for name in RECIPES
        for seed in map(str, range(options.seeds))
        if seed not in found.get(name, {})
    ]
    storage = options.storage.absolute()
    with ThreadPoolExecutor(options.parallel) as pool:
        runs = {
            pool.submit(run, storage, seed, RECIPES[name]): (name, seed) for name, seed in missing
        }
        for done in as_completed(runs):
            name, seed = runs[done]
            found.setdefault(name, {})[seed] = done.result()
            keep(found)


def keep(found: Found) -> None:
    """Write numbers and table, recipes and seeds in order."""
    ordered = {name: dict(sorted(found[name].items())) for name in RECIPES if name in found}
    KEPT.write_text(json.dumps(ordered, indent=1) + "\n")
    (HERE / "selection.md").write_text(page(ordered))


def run(storage: Path, seed: str, settings: tuple[str, ...]) -> dict[str, Metrics]:
    """Accuracy and hits of the method and of random patches."""
    where = ("--workers", "0", "--storage", str(storage))
    command = [sys.executable, str(SCRIPT), "--train.seed", seed, *where, *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    folders = dict(line.split(": ") for line in done.stdout.strip().splitlines()[-3:-1])
    made = {}
    for name, folder in folders.items():
        held = json.loads((Path(folder) / "result.json").read_text())["sets"]["test_unseen"]
        made[name] = {key: held["metrics"][key] for key in ("accuracy", "patches_on_signal")}
    return made


def share_found(made: dict[str, dict[str, Metrics]]) -> int:
    """Seeds whose patches lie on planted signal."""
    return sum(m["fingerprint"]["patches_on_signal"]["value"] >= FOUND for m in made.values())


def ahead(made: dict[str, Metrics]) -> bool:
    """At least ten points above random patches, with disjoint intervals."""
    ours, random = made["fingerprint"]["accuracy"], made["random"]["accuracy"]
    return ours["value"] - random["value"] >= 0.1 and ours["low"] > random["high"]


def page(found: Found) -> str:
    """Recipes in rows; below, every seed."""
    first = next(iter(found.values()))
    accuracy = first["0"]["random"]["accuracy"]
    rows = []
    for name, made in found.items():
        counts = (
            f"{share_found(made)} of {len(made)}",
            f"{sum(map(ahead, made.values()))} of {len(made)}",
        )
        rows.append([name, *counts, *spread(made, "fingerprint")])
    rows.append(["random patches on the part", "-", "-", *spread(first, "random")])
    seeds = max(found.values(), key=len)
    every = [[name, *each(made, seeds, "fingerprint")] for name, made in found.items()]
    every.append(["random patches on the part", *each(first, seeds, "random")])
    header = [
        "recipe",
        "found",
        "ahead",
        "patches on signal, mean (least)",
        "accuracy, mean (least)",
    ]
    machine = f"{os.cpu_count()} cores ({platform.machine()}), no GPU"
    parts = [
        f"Embedded parts, unseen designs: {accuracy['num']:.0f} images of {accuracy['num_groups']:.0f} parts a seed, one thread a run. "
        f"A scorer has found the signal where at least {FOUND:.0%} of its patches lie on it; ahead is a seed "
        "whose accuracy is at least 10 points above random patches, with disjoint 95 % intervals over parts; "
        "each recipe is compared with random patches trained by its own settings, of which the default's are shown.",
        table(header, rows),
        "Every seed, accuracy on unseen designs (patches on signal); a dash is not run:",
        table(["recipe", *seeds], every),
        f"{time.strftime('%Y-%m-%d')}, {machine}; `python tests/benchmarks/selection.py`.\n",
    ]
    return "\n\n".join(parts)


def spread(by_seed: dict[str, dict[str, Metrics]], of: str) -> list[str]:
    """Mean and least of hits and accuracy over seeds."""
    cells = []
    for key in ("patches_on_signal", "accuracy"):
        values = [runs[of][key]["value"] for runs in by_seed.values()]
        cells.append(f"{np.mean(values):.3f} ({min(values):.3f})")
    return cells


def each(made: dict[str, dict[str, Metrics]], seeds: Iterable[str], of: str) -> list[str]:
    """Cells of one row of the second table."""
    cells = []
    for seed in seeds:
        own = made.get(seed, {}).get(of)
        pair = own and (own["accuracy"]["value"], own["patches_on_signal"]["value"])
        cells.append(f"{pair[0]:.2f} ({pair[1]:.2f})" if pair else "-")
    return cells


if __name__ == "__main__":
    main()
