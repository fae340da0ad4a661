"""Options of ONNX Runtime's sessions: what an answer costs, and what memory a session keeps.

python tests/benchmarks/sessions.py

The network is that of `tile_size.py`; OpenVINO is measured where its build of onnxruntime is installed.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from bench import table, write

TURNS, PAUSE_S = 9, 0.02
SHAPES = ((512, 512), (256, 512), (704, 1024), (512, 1024), (1024, 1504), (96, 64), (640, 640))
"""Tiles of images of many sizes, as one session sees them."""
VARIANTS: dict[str, dict[str, Any]] = {
    "1 thread": {"threads": 1},
    "1 thread, without an arena": {"threads": 1, "arena": False},
    "1 thread, without memory patterns": {"threads": 1, "pattern": False},
    "1 thread, denormals as 0": {"threads": 1, "session.set_denormal_as_zero": "1"},
    "2 threads that spin": {"threads": 2},
    "2 threads that do not spin": {"threads": 2, "session.intra_op.allow_spinning": "0"},
}
if "OpenVINOExecutionProvider" in onnxruntime.get_available_providers():
    VARIANTS["1 thread, OpenVINO"] = {"threads": 1, "provider": "OpenVINOExecutionProvider"}


def session(path: Path, name: str) -> onnxruntime.InferenceSession:
    wanted = VARIANTS[name]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = wanted["threads"]
    options.enable_cpu_mem_arena = wanted.get("arena", True)
    options.enable_mem_pattern = wanted.get("pattern", True)
    for key, value in wanted.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    provider = wanted.get("provider", "CPUExecutionProvider")
    return onnxruntime.InferenceSession(path, options, providers=[provider])


def kept_mb(path: str, name: str) -> float:
    """Memory (MB) that a session keeps in this process once it has seen all shapes."""
    opened = session(Path(path), name)

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    before = resident()
    for height, width in SHAPES:
        opened.run(None, {"tiles": np.zeros((1, 3, height, width), np.float32)})
    return resident() - before


def kept_apart(path: Path, name: str) -> float:
    """Measure `kept_mb` in a fresh process."""
    code = f"import sessions; print(sessions.kept_mb({str(path)!r}, {name!r}))"
    command = [sys.executable, "-c", code]
    here = Path(__file__).parent
    return float(subprocess.run(command, cwd=here, check=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    path = parser.parse_args().storage.absolute() / "fit.onnx"
    if not path.exists():
        from tile_size import (
            graphs,
        )  # imports torch, which a process that measures memory is without

        graphs(path.parent)
    opened = {name: session(path, name) for name in VARIANTS}
    tile = np.random.default_rng(0).normal(size=(1, 3, 512, 512)).astype(np.float32)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in opened}
    for turn in range(TURNS + 1):
        for name, each in opened.items():
            cpu, wall = time.process_time(), time.perf_counter()
            each.run(None, {"tiles": tile})
            wall = time.perf_counter() - wall
            time.sleep(PAUSE_S)  # threads that spin on cost CPU after the answer
            if turn:
                taken[name].append((1000 * (time.process_time() - cpu), 1000 * wall))
    rows = [
        [
            name,
            *(f"{statistics.median(values):.0f}" for values in zip(*each, strict=True)),
            f"{kept_apart(path, name):.0f}",
        ]
        for name, each in taken.items()
    ]
    write(
        __file__,
        f"One tile of 512x512 through segment's demo network, medians of {TURNS} turns of all after one to warm up, with {1000 * PAUSE_S:.0f} ms after each answer; memory that a session keeps after tiles of {len(SHAPES)} sizes, up to 1024x1504.",
        table(["session", "CPU (ms)", "wall (ms)", "memory kept (MB)"], rows),
        "Chosen: one thread for each replica and each process of `assay predict`, since two replicas of one thread answer more than one of two; with several threads (`--app.cpus` above 1), no spinning; the arena stays, as fetching memory anew for each answer costs more.",
    )


if __name__ == "__main__":
    main()
