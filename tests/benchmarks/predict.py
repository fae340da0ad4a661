"""`assay predict` beside the bundle alone: what an image costs, and how long it takes until the first is judged.

    python tests/benchmarks/predict.py BUNDLE...

Images are the bundles' golden ones, shifted, twice as large for masks.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from bench import imread, seconds, table, write

from assay.bundle.bundle import Bundle
from assay.serve import offline

IMAGES, TURNS = 32, 5
LIMIT = (
    "An overlay is a JPEG of the image's size, up to 1024 pixels. Of what it costs at 512x512 its encoding takes .6 ms, a new file .3 to .4 and drawing .1, and the image itself becomes some "
    ".2 to .4 dearer beside it; a quality of 80 in place of 95 would save .1 ms and show more of itself. So an image that is judged in 5 ms stays below .9 with one, and no thread helps "
    "where each CPU has a process already."
)


def draw(bundle: Bundle, folder: Path, target: Path, num: int) -> list[Path]:
    """Write shifted copies of the golden image as PNG."""
    golden = imread(folder / bundle.card.golden.image)
    times = 2 if bundle.pipeline["kind"] == "tiles" else 1
    paths = [target / f"{i:05d}.png" for i in range(num)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), cv2.resize(np.roll(golden, i, 1), None, fx=times, fy=times))
    return paths


def judge(folder: Path, paths: list[Path], out: Path, overlays: bool) -> None:
    """Judge as a process of `assay predict` does."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "chunks").mkdir(parents=True)
    chunk = {"start": 0, "images": list(map(str, paths)), "file": str(out / "chunks" / "a.json")}
    ended = offline._judge(folder, "fp32", out, overlays, chunk)["ended"]
    assert not ended, ended


def cpu_row(folder: Path, target: Path) -> list[str]:
    """CPU time of an image: the bundle alone, and what a process of `assay predict` takes for it, by turns."""
    bundle = offline._open_bundle(folder, "fp32")
    paths = draw(bundle, folder, target, IMAGES)
    runs: dict[str, Any] = {
        "alone": lambda: [bundle.predict(path) for path in paths],
        "plain": partial(judge, folder, paths, target / "out", False),
        "overlays": partial(judge, folder, paths, target / "out", True),
    }
    taken = seconds(runs, TURNS, time.process_time)
    ms = {name: 1000 * value / IMAGES for name, value in taken.items()}
    shares = [f"{ms['alone'] / ms[name]:.2f}" for name in ("plain", "overlays")]
    return [bundle.card.task, *(f"{value:.1f}" for value in ms.values()), *shares]


def command(folder: Path, images: Path, out: Path) -> tuple[float, float, float]:
    """Run `assay predict`; return when it began, its seconds, and the CPU time (s) of it and of those of Ray's processes that it waits for."""
    words = ["assay", "predict", str(folder), str(images), "--out", str(out), "--no-overlays"]
    code = f"import sys; from assay.cli.console import main; sys.argv = {words!r}; main()"
    began, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    quiet = subprocess.DEVNULL
    subprocess.run([sys.executable, "-c", code], check=True, stdout=quiet, stderr=quiet)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return began, time.time() - began, cpu


def start_row(folder: Path, target: Path, num: int) -> list[str]:
    """Seconds of the command from its start: to the first chunk, to the last, to its end; and of the same again."""
    bundle = Bundle(folder, verify=False)
    images, out = target / "in", target / "out"
    images.mkdir()
    draw(bundle, folder, images, num)
    shutil.rmtree(out, ignore_errors=True)
    began, total, cpu = command(folder, images, out)
    chunks = list((out / "chunks").glob("*.json"))
    assert sum(len(json.loads(path.read_text())) for path in chunks) == num
    ends = sorted(path.stat().st_mtime - began for path in chunks)
    rate = (num - offline.CHUNK) / (ends[-1] - ends[0])
    _, again, again_cpu = command(folder, images, out)
    values = (ends[0], ends[-1], total, cpu, rate, again, again_cpu)
    return [bundle.card.task, str(num), *(f"{value:.1f}" for value in values)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    costs, starts = [], []
    for folder in given.bundles:
        with tempfile.TemporaryDirectory() as target:
            costs.append(cpu_row(folder.absolute(), Path(target)))
            starts.append(start_row(folder.absolute(), Path(target), given.images))
    ms = ["the bundle alone (ms)", "a process of predict (ms)", "with overlays (ms)"]
    shares = ["alone / predict", "alone / with overlays"]
    columns = ["to the first chunk (s)", "to the last (s)", "in all (s)", "its own CPU (s)"]
    columns += ["images/s between", "the same again (s)", "its CPU (s)"]
    write(
        __file__,
        f"CPU time of one image in one process, medians of {TURNS} turns of {IMAGES} images after one to warm up; goal: .9 of the bundle alone.",
        table(["task", *ms, *shares], costs),
        LIMIT,
        "The command itself, without overlays, by the clock of a machine that others load too; goal: a start of at most 15 s.",
        table(["task", "images", *columns], starts),
    )


if __name__ == "__main__":
    main()
