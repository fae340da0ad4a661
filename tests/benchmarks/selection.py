"""Does the scorer find the planted signal at every seed? Recipes side by side, all seeds reported.

    python tests/benchmarks/selection.py --storage runs          # ten seeds, two at a time

Runs the embedded parts with each recipe at each seed, and random patches at each seed as the
baseline, and writes selection.md beside this file. What is finished is not run again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "tasks" / "fingerprint.py"
SEEDS = range(10)
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

Sets = dict[str, dict[str, dict[str, float]]]


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--parallel", type=int, default=2)
    options = parser.parse_args()
    storage = options.storage.absolute()
    found: dict[str, list[dict[str, Sets]]] = {}
    for name, settings in RECIPES.items():
        found[name] = [run(storage, SEEDS[0], settings)]  # draws the parts and fills the store
        with ThreadPoolExecutor(options.parallel) as pool:
            found[name] += pool.map(lambda seed: run(storage, seed, settings), SEEDS[1:])  # noqa: B023
        print(f"{name}: {share_found(found[name])} of {len(SEEDS)}", flush=True)
        (HERE / "selection.md").write_text(page(found))


def run(storage: Path, seed: int, settings: tuple[str, ...]) -> dict[str, Sets]:
    """Metrics by run (the method, `random`), by set, by name."""
    where = ("--workers", "0", "--storage", str(storage))
    command = [sys.executable, str(SCRIPT), "--train.seed", str(seed), *where, *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    folders = dict(line.split(": ") for line in done.stdout.strip().splitlines()[-3:-1])
    results = {
        name: json.loads((Path(folder) / "result.json").read_text())["sets"]
        for name, folder in folders.items()
    }
    return {
        name: {kind: held["metrics"] for kind, held in sets.items()}
        for name, sets in results.items()
    }


def metric(made: dict[str, Sets], name: str, of: str = "fingerprint") -> dict[str, float]:
    """One metric of the unseen designs."""
    return made[of]["test_unseen"][name]


def share_found(made: list[dict[str, Sets]]) -> int:
    """Seeds whose patches lie on planted signal."""
    return sum(metric(m, "patches_on_signal")["value"] >= FOUND for m in made)


def ahead(made: dict[str, Sets]) -> bool:
    """At least ten points above random patches, with disjoint intervals."""
    ours, random = metric(made, "accuracy"), metric(made, "accuracy", "random")
    return ours["value"] - random["value"] >= 0.1 and ours["low"] > random["high"]


def page(found: dict[str, list[dict[str, Sets]]]) -> str:
    """Recipes in rows; below, every seed."""
    first = found[next(iter(found))]
    accuracy = metric(first[0], "accuracy")
    lines = [
        f"Embedded parts, {len(SEEDS)} seeds, unseen designs: {accuracy['num']:.0f} images of {accuracy['num_groups']:.0f} parts each. "
        f"A scorer has found the signal where at least {FOUND:.0%} of its patches lie on it; ahead is a seed "
        "whose accuracy is at least 10 points above random patches, with disjoint 95 % intervals over parts.",
        "",
        "| recipe | found | ahead | patches on signal, mean (least) | accuracy, mean (least) |",
        "|---|---|---|---|---|",
    ]
    for name, made in found.items():
        hits = [metric(m, "patches_on_signal")["value"] for m in made]
        right = [metric(m, "accuracy")["value"] for m in made]
        lines.append(
            f"| {name} | {share_found(made)} of {len(made)} | {sum(map(ahead, made))} of {len(made)} | "
            f"{np.mean(hits):.3f} ({min(hits):.3f}) | {np.mean(right):.3f} ({min(right):.3f}) |"
        )
    right = [metric(m, "accuracy", "random")["value"] for m in first]
    hits = [metric(m, "patches_on_signal", "random")["value"] for m in first]
    lines += [
        f"| random patches on the part | - | - | {np.mean(hits):.3f} ({min(hits):.3f}) | {np.mean(right):.3f} ({min(right):.3f}) |",
        "",
        "Every seed, accuracy on unseen designs (patches on signal):",
        "",
        "| recipe | " + " | ".join(map(str, SEEDS)) + " |",
        "|---|" + "---|" * len(SEEDS),
        *(f"| {name} | {each(made)} |" for name, made in found.items()),
        f"| random patches on the part | {each(first, 'random')} |",
        "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({platform.machine()}), no GPU; `python tests/benchmarks/selection.py`.",
    ]
    return "\n".join(lines) + "\n"


def each(made: list[dict[str, Any]], of: str = "fingerprint") -> str:
    """Cells of one row of the second table."""
    pairs = [
        (metric(m, "accuracy", of)["value"], metric(m, "patches_on_signal", of)["value"])
        for m in made
    ]
    return " | ".join(f"{right:.2f} ({hits:.2f})" for right, hits in pairs)


if __name__ == "__main__":
    main()
