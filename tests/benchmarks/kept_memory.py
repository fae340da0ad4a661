"""Updates on a CPU whose process keeps the memory that it frees, and as it was without: by turns, each in a process of its own.

python tests/benchmarks/kept_memory.py STORAGE
"""

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from bench import table, write

sys.path.append(str(Path(__file__).parent.parent))
from pretrained import lite0

TASKS = Path(__file__).parents[2] / "tasks"
ROUNDS, UPDATES, FIRST = 2, 16, 4
"""Turns of each way; updates of each, and those that do not count."""
PAGES = 1 << 17
LITE0 = (
    "--model.backbone tf_efficientnet_lite0 --model.norm frozen --model.weights {weights} --patches.patch-px 160 "
    "--model.trunk tf_efficientnet_lite0 --model.scorer-weights {weights} --model.k 4 --model.warmup-k 8"
)
ROWS = {
    "fingerprint, demo": ("fingerprint", "", 0),
    "fingerprint, EfficientNet-Lite0 on patches of 160 px": ("fingerprint", LITE0, 0),
    "the same, on a worker of Ray Train": ("fingerprint", LITE0, 1),
    "segment, demo": ("segment", "", 0),
}
RUN = """
import sys
from assay.cli.task import main
from assay.train import worker
if sys.argv[1] == "not":
    worker.keep_freed_memory = lambda most: None
main(sys.argv[2], sys.argv[3:])
"""


def updates(
    way: str, task: str, options: str, workers: int, seed: int, storage: Path
) -> list[dict[str, float]]:
    """Train until there are `UPDATES`, and return what metrics.jsonl says of them."""
    script = str(TASKS / f"{task}.py")
    more = f"--storage {storage} --workers {workers} --train.seed {seed} {options}"
    # a worker's own code cannot be changed from here; it keeps nothing where its thread has an arena of its own
    environment = os.environ | {"MALLOC_ARENA_MAX": "1" if way == "keep" else "64"}
    before = set(storage.glob(f"{task}-*"))
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, way if not workers else "keep", script, *more.split()],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines: list[dict[str, float]] = []
    while len(lines) < UPDATES:
        time.sleep(0.5)
        assert process.poll() is None, "ended early"
        for run in set(storage.glob(f"{task}-*")) - before:
            if (run / "metrics.jsonl").exists():
                text = (run / "metrics.jsonl").read_text().splitlines()
                lines = [json.loads(line) for line in text if '"kind": "step"' in line]
    process.terminate()
    process.wait()
    return lines


def page_us() -> float:
    """Microseconds that a new page of 4 KB costs."""
    with mmap.mmap(-1, PAGES * 4096) as memory:
        began = time.perf_counter()
        memory[::4096] = bytes(PAGES)
        return (time.perf_counter() - began) / PAGES * 1e6


def main() -> None:
    """Measure all rows and write the table."""
    storage = Path(sys.argv[1]).absolute()
    weights = lite0(storage / "lite0.safetensors")
    lines = []
    for seed, (name, (task, options, workers)) in enumerate(ROWS.items()):
        steps: dict[str, list[float]] = {"keep": [], "not": []}
        memory = dict.fromkeys(steps, 0.0)
        for turn in range(ROUNDS):
            for i, way in enumerate(steps):
                number = 1000 * (seed + 1) + 10 * turn + i
                measured = updates(
                    way, task, options.format(weights=weights), workers, number, storage
                )
                steps[way].append(median(line["step_s"] for line in measured[FIRST:]))
                memory[way] = max(memory[way], measured[-1]["memory_mb"])
        kept, before = median(steps["keep"]), median(steps["not"])
        shares = sorted(b / k for b, k in zip(steps["not"], steps["keep"], strict=True))
        lines.append(
            [
                name,
                f"{before:.3f}",
                f"{kept:.3f}",
                f"{before / kept:.2f} ({shares[0]:.2f} to {shares[-1]:.2f})",
                f"{memory['not'] / 1000:.1f}",
                f"{memory['keep'] / 1000:.1f}",
            ]
        )
        print(lines[-1], flush=True)
    write(
        __file__,
        f"An update (s, median of {UPDATES - FIRST}) of a training on the CPU that gives freed memory back, as the C library does, and of one that keeps it "
        f"(`assay.cluster.heap`), {ROUNDS} turns each; peak memory of the process. "
        f"A new page of 4 KB costs this machine, a virtual one, {median(page_us() for _ in range(5)):.2f} microseconds.",
        table(
            ["what", "given back, s", "kept, s", "times as fast", "given back, GB", "kept, GB"],
            lines,
        ),
    )


if __name__ == "__main__":
    main()
