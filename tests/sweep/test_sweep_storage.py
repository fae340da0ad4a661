"""A search whose study and trials are on a real S3 server goes on from another machine."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs

from assay.storage import reach

ROOT = Path(__file__).parents[2]
QUICK = shlex.split(
    "--preset smoke --train.epochs 1 --model.mode random --parts.size-px 256 "
    "--parts.parts-per-seen 3 --patches.image-px 256 --patches.overview-px 64 --patches.patch-px 24 "
    "--trials 1 --eta 0 --parallel 1"
)


def search(home: Path, storage: str) -> str:
    """Run the sweep in a process of its own, on a machine with this home; returns what it prints."""
    home.mkdir()
    done = subprocess.run(
        [sys.executable, ROOT / "sweeps" / "hyperparameters.py", *QUICK, "--storage", storage],
        env={**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(str(home), "HOME")


def objects(address: str) -> dict[str, bytes]:
    files, root = reach(address)
    contents = {}
    for info in files.get_file_info(pafs.FileSelector(root, recursive=True)):
        if info.is_file:
            with files.open_input_file(info.path) as file:
                contents[info.path.removeprefix(f"{root}/")] = file.read()
    return contents


def test_a_search_is_found_by_another_machine(s3: Callable[[str], str], tmp_path: Path) -> None:
    printed = search(tmp_path / "first", s3("runs"))
    before = objects(s3("runs"))
    [sweep] = {name.split("/")[1] for name in before if name.startswith("sweeps/")}
    kept = {name.split("/")[2] for name in before if name.startswith("sweeps/")}
    assert {"optuna.log", "report.html", "sweep.json", "trials.csv", "index.json"} <= kept
    assert not kept & {"tune", "claims"}
    assert search(tmp_path / "second", s3("runs")) == printed
    after = objects(s3("runs"))
    study = f"sweeps/{sweep}/optuna.log"
    assert after[study].startswith(before[study])
    assert b"trial_id" not in after[study].removeprefix(before[study])  # no other was proposed
    names = [name for name in before if name.endswith(("metrics.jsonl", "weights.safetensors"))]
    assert len(names) == 2
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert not [name for name in after if "/ray/" in name or "/claims/" in name]
