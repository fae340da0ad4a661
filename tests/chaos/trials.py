"""Trials at once on one cluster: how many CPUs Ray Data takes for each, with the share that sweeps give it and without.

    PYTHONPATH=platform python tests/chaos/trials.py STORAGE

A Ray of twelve CPUs (by its own count; this machine may have fewer, for what is prepared sleeps) and four trials of one
CPU each, which read batches by Ray Data as the workers of a sweep do. Each batch notes when it was prepared and for
whom. Prints a table.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.order import steps_of
from assay.experiment.fill import fill
from assay.experiment.resources import cpus_for_data
from assay.experiment.stream import ray_stream
from assay.train.source import TaskSource, load_task

CPUS, TRIALS, BATCHES, SLEEP_S = 12, 4, 96, 0.25
TASK = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
SLOW = b'''


class Slow(Fingerprint):
    """Takes a moment for a batch, and notes which trial it was for and when it began."""

    @classmethod
    def prepare(cls, config, dataset, rows):
        import os, time
        from pathlib import Path

        began = time.time()
        time.sleep(float(os.environ["ASSAY_SLEEP_S"]))
        note = Path(os.environ["ASSAY_NOTES"], f"{config.train.seed}-{os.getpid()}")
        with note.open("a") as file:
            file.write(f"{began} {time.time()}\\n")
        return super().prepare(config, dataset, rows)


Fingerprint.__module__ = "base"
'''


class Trial:
    """Reads one pass of batches."""

    def ready(self) -> bool:
        """Tell that the process is there."""
        return True

    def read(self, number: int, storage: Path, share: float | None) -> tuple[float, float]:
        """Return when the first batch came and when the last."""
        source = TaskSource("slow", TASK.read_bytes() + SLOW)
        task = load_task(source)
        config = task.presets()["smoke"]
        config = replace(config, train=replace(config.train, seed=number))
        manifest = task.manifest(config, storage)
        pixels = Pixels(Store(str(storage / "store")), manifest.column("content"))
        rows = np.arange(len(manifest.column("id")))
        dataset = Dataset.of(manifest, pixels, rows)
        # blocks of one batch each, so that Ray Data has as many pieces of work as it can be given CPUs
        steps = steps_of(
            [np.resize(rows, 64)[i % 60 : i % 60 + 4].repeat(16) for i in range(BATCHES)], 0
        )
        times = [
            time.time()
            for _ in ray_stream(source, config, dataset, share, TRIALS)(steps, train=True)
        ]
        return times[0], times[-1]


def most_at_once(folder: Path, pattern: str) -> int:
    """The largest number of batches that were prepared at one time."""
    lines = [
        line.split() for path in folder.glob(pattern) for line in path.read_text().splitlines()
    ]
    ends = sorted((float(t), step) for begin, end in lines for t, step in ((begin, 1), (end, -1)))
    return int(np.cumsum([step for _, step in ends]).max())


def measure(name: str, storage: Path, share: float | None) -> list[str]:
    """Let all trials read at once; return lines of the table."""
    folder = storage / f"notes-{name.partition(' ')[0]}-{time.time_ns()}"
    folder.mkdir(parents=True)
    environment = {"ASSAY_NOTES": str(folder), "ASSAY_SLEEP_S": str(SLEEP_S)}
    ray.init(
        address="local",
        num_cpus=CPUS,
        log_to_driver=False,
        runtime_env={"env_vars": environment | dict(PYTHONPATH=os.environ["PYTHONPATH"])},
    )
    try:
        begin: Any = ray.remote(num_cpus=1)(Trial)
        trials = [begin.remote() for _ in range(TRIALS)]
        ray.get([each.ready.remote() for each in trials])
        began = time.time()
        # one after the other, as a sweep begins them: the first has the cluster for itself for a while
        asked = []
        for number, trial in enumerate(trials):
            asked.append(trial.read.remote(number, storage, share))
            time.sleep(2)
        times = ray.get(asked)
    finally:
        ray.shutdown()
    own = [most_at_once(folder, f"{n}-*") for n in range(TRIALS)]
    waits = [first - began - 2 * n for n, (first, _) in enumerate(times)]
    last = max(end for _, end in times) - began
    words = [
        ", ".join(map(str, own)),
        str(most_at_once(folder, "*")),
        ", ".join(f"{w:.0f}" for w in waits),
        f"{last:.0f}",
    ]
    return [name, *words]


def main() -> None:
    """Draw the parts, fill the store, measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storage", type=Path)
    storage = parser.parse_args().storage.absolute()
    task = load_task(TaskSource("plain", TASK.read_bytes()))
    manifest = task.manifest(task.presets()["smoke"], storage)
    fill(manifest, Store(str(storage / "store")), "stop", parallel=False)
    ray.init(address="local", num_cpus=CPUS, log_to_driver=False)
    share = cpus_for_data(1.0, workers=1, trials=TRIALS)
    ray.shutdown()
    rows = [
        measure(f"with its share, {share:g} CPUs", storage, share),
        measure("without", storage, None),
    ]
    print(
        "| Ray Data | CPUs of each trial, at most | of all at once | s to its first batch | s to the last of all |\n|---|---|---|---|---|"
    )
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
