"""The README's table and figure: the embedded parts at seeds named beforehand, method and baseline.

    python tests/benchmarks/embedded.py --storage runs          # seeds 0, 1 and 2

Writes embedded.md and embedded.png beside this file. Every seed is reported, however it ends.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from assay.data.images import decode
from assay.data.images.white import to_uint8
from assay.data.synthetic import parts

SEEDS = (0, 1, 2)
HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "tasks" / "fingerprint.py"


def main() -> None:
    """Run the seeds, then write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--workers", default="1")
    options = parser.parse_args()
    storage = options.storage.absolute()
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        where = ["--storage", str(storage), "--workers", options.workers]
        command = [sys.executable, str(SCRIPT), "--train.seed", str(seed), *where]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        folders = dict(line.split(": ") for line in done.stdout.strip().splitlines()[-3:-1])
        for name, folder in folders.items():
            result = json.loads((Path(folder) / "result.json").read_text())
            rows.append({"seed": seed, "name": name, "folder": folder} | result["sets"])
    (HERE / "embedded.md").write_text(table(rows, options.workers))
    cv2.imwrite(str(HERE / "embedded.png"), figure(Path(rows[0]["folder"]), storage)[..., ::-1])


def table(rows: list[dict[str, Any]], workers: str) -> str:
    """All seeds as Markdown."""
    seen, unseen = (rows[0][name]["metrics"]["accuracy"] for name in ("test_seen", "test_unseen"))
    lines = [
        f"n = {seen['num']} images of {seen['num_groups']} parts (new parts of six trained designs) and {unseen['num']} of "
        f"{unseen['num_groups']} (three designs never seen); six machines, chance is 1/6; "
        "[95 % intervals over parts].",
        "",
        "| seed | patches | new parts, known designs | unseen designs | on planted signal (unseen) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = (
            row["test_seen"]["metrics"]["accuracy"],
            row["test_unseen"]["metrics"]["accuracy"],
            row["test_unseen"]["metrics"]["patches_on_signal"],
        )
        cells = " | ".join(f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in numbers)
        kind = "chosen (`dps`)" if row["name"] == "fingerprint" else "random on the part"
        lines.append(f"| {row['seed']} | {kind} | {cells} |")
    machine = f"{os.cpu_count()} cores ({platform.machine()}), no GPU"
    lines += [
        "",
        f"{time.strftime('%Y-%m-%d')}, {machine}; `python tests/benchmarks/embedded.py --workers {workers}`.",
    ]
    return "\n".join(lines) + "\n"


def figure(folder: Path, storage: Path) -> np.ndarray:
    """One judged part of each design with its zones' surroundings and the chosen patches."""
    split = {r["id"]: r for r in pq.read_table(folder / "split.parquet").to_pylist()}
    chosen: dict[str, dict[str, Any]] = {}
    for row in pq.read_table(folder / "predictions.parquet").to_pylist():
        if row["split"].startswith("test"):
            chosen.setdefault(row["domain.design"], row)
    order = [*parts.SEEN_DESIGNS, *parts.UNSEEN_DESIGNS]
    tiles = [tile(chosen[design], Path(split[chosen[design]["id"]]["image"])) for design in order]
    return np.concatenate([np.concatenate(tiles[i : i + 3], 1) for i in (0, 3, 6)])


def tile(row: dict[str, Any], path: Path) -> np.ndarray:
    """One image with its patches, 320 pixels a side."""
    pixels = to_uint8(decode.read(path)).copy()
    root = path.parents[2]
    zones = parts.read_zones(root)[row["id"]]
    boxes = np.array(row["boxes"]).reshape(-1, 4)
    for box, hit in zip(boxes.astype(int), parts.zone_hits(zones, boxes), strict=True):
        colour = (40, 230, 60) if hit else (240, 50, 40)
        cv2.rectangle(pixels, box[:2].tolist(), box[2:].tolist(), colour, 3)
    label = row["domain.design"]
    cv2.putText(
        pixels, label, (12, 32), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (255, 255, 255), 2, cv2.LINE_AA
    )
    return cv2.resize(pixels, (320, 320), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
