"""Run directories made by hand, what the command prints of them, and a task script on a few small images."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.cli import task
from assay.cli.console import main
from assay.experiment import judge
from assay.runs.results import Result
from assay.train.task import Task
from assay.train.task_config import TaskConfig

CLASSES = ["m1", "m2"]
SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"
TASK = b"""
from assay.train.task import Task

class Toy(Task):
    pass
"""


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Makes a finished run, half of its images val, half test, two per part, a share of them answered rightly."""

    def make(
        storage: Path, name: str, right: float, seed: int = 0, num: int = 120, **fields: Any
    ) -> Path:
        rng = np.random.default_rng(seed)
        truth = np.arange(num) // 2 % 2
        answers = np.where(rng.random(num) < right, truth, 1 - truth)
        logits = np.eye(2)[answers] * 2 + rng.normal(0, 0.1, (num, 2))
        columns = {
            "id": [f"s{i:03d}" for i in range(num)],
            "group": [f"g{i // 2}" for i in range(num)],
            "split": ["val" if i < num // 2 else "test" for i in range(num)],
        }
        labels = {"content": columns["id"], "label": [CLASSES[t] for t in truth]}
        outputs = {"truth": pa.array(truth, pa.int32()), "logits": pa.array(logits.tolist())}
        predictions = pa.table(columns | outputs)
        folder = storage / name
        folder.mkdir(parents=True)
        pq.write_table(pa.table(columns | labels), folder / "split.parquet")
        pq.write_table(
            predictions.replace_schema_metadata({"classes": json.dumps(CLASSES)}),
            folder / "predictions.parquet",
        )
        launch = {"time": 1.7e9, "workers": 1, "strategy": "ddp", "device": "cpu", "assay": "0.1.0"}
        record = {
            "schema": 1,
            "state": "finished",
            "task": "toy",
            "launches": [launch],
            "seconds": 12.0,
        }
        (folder / "run.json").write_text(json.dumps(record | fields))
        (folder / "config.json").write_text('{"data": {}, "split": {}, "train": {}}')
        return folder

    return make


@pytest.fixture(scope="session")
def judged() -> Callable[..., Result]:
    """Judges a run as the toy task would, and returns its result."""
    return lambda folder, **settings: judge.judge(
        folder, Task, TaskConfig(**settings), folder.parent
    )


@pytest.fixture
def storage(make_run: Callable[..., Path], judged: Callable[..., Result], tmp_path: Path) -> Path:
    """A folder of two judged runs, a good and a bad one."""
    folder = tmp_path / "runs"
    judged(make_run(folder, "toy-good", 0.95))
    judged(make_run(folder, "toy-bad", 0.55, seed=1))
    return folder


@pytest.fixture(scope="session")
def write_task() -> Callable[[Path], bytes]:
    """Writes tasks/toy.py beside the folder of the runs, and returns its text."""

    def write(storage: Path) -> bytes:
        path = storage.parent / "tasks" / "toy.py"
        path.parent.mkdir()
        path.write_bytes(TASK)
        return TASK

    return write


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging and reporting write no page."""
    monkeypatch.setattr("assay.cli.console.write_report", lambda folder: folder / "report.html")


@pytest.fixture
def assay(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, and returns what it printed; with a code, on stderr."""

    def run(*arguments: str, code: int = 0) -> str:
        ended = 0
        try:
            main(arguments)
        except SystemExit as left:
            ended = int(left.code or 0)
        printed = capsys.readouterr()
        assert ended == code, printed
        return printed.err if code else printed.out

    return run


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """Options of a small and brief run of tasks/fingerprint.py."""
    return shlex.split(
        "--preset smoke --workers 0 --train.epochs 1 --model.num-noise 10 --model.warmup-k 4 "
        "--patches.image-px 96 --patches.overview-px 32 --patches.patch-px 16"
    )


@pytest.fixture(scope="session")
def draw_folder() -> Callable[..., Path]:
    """Draws noise images of two machines, two views per part, in the seed's layout."""

    def draw(
        root: Path, groups: int = 5, classes: tuple[str, ...] = ("a", "b"), suffix: str = ".png"
    ) -> Path:
        rng = np.random.default_rng(0)
        for number, label in enumerate(classes):
            for part in range(groups):
                for view in (1, 2):
                    path = (
                        root
                        / label
                        / "King"
                        / f"Device_{number}_Print_{part:03d}_{view:03d}{suffix}"
                    )
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image = rng.integers(80, 200, (96, 96, 3), dtype=np.uint8)
                    cv2.imwrite(str(path), image // (number + 1))
        return root

    return draw


@pytest.fixture
def parts(draw_folder: Callable[..., Path], tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "parts")


@pytest.fixture(scope="session")
def run_script(quick: list[str]) -> Callable[..., tuple[str, str]]:
    """Runs the task in this process; returns what it printed."""

    def run(
        capsys: pytest.CaptureFixture[str], storage: Path, *arguments: str, code: int = 0
    ) -> tuple[str, str]:
        try:
            task.main(
                str(SCRIPT),
                [*quick, "--storage", str(storage), "--split.unseen-domain", "", *arguments],
            )
            found = 0
        except SystemExit as left:
            found = int(left.code or 0)
        printed = capsys.readouterr()
        assert found == code, printed.err
        return printed.out, printed.err

    return run
